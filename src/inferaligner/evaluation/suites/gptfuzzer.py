"""GPTFuzzer: every hand-written template with every question."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite
from inferaligner.evaluation.suites.user_files import fill


def _read(rows: Sequence[Row]) -> list[Item]:
    templates = [row for row in rows if row["__file__"] == "GPTFuzzer"]
    questions = [row["text"] for row in rows if row["__file__"] == "question_list"]
    items = []
    for template in templates:
        filled = [fill(template["text"], question) for question in questions]
        items += [Item(text, f"template {template['id']}") for text in filled if text is not None]
    return items


GPTFUZZER = Suite(
    "gptfuzzer",
    "GPTFuzzer templates with its questions",
    "jailbreak",
    Published(
        ("jailbreak_templates_gptfuzzer/GPTFuzzer.csv", "jailbreak_templates_gptfuzzer/question_list.csv"),
        _read,
        "https://github.com/sherdencooper/GPTFuzz (datasets)",
    ),
    citation="Yu et al. 2023, arXiv 2309.10253",
    licence="MIT",
)
