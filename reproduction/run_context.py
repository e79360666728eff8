"""One domain experiment on one family of a scale: the context that its stages share."""

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
    """The folders of a run.

    Attributes:
        data: Folder of public sets.
        work: Folder of models, aligners and records; outside the repository.
        results: Folder of JSON, tables and figures; inside the repository.
        examples: Whether made-up rows replace published ones (a dry run).
    """

    data: Path | None
    work: Path
    results: Path
    examples: bool = False


@dataclass(frozen=True)
class RunContext:
    """A domain experiment on a family.

    Attributes:
        name: Name of the experiment.
        experiment: Its file.
        config: The scale with all experiments.
        family_name: Name of the family.
        place: The folders.
        store: The folder and the finished stages of this experiment on this family.
    """

    name: str
    experiment: Domain
    config: ScaleConfig
    family_name: str
    place: Place
    store: StageStore

    @property
    def scale(self) -> Scale:
        return self.config.scale

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
        """The experiment's numbers of rows, or its utility suites, at this scale."""
        return self.counts(getattr(self.experiment, what))

    def counts(self, stated: PerScale) -> Counts:
        """The counts of an experiment at this scale."""
        counts: Counts = getattr(stated, self.scale.takes)
        return counts

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are compared with the undefended model."""
        return (*self.experiment.methods, *self.scale.more_methods)

    def training(self, more: Mapping[str, Any] | None = None) -> Training:
        """The scale's settings, overridden by the family's, then the domain's, then `more`."""
        domain: dict[str, Any] = getattr(self.experiment.training, self.scale.takes)
        merged = self.scale.training.model_dump() | self.family.training | domain | dict(more or {})
        return Training.model_validate(merged)

    def tests(self) -> dict[str, list[str]]:
        """The test prompts by suite; no training row may be a near-duplicate of one."""
        suites = {**self.scale.safety_suites, **self.utility}
        subsets = load(suite_specs(suites), data=self.place.data, seed=self.scale.seed)
        return {subset.suite.name: [item.prompt for item in subset.items] for subset in subsets}

    @property
    def domain_model(self) -> Path:
        return self.store.folder / "train" / "model"

    @property
    def safety_model(self) -> Path:
        return self.store.folder / "safety-sft" / "model"

    @property
    def chat_model(self) -> Path:
        return self.store.folder / "domain-chat" / "model"

    @property
    def aligner(self) -> Path:
        return self.store.folder / "fit" / "aligner"

    @property
    def paper_aligner(self) -> Path:
        return self.store.folder / "fit-paper" / "aligner"

    @property
    def result(self) -> Path:
        """The path of the results, without an ending."""
        return self.results_of(self.name)

    def results_of(self, experiment: str) -> Path:
        """The path of another experiment's results on this family, without an ending."""
        return self.place.results / self.config.name / f"{experiment}-{self.family_name}"


def suite_specs(counts: Counts) -> list[str]:
    """Arguments of `inferaligner evaluate --suite`: NAME, or NAME@N for N of its prompts."""
    return [name if count == "all" else f"{name}@{count}" for name, count in counts.items()]
