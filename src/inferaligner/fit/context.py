"""What every step of one fit works on: two models, labelled prompts, options, a judge, a listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferaligner.artifact import ModelRecord
from inferaligner.fit.options import FitOptions
from inferaligner.fit.progress import NullProgress, Progress
from inferaligner.fit.samples import Samples
from inferaligner.method.activations import Recorder
from inferaligner.models.fingerprint import fingerprint_model, fingerprint_tokenizer
from inferaligner.models.weight_digest import weight_digest
from inferaligner.prompts.images import Prompt

Outcome = Callable[[str], str]
"""Judges an answer: "refusal", "compliance" or "gibberish"."""


@dataclass(frozen=True)
class FitModel:
    """A model with its tokenizer (or processor), and the name that the user gave it.

    `recorder`, where there is one, records activations in place of the model: an engine that serves it.
    """

    model: Any
    tokenizer: Any
    spec: str
    recorder: Recorder | None = None

    def record(self) -> ModelRecord:
        """The fingerprints for the artifact."""
        return ModelRecord(
            spec=self.spec,
            model=fingerprint_model(self.model),
            tokenizer=fingerprint_tokenizer(self.tokenizer),
            weights=weight_digest(self.model),
        )


@dataclass(frozen=True)
class FitContext:
    """The input of one fit. It does not change; each step takes it, and returns what it made."""

    target: FitModel
    aligned: FitModel | None
    """None: the result is a gate alone."""
    samples: Samples
    """The labelled prompts."""
    outcome: Outcome
    """Judges the answers while the strength is searched."""
    options: FitOptions = field(default_factory=FitOptions)
    benign: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)
    """The user's own traffic by name. Never fitted on; each is kept below `options.max_false_open`."""
    progress: Progress = field(default_factory=NullProgress)

    @property
    def guide(self) -> FitModel:
        """The aligned model, for the steps that are never run without one."""
        assert self.aligned is not None
        return self.aligned

    def limits(self) -> tuple[float, float]:
        """Largest share that may open: of the user's own traffic, and of the labelled ordinary prompts."""
        return self.options.limits(bool(self.benign))
