"""Safety SFT: the target fine-tuned on safety samples, as a PEFT adapter folder (or a whole model)."""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.methods.other_model import OtherModel, needed

NAME = "safety-sft"
NEEDS: Needs = "nothing"


def make(bench: MethodContext, option: str) -> Method:
    """`safety-sft=FOLDER`."""
    return OtherModel(NAME, "Safety SFT", bench, needed(NAME, option, "FOLDER"))
