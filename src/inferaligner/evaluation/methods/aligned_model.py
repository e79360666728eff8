"""The aligned model in place of the target: the target if fine-tuning had kept its safety."""

from inferaligner.errors import InputError
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.methods.other_model import OtherModel

NAME = "aligned"
NEEDS = "guide"


def make(context: MethodContext, option: str) -> Method:
    """`aligned=MODEL`; by default the model with which the aligner was fitted."""
    guide = None if context.aligner is None else context.aligner.artifact.provenance.aligned
    if not option and guide is None:
        raise InputError(f"The method {NAME} needs a model: {NAME}=MODEL.")
    return OtherModel(NAME, "aligned model", context, option or (guide.spec if guide else ""))
