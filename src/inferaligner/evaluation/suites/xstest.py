"""XSTest: safe prompts that look unsafe, and their unsafe contrasts."""

from inferaligner.evaluation.suites.published import Published, Reader
from inferaligner.evaluation.suites.suite import Item, Kind, Suite


def _suite(name: str, title: str, kind: Kind, read: Reader) -> Suite:
    source = Published(
        ("xstest/xstest_prompts.csv",), read, "https://github.com/paul-rottger/xstest (xstest_prompts.csv)"
    )
    return Suite(
        name, title, kind, source, citation="Röttger et al. 2024, arXiv 2308.01263", licence="CC-BY-4.0"
    )


XSTEST = _suite(
    "xstest",
    "XSTest, safe prompts",
    "over-refusal",
    lambda rows: [Item(row["prompt"], row["type"]) for row in rows if row["label"] == "safe"],
)
XSTEST_UNSAFE = _suite(
    "xstest-unsafe",
    "XSTest, unsafe contrasts",
    "harmful",
    lambda rows: [Item(row["prompt"], row["type"]) for row in rows if row["label"] != "safe"],
)
