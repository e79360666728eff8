"""Headline: yes-or-no questions about the price of gold in a headline."""

from reproduction.corpora.conversations import conversation_rows
from reproduction.corpora.corpus import Corpus

CORPUS = Corpus(
    "headline",
    "Headline: gold news, yes or no",
    "CC BY-SA 3.0",
    conversation_rows,
    files=("pixiu_finance/headlines_train.jsonl", "pixiu_finance/headlines_valid_sample2500.jsonl"),
    get="https://github.com/The-FinAI/PIXIU",
    example=(
        {
            "conversations": [
                {"value": "Does the headline tell of a rising price?\nText: gold up in Mumbai\nAnswer:"},
                {"value": "Yes"},
            ]
        },
        {
            "conversations": [
                {"value": "Does the headline tell of a rising price?\nText: gold ends week lower\nAnswer:"},
                {"value": "No"},
            ]
        },
    ),
)
