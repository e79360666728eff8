"""Alpaca instructions."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite
from inferaligner.prompts.row_forms import with_input


def _read(rows: Sequence[Row]) -> list[Item]:
    return [Item(with_input(row["instruction"], row["input"])) for row in rows]


ALPACA = Suite(
    "alpaca",
    "Alpaca instructions",
    "benign",
    Published(
        ("alpaca_en_demo/alpaca_en_demo.json",),
        _read,
        "https://github.com/hiyouga/LLaMA-Factory (data/alpaca_en_demo.json)",
        "tatsu-lab/alpaca:train",
    ),
    citation="Taori et al. 2023, Stanford Alpaca",
    licence="CC BY-NC 4.0",
)
