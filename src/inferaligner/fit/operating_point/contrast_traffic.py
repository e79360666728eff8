"""The labelled prompts' own ordinary traffic, which sets the threshold before any traffic of the user's does.

The scores are out of fold: each from a gate fitted without the prompt and its twin, but not from the gate
that is kept, and that gate was chosen on them. So no bound on prompts to come is taken from them: the
threshold is their plain quantile (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from inferaligner.fit.samples import Sample

POOLED = "contrast set"
"""Name of the ordinary prompts of every kind together."""


def contrast_traffic(scores: Sequence[float], samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Scores of ordinary traffic, pooled and by kind; where none is labelled, of all harmless prompts."""
    rows = list(zip(scores, samples, strict=True))
    kinds = sorted({sample.group for _, sample in rows if sample.ordinary})
    if not kinds:
        return {"harmless prompts": [float(score) for score, sample in rows if not sample.harmful]}
    traffic = {POOLED: [float(score) for score, sample in rows if sample.ordinary]}
    for kind in kinds:
        traffic[f"{POOLED}: {kind}"] = [
            float(score) for score, sample in rows if sample.ordinary and sample.group == kind
        ]
    return traffic
