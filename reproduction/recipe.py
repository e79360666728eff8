"""The files in `experiments/` and `scales/` as checked models.

An experiment names data, suites, methods and its own training settings. A scale names models, training
settings and the amount of evaluation. For other models or more machines, only a scale file has to change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inferaligner.errors import InputError
from reproduction.training_settings import Training

HERE = Path(__file__).parent
EXPERIMENTS, SCALES, TEMPLATES = HERE / "experiments", HERE / "scales", HERE / "templates"
_PLACE = re.compile(r"\$\{(\w+)\}")

_Read = TypeVar("_Read", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Part):
    """The configuration of a real model, which a dry run builds.

    Attributes:
        model_type: The model type of transformers.
        settings: The settings of its configuration.
        parameters: The number of parameters.
        stand_in: Why `model_type` is not the checkpoint's own; empty if it is.
    """

    model_type: str
    settings: dict[str, Any]
    parameters: int
    stand_in: str = ""


class Family(_Part):
    """A model that is fine-tuned, and its aligned sibling.

    Attributes:
        title: Name for reports.
        target: Model spec; `${NAME}` is taken from the environment.
        aligned: Spec of the sibling; None to train one by the scale's `sibling`.
        chat: Number of general dialogues by corpus. A base model learns to answer from them before its domain
            and before a sibling is made of it; empty if the target answers already.
        chat_template: File in `templates/` for both models, if the target has no template.
        trust_remote_code: Whether to run code that is shipped with the models.
        training: Training settings that differ from the scale's.
        strength: The paper's α for the method `paper`.
        architecture: The real architecture, for a dry run.
    """

    title: str
    target: str
    aligned: str | None = None
    chat: dict[str, int | Literal["all"]] = {}
    chat_template: str | None = None
    trust_remote_code: bool = False
    training: dict[str, Any] = {}
    strength: float = 4.0
    architecture: Architecture | None = None

    @property
    def template(self) -> str | None:
        """Path of the chat template."""
        return None if self.chat_template is None else str(TEMPLATES / self.chat_template)


class SafetySft(_Part):
    """The Safety SFT baseline: training with `samples` refusals.

    With `start: base` the refusals are mixed into all training rows, and training starts from the base model.
    With `start: domain` it continues the domain model, with `replay` of the domain's rows against forgetting.
    """

    samples: int = Field(default=100, ge=1)
    start: Literal["base", "domain"] = "base"
    replay: int = Field(default=100, ge=0)
    training: dict[str, Any] = {}


class Measured(_Part):
    """Largest length of answers, and whether inference time is measured (on fewer prompts with `quick`)."""

    tokens: int = Field(default=256, ge=1)
    timing: bool = False
    quick: bool = False


class Sibling(_Part):
    """Options of `python -m reproduction.sibling`, which trains an aligned sibling."""

    options: tuple[str, ...] = ()


Takes = Literal["small", "gpu", "paper"]


class Scale(_Part):
    """Models, training settings and the amount of evaluation.

    Attributes:
        takes: The key of an experiment's counts at this scale.
        safety_suites: Suites for every domain model, with the number of prompts ("all" for every one).
        dtype: Number format in which models are fitted and evaluated.
        more_methods: Methods besides the experiment's.
        launcher: An accelerate configuration in `accelerate/`; None trains in this process.
    """

    title: str
    takes: Takes = "paper"
    families: dict[str, Family] = Field(min_length=1)
    training: Training
    sibling: Sibling = Sibling()
    safety_sft: SafetySft
    safety_suites: dict[str, int | Literal["all"]]
    safety: Measured
    utility: Measured
    benign_rows: int = Field(default=300, ge=0)
    max_false_open: float = 0.02
    dtype: str = "auto"
    fit_options: tuple[str, ...] = ()
    more_methods: tuple[str, ...] = ()
    ablation_tokens: int = Field(default=256, ge=1)
    launcher: str | None = None
    seed: int = 0


class PerScale(_Part):
    """Names with a number of rows or prompts (or "all") at each scale."""

    small: dict[str, int | Literal["all"]]
    gpu: dict[str, int | Literal["all"]]
    paper: dict[str, int | Literal["all"]]


class MoreTraining(_Part):
    """Training settings of a domain that differ from the scale's, at each scale."""

    small: dict[str, Any] = {}
    gpu: dict[str, Any] = {}
    paper: dict[str, Any] = {}


