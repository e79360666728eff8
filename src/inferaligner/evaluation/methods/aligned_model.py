"""The aligned model itself: what the target would be like had fine-tuning not worn its safety off."""

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.methods.other_model import OtherModel, needed

NAME = "aligned"
NEEDS: Needs = "guide"


def make(bench: MethodContext, option: str) -> Method:
    """`aligned=MODEL`; without it, the model that the aligner was fitted with."""
    guide = None if bench.aligner is None else bench.aligner.artifact.provenance.aligned
    known = "" if guide is None else guide.spec
    return OtherModel(NAME, "aligned model", bench, needed(NAME, option or known, "MODEL"))
