"""PubMedQA, by generating."""

from inferaligner.evaluation.suites.pubmedqa_rows import abstract, pubmedqa
from inferaligner.evaluation.suites.suite import Suite

SUITE = Suite(
    "pubmedqa-generated",
    "PubMedQA, by generating",
    "utility",
    pubmedqa(abstract),
    "name",
    citation="Jin et al. 2019, arXiv 1909.06146",
    licence="MIT",
)
