"""PubMedQA in its authors' reasoning-free setting: the article's conclusion in place of its abstract."""

from inferaligner.evaluation.suites.pubmedqa_rows import conclusion, pubmedqa
from inferaligner.evaluation.suites.suite import Suite

SUITE = Suite(
    "pubmedqa-reasoning-free",
    "PubMedQA with the conclusion given, by log-likelihood",
    "utility",
    pubmedqa(conclusion),
    "pick",
    citation="Jin et al. 2019, arXiv 1909.06146",
    licence="MIT",
)
