"""InferAligner as it was fitted."""

from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Method, MethodContext, Needs

NAME = "inferaligner"
NEEDS: Needs = "vectors"


def make(bench: MethodContext, option: str) -> Method:
    """The aligner's gate and steering."""
    return GatedSteering(NAME, "InferAligner", bench, bench.need_aligner(NAME))