class Domain(_Part):
    """Training, fitting and evaluating a domain model: one column of the paper's Table 1."""

    kind: Literal["domain"]
    title: str
    rows: PerScale
    training: MoreTraining = MoreTraining()
    utility: PerScale
    methods: tuple[str, ...]
    reported: dict[str, dict[str, float]] = {}


class Ablation(_Part):
    """Source of the vectors × strength on a domain model: the paper's Figure 4."""

    kind: Literal["ablation"]
    title: str
    of: str
    suites: PerScale
    factors: str


class Confound(_Part):
    """A gate from the paper's extraction pair and one from matched prompts, on the same prompts."""

    kind: Literal["confound"]
    title: str
    of: str
    suites: PerScale


class Summary(_Part):
    """The results of several domain experiments in one table or figure; runs nothing itself."""

    kind: Literal["summary"]
    title: str
    of: tuple[str, ...]
    families: Literal["first", "all"]
    shows: Literal["table", "families", "time"]


Experiment = Domain | Ablation | Confound | Summary


@dataclass(frozen=True)
class ScaleConfig:
    """A scale with all experiments."""

    name: str
    scale: Scale
    experiments: Mapping[str, Experiment]

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name; raises `InputError` if there is none."""
        if name not in self.experiments:
            raise InputError(
                f"There is no experiment {name!r}. Expected one of: {', '.join(sorted(self.experiments))}."
            )
        return self.experiments[name]

    def domain(self, name: str) -> Domain:
        """The domain experiment that another one builds on."""
        experiment = self.experiment(name)
        if not isinstance(experiment, Domain):
            raise InputError(f"The experiment {name} trains no model; `of` must name a domain experiment.")
        return experiment


def read_scale_config(scale: str) -> ScaleConfig:
    """Reads a scale and all experiments.

    Args:
        scale: Name of a scale, or path of another scale file.

    Raises:
        InputError: A file does not exist or has unknown or invalid settings.
    """
    return ScaleConfig(
        Path(scale).stem, read_scale(scale), {n: read_experiment(n) for n in experiment_names()}
    )


_KINDS: dict[str, type[BaseModel]] = {
    "domain": Domain,
    "ablation": Ablation,
    "confound": Confound,
    "summary": Summary,
}


def experiment_names() -> list[str]:
    """The names of all experiments."""
    return sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Reads an experiment; raises `InputError` if it does not exist or its file is invalid."""
    content = _content(EXPERIMENTS, name, "experiment")
    kind = _KINDS.get(str(content.get("kind")))
    if kind is None:
        raise InputError(f"{name}.yaml: kind is {content.get('kind')!r}; expected {', '.join(_KINDS)}.")
    found: Experiment = _checked(kind, content, f"{name}.yaml")  # type: ignore[assignment]
    return found


def read_scale(name: str | Path) -> Scale:
    """Reads a scale by its name, or from another file.

    Raises:
        InputError: The scale does not exist, or its file is invalid.
    """
    place = Path(name)
    if place.suffix in (".yaml", ".yml"):
        return _checked(Scale, _content(place.parent, place.stem, "scale", place.suffix), str(place))
    return _checked(Scale, _content(SCALES, str(name), "scale"), f"{name}.yaml")


def from_environment(spec: str) -> str:
    """The spec with every `${NAME}` replaced by the environment variable.

    Raises:
        InputError: The environment lacks the variable.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise InputError(
                f"The model {spec} needs the environment variable {match[1]}, which is not set. Set it to "
                "the model's folder, file or hub id (docs/reproduction.md names its source)."
            )
        return found

    return _PLACE.sub(value, spec)


def _content(folder: Path, name: str, what: str, suffix: str = ".yaml") -> dict[str, Any]:
    file = folder / f"{name}{suffix}"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in folder.glob("*.yaml"))) or "none"
        raise InputError(f"There is no {what} {name!r}. Expected one of: {known}.")
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} has no settings; expected names with values.")
    return found


def _checked(kind: type[_Read], content: dict[str, Any], place: str) -> _Read:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'file'}: {entry['msg']}" for entry in error.errors()
        )
        raise InputError(f"{place}: {problems}") from None
