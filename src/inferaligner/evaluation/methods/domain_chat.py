"""The aligned model fine-tuned for the domain, in place of the target: the paper's first baseline."""

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.methods.other_model import OtherModel

NAME = "domain-chat"
OPTION = "a model: domain-chat=MODEL"


def make(context: MethodContext, option: str) -> Method:
    """`domain-chat=MODEL`."""
    return OtherModel(NAME, "fine-tuned aligned model", context, option)
