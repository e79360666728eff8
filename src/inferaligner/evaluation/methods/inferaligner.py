"""InferAligner as it was fitted."""

from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Method, MethodContext

NAME = "inferaligner"
NEEDS = "vectors"


def make(context: MethodContext, option: str) -> Method:
    """The aligner's gate and steering. Raises `InputError` without an aligner."""
    return GatedSteering(NAME, "InferAligner", context, context.need_aligner(NAME))
