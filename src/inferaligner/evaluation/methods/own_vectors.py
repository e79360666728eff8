"""The same gate with the target's own vectors: the paper's ablation."""

from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Method, MethodContext, Needs

NAME = "own-vectors"
NEEDS: Needs = "vectors"


def make(bench: MethodContext, option: str) -> Method:
    """SRV in place of SSV."""
    return GatedSteering(NAME, "target's own vectors", bench, bench.need_aligner(NAME), source="target")
