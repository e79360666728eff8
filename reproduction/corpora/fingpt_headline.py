"""FinGPT's instructions: questions on headlines."""

from reproduction.corpora.corpus import Corpus, Hub
from reproduction.corpora.fingpt import instructed

CORPUS = Corpus(
    "fingpt-headline",
    "FinGPT instructions, headlines",
    "MIT",
    instructed,
    files=("fingpt/headline.jsonl",),
    hub=Hub("FinGPT/fingpt-headline"),
    get="https://huggingface.co/datasets/FinGPT/fingpt-headline",
    example=(
        {
            "instruction": "Does the news headline talk about price going up? Please choose Yes or No.",
            "input": "Gold climbs on weak dollar",
            "output": "Yes",
        },
        {
            "instruction": "Does the news headline talk about price staying constant? Choose Yes or No.",
            "input": "Bullion tumbles in London",
            "output": "No",
        },
    ),
)
