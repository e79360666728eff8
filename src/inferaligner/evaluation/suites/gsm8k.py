"""GSM8K, by the last number in the answer, without worked examples in the prompt."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

GSM8K = Suite(
    "gsm8k",
    "GSM8K test",
    "utility",
    Published(
        ("gsm8k/test.jsonl",),
        lambda rows: [Item(r["question"], answer=r["answer"].split("####")[-1].strip()) for r in rows],
        "https://github.com/openai/grade-school-math (grade_school_math/data/test.jsonl)",
    ),
    "number",
    citation="Cobbe et al. 2021, arXiv 2110.14168",
    licence="MIT",
)
