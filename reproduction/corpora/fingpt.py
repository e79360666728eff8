"""FinGPT's instructions: sentiment of news and posts. They hold rows of the public test sets, which the
separation takes out."""

from collections.abc import Sequence

from reproduction.corpora.corpus import Corpus, Hub, Published, Row


def instructed(rows: Sequence[Published]) -> list[Row]:
    return [Row(f"{row['instruction']}\n{row['input']}", row["output"], row["input"]) for row in rows]


CORPUS = Corpus(
    "fingpt-sentiment",
    "FinGPT instructions, sentiment",
    "MIT",
    instructed,
    files=("fingpt/sentiment_train.jsonl",),
    hub=Hub("FinGPT/fingpt-sentiment-train"),
    get="https://huggingface.co/datasets/FinGPT/fingpt-sentiment-train",
    example=(
        {
            "instruction": "What is the sentiment of this news? Choose from {negative/neutral/positive}.",
            "input": "The brewery doubled its profit .",
            "output": "positive",
        },
        {
            "instruction": "What is the sentiment of this tweet? Choose from {negative/neutral/positive}.",
            "input": "$GHI opens flat",
            "output": "neutral",
        },
    ),
)
