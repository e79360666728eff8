"""The operating point as an artifact keeps it: what is promised, for which traffic, and how it came about.

Lives under `calibration.operating_point` of `aligner.json`. Artifacts of before have none, and still load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferaligner.errors import ArtifactError, InputError
from inferaligner.statistics.stored_sample import StoredSample

Origin = Literal["held-out", "out-of-fold"]
"""Scores of the very gate on prompts it never saw, or of gates that each were fitted without the prompt."""

Source = Literal["prompts", "scores", "prompts and scores"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TrafficRecord(_Record):
    """One kind of benign traffic at the operating point."""

    n: int = Field(ge=1)
    open: int = Field(ge=0)  # of these n prompts
    bound: float = Field(ge=0, le=1)  # the false-open rate that the confidence holds for
    promised: bool  # whether the bound is the rate that was asked for, by a rank fixed beforehand
    origin: Origin
    quantiles: tuple[float, ...]  # of the scores without the gate's bias, see `distribution`

    @property
    def sample(self) -> StoredSample:
        """The calibration scores, without the gate's bias."""
        return StoredSample(self.n, self.quantiles)


class Move(_Record):
    """One entry of the history: when the bias was moved, for which traffic, with what promise."""

    date: str  # ISO 8601, UTC
    old_bias: float
    new_bias: float
    source: Source
    traffic: dict[str, int]  # prompts by name
    max_false_open: float
    confidence: float
    promised: bool


class OperatingPoint(_Record):
    """Where the threshold stands, and for what.

    `rule` says what it rests on: "traffic" (the benign prompts named), "paper", or "quantile" (of the
    labelled ordinary prompts, to which named traffic may have been added). Artifacts of older versions may
    have another rule for the labelled prompts.
    """

    max_false_open: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    rule: str
    traffic: dict[str, TrafficRecord]
    history: tuple[Move, ...] = ()

    @property
    def held_out(self) -> dict[str, TrafficRecord]:
        """The traffic that no gate was fitted on: the user's own."""
        return {name: record for name, record in self.traffic.items() if record.origin == "held-out"}

    @property
    def promised(self) -> bool:
        """Whether the rate is promised for every traffic of the user's, of which there must be some."""
        return bool(self.held_out) and all(record.promised for record in self.held_out.values())

    @property
    def joint_confidence(self) -> float:
        """With which all the promises to the user's traffics hold at once, at least (Bonferroni)."""
        kept = sum(record.promised for record in self.held_out.values())
        return max(0.0, 1.0 - kept * (1.0 - self.confidence))


def read_operating_point(calibration: Mapping[str, Any]) -> OperatingPoint | None:
    """The record in an artifact's calibration figures; None in artifacts of before there was one.

    Raises:
        ArtifactError: there is one, and it makes no sense.
    """
    raw = calibration.get("operating_point")
    if raw is None:
        return None
    try:
        point = OperatingPoint.model_validate(raw)
        for record in point.traffic.values():
            _ = record.sample
    except (ValidationError, InputError) as error:
        raise ArtifactError(
            f"The operating point in this aligner is not readable: {' '.join(str(error).split())}. "
            "Set it again with `inferaligner calibrate DIR --benign FILE`, or fit the aligner again."
        ) from None
    return point
