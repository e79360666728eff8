"""MaliciousInstruct."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

MALICIOUS_INSTRUCT = Suite(
    "malicious-instruct",
    "MaliciousInstruct",
    "harmful",
    Published(
        ("malicious_instruct_tdc2023/MaliciousInstruct.txt",),
        lambda rows: [Item(row["text"].strip()) for row in rows],
        "https://github.com/Princeton-SysML/Jailbreak_LLM (data/MaliciousInstruct.txt)",
    ),
    citation="Huang et al. 2024, arXiv 2310.06987",
    licence="none stated",
)
