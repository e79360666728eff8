"""What the files in `experiments/` and `scales/` say, checked as they are read.

An experiment names data, suites and methods, and what of its training is its own. A scale names models,
training settings and how much is measured. Whoever has other models or more machines changes one scale file.
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
    """What a dry run builds: the configuration of the real model, in the terms of transformers.

    `stand_in` says why `model_type` is another than the checkpoint's own, where it is.
    """

    model_type: str
    settings: dict[str, Any]
    parameters: int
    stand_in: str = ""


class Family(_Part):
    """A model that is fine-tuned, and its aligned sibling.

    Attributes:
        target: spec; `${NAME}` is taken from the environment.
        aligned: spec of the sibling; None: train one, as the scale's `sibling` says.
        chat: general dialogues, by corpus, that a true base model learns to answer from before its
            domain, and before a sibling is made of it; empty where the target answers by itself.
        chat_template: file in `templates/`, for both, where the target has none.
        training: what is other for this family than for the scale.
        strength: the paper's α for the method `paper`.
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
    """The baseline: `samples` refusals. From `base`: mixed into all training rows, a training of its own.
    From `domain`: on top of the domain model, with `replay` of its rows so that it forgets little."""

    samples: int = Field(default=100, ge=1)
    start: Literal["base", "domain"] = "base"
    replay: int = Field(default=100, ge=0)
    training: dict[str, Any] = {}


class Measured(_Part):
    """How long answers may be, and whether inference time is measured; `quick` does that on fewer prompts."""

    tokens: int = Field(default=256, ge=1)
    timing: bool = False
    quick: bool = False


class Sibling(_Part):
    """How an aligned sibling is trained: by `aligned_sibling.py`, or by `quick_sibling.py` on a draw."""

    quick: bool = False
    options: tuple[str, ...] = ()


Takes = Literal["small", "gpu", "paper"]


class Scale(_Part):
    """Models, and what they are put through.

    Attributes:
        takes: which of its counts an experiment takes.
        safety_suites: asked of every domain model, with the number of prompts ("all" for every one).
        dtype: in which models are fitted and evaluated, whatever they were trained in.
        more_methods: compared besides those of the experiment.
        launcher: an accelerate configuration in `accelerate/`; None trains in this process.
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
    ablation_tokens: int = Field(default=32, ge=1)
    launcher: str | None = None
    seed: int = 0


class PerScale(_Part):
    """What an experiment takes at each scale: names with a number of rows, or "all"."""

    small: dict[str, int | Literal["all"]]
    gpu: dict[str, int | Literal["all"]]
    paper: dict[str, int | Literal["all"]]


class MoreTraining(_Part):
    """Settings of training that a domain needs other than its scale's."""

    small: dict[str, Any] = {}
    gpu: dict[str, Any] = {}
    paper: dict[str, Any] = {}


class Domain(_Part):
    """A domain model trained, fitted, evaluated: one column of the paper's Table 1."""

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
    """A gate fitted on the paper's pair against one fitted on matched prompts, on the same traffic."""

    kind: Literal["confound"]
    title: str
    of: str
    suites: PerScale


class Summary(_Part):
    """Nothing of its own: what several domain experiments found, in one table or figure."""

    kind: Literal["summary"]
    title: str
    of: tuple[str, ...]
    families: Literal["first", "all"]
    shows: Literal["table", "families", "time"]


Experiment = Domain | Ablation | Confound | Summary


@dataclass(frozen=True)
class ScaleConfig:
    """A scale with every experiment at it."""

    name: str
    scale: Scale
    experiments: Mapping[str, Experiment]

    def experiment(self, name: str) -> Experiment:
        """Raises `InputError` for a name that no experiment has."""
        if name not in self.experiments:
            raise InputError(
                f"There is no experiment {name!r}. Expected one of: {', '.join(sorted(self.experiments))}."
            )
        return self.experiments[name]

    def domain(self, name: str) -> Domain:
        """The domain experiment that another one builds on."""
        found = self.experiment(name)
        if not isinstance(found, Domain):
            raise InputError(f"The experiment {name} trains no model; `of` must name one of a domain.")
        return found


def read_book(scale: str) -> ScaleConfig:
    """`scale` is a name, or a file of one's own.

    Raises:
        InputError: a file that says something unexpected.
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
    """Every experiment there is."""
    return sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Raises `InputError`: no such experiment, or a file that says something unexpected."""
    content = _content(EXPERIMENTS, name, "experiment")
    kind = _KINDS.get(str(content.get("kind")))
    if kind is None:
        raise InputError(f"{name}.yaml: kind is {content.get('kind')!r}; expected {', '.join(_KINDS)}.")
    found: Experiment = _checked(kind, content, f"{name}.yaml")  # type: ignore[assignment]
    return found


def read_scale(name: str | Path) -> Scale:
    """A scale by its name, or from a file of one's own.

    Raises:
        InputError: no such scale, or a file that says something unexpected.
    """
    place = Path(name)
    if place.suffix in (".yaml", ".yml"):
        return _checked(Scale, _content(place.parent, place.stem, "scale", place.suffix), str(place))
    return _checked(Scale, _content(SCALES, str(name), "scale"), f"{name}.yaml")


def from_environment(spec: str) -> str:
    """The spec with every `${NAME}` filled in.

    Raises:
        InputError: a name that the environment does not have.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise InputError(
                f"The model {spec} is where the environment variable {match[1]} says, and it is not set. Set "
                f"it to the model's place (docs/reproduction.md tells where to get it)."
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
        raise InputError(f"{file} holds no settings; expected names with values.")
    return found


def _checked(kind: type[_Read], content: dict[str, Any], place: str) -> _Read:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, entry['loc'])) or 'file'}: {entry['msg']}" for entry in error.errors()
        )
        raise InputError(f"{place}: {told}") from None
