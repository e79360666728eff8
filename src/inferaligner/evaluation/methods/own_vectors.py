"""The aligner's gate with the target's own vectors, SRV in place of SSV: the paper's ablation."""

from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Method, MethodContext

NAME = "own-vectors"
NEEDS = "vectors"


def make(context: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner."""
    return GatedSteering(NAME, "target's own vectors", context, context.need_aligner(NAME), source="target")
