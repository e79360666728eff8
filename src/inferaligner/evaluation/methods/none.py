"""No defence."""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs

NAME = "none"
NEEDS: Needs = "nothing"


def make(bench: MethodContext, option: str) -> Method:
    """The bare model."""
    return Method(NAME, "bare model", bench)
