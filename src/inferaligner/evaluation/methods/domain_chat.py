"""The aligned model fine-tuned for the domain in the target's place: the paper's first baseline."""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.methods.other_model import OtherModel, needed

NAME = "domain-chat"
NEEDS: Needs = "nothing"


def make(bench: MethodContext, option: str) -> Method:
    """`domain-chat=MODEL`."""
    return OtherModel(NAME, "fine-tuned aligned model", bench, needed(NAME, option, "MODEL"))
