"""Safety SFT: the target fine-tuned on safety samples, from the folder of a PEFT adapter or of a model."""

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.methods.other_model import OtherModel

NAME = "safety-sft"
OPTION = "a model: safety-sft=FOLDER"
OPTION_IS_PATH = True


def make(context: MethodContext, option: str) -> Method:
    """`safety-sft=FOLDER`."""
    return OtherModel(NAME, "Safety SFT", context, option)
