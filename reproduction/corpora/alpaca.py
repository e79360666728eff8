"""General dialogue, small: Alpaca instructions with answers of a larger model."""

from collections.abc import Sequence

from inferaligner.prompts.columns import with_input
from reproduction.corpora.corpus import Corpus, Hub, Published, Row


def _read(rows: Sequence[Published]) -> list[Row]:
    found = []
    for row in rows:
        prompt = with_input(row["instruction"], row["input"])
        found.append(Row(prompt, row["output"], prompt))
    return found


CORPUS = Corpus(
    "alpaca",
    "Alpaca",
    "CC BY-NC 4.0",
    _read,
    files=("alpaca_en_demo/alpaca_en_demo.json",),
    hub=Hub("yahma/alpaca-cleaned"),
    get="https://github.com/hiyouga/LLaMA-Factory (data/alpaca_en_demo.json)",
    example=(
        {"instruction": "Name three kinds of bread.", "input": "", "output": "Rye, sourdough and focaccia."},
        {"instruction": "Put this into the past tense.", "input": "She sings.", "output": "She sang."},
    ),
)
