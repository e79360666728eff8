"""One experiment on one family of a scale, with everything that its stages ask about it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferaligner.evaluation.suites.catalogue import load
from reproduction.recipe import Domain, Family, PerScale, Scale, ScaleConfig, from_environment
from reproduction.stage_store import StageStore
from reproduction.training_settings import Training

Counts = Mapping[str, "int | Literal['all']"]


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Attributes:
        data: folder of public sets.
        work: models, aligners, records; outside the repository.
        results: JSON, tables and figures; inside it.
        examples: made-up rows in place of published ones (a dry run).
    """

    data: Path | None
    work: Path
    results: Path
    examples: bool = False


@dataclass(frozen=True)
class RunContext:
    """A domain experiment on a family."""

    name: str
    experiment: Domain
    book: ScaleConfig
    family_name: str
    place: Place
    workplace: StageStore

    @property
    def scale(self) -> Scale:
        return self.book.scale

    @property
    def family(self) -> Family:
        return self.scale.families[self.family_name]

    @property
    def title(self) -> str:
        return f"{self.experiment.title}, {self.family.title}"

    @functools.cached_property
    def target(self) -> str:
        """The spec of the model that is fine-tuned."""
        return from_environment(self.family.target)

    @property
    def rows(self) -> Counts:
        return self.per_scale("rows")

    @property
    def utility(self) -> Counts:
        return self.per_scale("utility")

    def per_scale(self, what: Literal["rows", "utility"]) -> Counts:
        """What the experiment says for this scale."""
        return self.counts(getattr(self.experiment, what))

    def counts(self, stated: PerScale) -> Counts:
        """What an experiment states for this scale."""
        found: Counts = getattr(stated, self.scale.takes)
        return found

    @property
    def methods(self) -> tuple[str, ...]:
        """Everything that is compared with the undefended model."""
        return (*self.experiment.methods, *self.scale.more_methods)

    def training(self, more: Mapping[str, Any] | None = None) -> Training:
        """The scale's settings with the family's, the domain's and others over them."""
        domain: dict[str, Any] = getattr(self.experiment.training, self.scale.takes)
        merged = self.scale.training.model_dump() | self.family.training | domain | dict(more or {})
        return Training.model_validate(merged)

    def tests(self) -> dict[str, list[str]]:
        """Every prompt that will be asked, by suite: what training rows are kept apart from."""
        asked = {**self.scale.safety_suites, **self.utility}
        found = load(suite_specs(asked), data=self.place.data, seed=self.scale.seed)
        return {subset.suite.name: [item.prompt for item in subset.items] for subset in found}

    @property
    def domain_model(self) -> Path:
        return self.workplace.folder / "train" / "model"

    @property
    def safety_model(self) -> Path:
        return self.workplace.folder / "safety-sft" / "model"

    @property
    def chat_model(self) -> Path:
        return self.workplace.folder / "domain-chat" / "model"

    @property
    def aligner(self) -> Path:
        return self.workplace.folder / "fit" / "aligner"

    @property
    def paper_aligner(self) -> Path:
        return self.workplace.folder / "fit-paper" / "aligner"

    @property
    def result(self) -> Path:
        """Where its figures are, without an ending."""
        return self.results_of(self.name)

    def results_of(self, experiment: str) -> Path:
        """The same of another experiment on this family."""
        return self.place.results / self.book.name / f"{experiment}-{self.family_name}"


def suite_specs(counts: Counts) -> list[str]:
    """As `inferaligner evaluate --suite` takes them: a name, with @N for so many of its prompts."""
    return [name if count == "all" else f"{name}@{count}" for name, count in counts.items()]
