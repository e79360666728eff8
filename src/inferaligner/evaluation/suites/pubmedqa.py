"""PubMedQA, by log-likelihood."""

from inferaligner.evaluation.suites.pubmedqa_rows import abstract, pubmedqa
from inferaligner.evaluation.suites.suite import Suite

SUITE = Suite(
    "pubmedqa",
    "PubMedQA, by log-likelihood",
    "utility",
    pubmedqa(abstract),
    "pick",
    citation="Jin et al. 2019, arXiv 1909.06146",
    licence="MIT",
)
