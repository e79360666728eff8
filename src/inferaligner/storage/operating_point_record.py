"""The record of an operating point in an artifact: false-open rates, their bounds, and the history.

It is `calibration.operating_point` of `aligner.json`. Artifacts written before there was a record load
without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferaligner.errors import ArtifactError, InputError
from inferaligner.statistics.stored_sample import StoredSample

Origin = Literal["held-out", "out-of-fold"]
"""Held-out: scores of the gate itself on prompts that it was not fitted on. Out-of-fold: each prompt's score
comes from a gate of cross-validation that was fitted without the prompt."""

Source = Literal["prompts", "scores", "prompts and scores"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TrafficRecord(_Record):
    """One kind of benign traffic at the operating point."""

    n: int = Field(ge=1)
    open: int = Field(ge=0)  # of these n prompts
    bound: float = Field(ge=0, le=1)  # the false-open rate that the confidence holds for
    promised: bool  # whether the bound is `max_false_open`, from a rank that was fixed beforehand
    origin: Origin
    quantiles: tuple[float, ...]  # of the scores without the gate's bias, see `statistics.stored_sample`

    @property
    def sample(self) -> StoredSample:
        """The calibration scores, without the gate's bias."""
        return StoredSample(self.n, self.quantiles)


class Move(_Record):
    """One entry of the history: a change of the gate's bias."""

    date: str  # ISO 8601, UTC
    old_bias: float
    new_bias: float
    source: Source
    traffic: dict[str, int]  # numbers of prompts by name
    max_false_open: float
    confidence: float
    promised: bool


class OperatingPoint(_Record):
    """The operating point of a gate or monitor.

    `rule` is the basis of the threshold: "traffic" (the named benign prompts), "paper" (the paper's bias), or
    a rule for the labelled prompts, to which named traffic may have been added.
    """

    max_false_open: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    rule: str
    traffic: dict[str, TrafficRecord]
    history: tuple[Move, ...] = ()

    @property
    def held_out(self) -> dict[str, TrafficRecord]:
        """The user's own traffic, on which no gate was fitted."""
        return {name: record for name, record in self.traffic.items() if record.origin == "held-out"}

    @property
    def promised(self) -> bool:
        """Whether there is traffic of the user's, and the rate is promised for all of it."""
        return bool(self.held_out) and all(record.promised for record in self.held_out.values())

    @property
    def joint_confidence(self) -> float:
        """Lowest confidence that the promises for all of the user's traffic hold together (Bonferroni)."""
        kept = sum(record.promised for record in self.held_out.values())
        return max(0.0, 1.0 - kept * (1.0 - self.confidence))


def read_operating_point(calibration: Mapping[str, Any]) -> OperatingPoint | None:
    """Reads the record from an artifact's calibration figures.

    Returns:
        None in artifacts that were written before there was a record.

    Raises:
        ArtifactError: the record is invalid.
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
