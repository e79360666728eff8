"""MM-HarmfulBench, the paper's own set: questions about pictures, some of which can be read without them."""

from collections.abc import Sequence
from pathlib import Path

from inferaligner.evaluation.suites.published import FOLDER, Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite
from inferaligner.prompts.images import ImagePrompt, picture_from


def _read(rows: Sequence[Row]) -> list[Item]:
    return [
        Item(
            ImagePrompt(row["question"], (picture_from(row["image"], folder=Path(row[FOLDER])),)),
            name=str(row["index"]),
        )
        for row in rows
    ]


MM_HARMFULBENCH = Suite(
    "mm_harmfulbench",
    "MM-HarmfulBench, rows whose pictures are here",
    "harmful",
    Published(
        ("mm_harmfulbench/subset_with_images.jsonl",),
        _read,
        "https://github.com/Jihuai-wpy/InferAligner (MM-HarmfulBench): rows with index, image (a path from "
        "the file) and question",
    ),
    citation="Wang et al. 2024, arXiv 2401.11206",
    licence="CC BY-NC 4.0; the pictures are third parties'",
)
