"""No defence: the bare model."""

from inferaligner.evaluation.methods.method import Method, MethodContext

NAME = "none"


def make(context: MethodContext, option: str) -> Method:
    """The base class itself: it changes nothing."""
    return Method(NAME, "bare model", context)
