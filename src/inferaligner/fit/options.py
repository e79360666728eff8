"""The choices of a fit: each is declared here once, with its type, its default and its description.

- `FitOptions` is the declaration. A field's `help` names other arguments in backticks.
- `FitChoices` has the same names and types as keywords, so that editors and type checkers know the arguments
  of `Aligner.fit(**choices)`. A test compares the two.
- The command line makes a flag of every field (`cli/fit_flags.py`), and prints `help` with flags in place of
  argument names.

To add a choice, add it to both classes, and to the table of flags.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar

from inferaligner.errors import InputError
from inferaligner.method.positions import Positions

OWN_LIMIT = 0.02
"""Largest share of the user's own benign traffic that may open the gate, unless the user sets another."""

SHIPPED_LIMIT = 0.065
"""The same for the contrast set's ordinary prompts. They are picked to be harder than traffic: at 6.5 % of
them, 2 % or less of each kind of public benign prompts open. Chosen on the public sets of the README."""

CONFIDENCE = 0.95
"""Confidence level of a bound on benign traffic, unless the user sets another."""

MONITOR_TOKENS = 64
"""Tokens of each answer that the monitor is fitted and calibrated on, unless the user sets another number."""

Pictures = Literal["none", "some"]
"""`none`: text alone. `some`: a part of the labelled prompts in pictures too, both sides of a pair alike."""

Carry = Literal["answers", "map", "vectors"]
"""How an aligned model guides the target: by vectors learned from its answers, by a linear map of its
vectors, or, as in the paper, by its vectors as they are, which takes a sibling of the target's own width and
depth."""

MapKind = Literal["ridge", "procrustes"]
LayerMatch = Literal["best", "depth"]


F = TypeVar("F", bound=Callable[..., Any])


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True)
class FitOptions:
    """The choices of one fit. A choice that is None is made from data.

    Raises:
        InputError: a value that is out of range.
    """

    pictures: Pictures = field(
        default="none",
        metadata=_help(
            "For a target that reads images: show it some of the labelled prompts in pictures too."
        ),
    )
    system: str | None = field(
        default=None, metadata=_help("The system prompt that the model is served with.")
    )
    max_false_open: float | None = field(
        default=None,
        metadata=_help(
            f"The largest share of harmless prompts that may open the gate: of each kind in `benign` (by "
            f"default {OWN_LIMIT:g}); without `benign`, of the shipped ordinary prompts, which are harder "
            f"than traffic (by default {SHIPPED_LIMIT:g})."
        ),
    )
    confidence: float = field(
        default=CONFIDENCE,
        metadata=_help("Confidence level of the bound `max_false_open`, for each kind of `benign` traffic."),
    )
    gate_layer: int | None = field(default=None, metadata=_help("Let the gate read this layer only."))
    steer_layers: Sequence[int] | None = field(
        default=None, metadata=_help("Steer these layers: 12-18 or 12,13,20; counted from 0.")
    )
    strength: float | None = field(
        default=None,
        metadata=_help(
            "The intervention strength: a factor on the extracted vectors (with `paper`, on unit vectors)."
        ),
    )
    positions: Positions | None = field(
        default=None,
        metadata=_help("from_gate: steer from the prompt's last token on. all: steer the whole prompt too."),
    )
    monitor: bool = field(
        default=False,
        metadata=_help(
            "Fit a monitor too: it reads answers while they are generated, and steers from the token on at "
            "which an answer turns harmful."
        ),
    )
    monitor_tokens: int = field(
        default=MONITOR_TOKENS,
        metadata=_help(
            "Goes with `monitor`: it is fitted and calibrated on the first N tokens of answers (by default "
            f"{MONITOR_TOKENS})."
        ),
    )
    paper: bool = field(default=False, metadata=_help("Use the paper's own choice wherever none is given."))
    carry: Carry | None = field(
        default=None,
        metadata=_help(
            "How the aligned model guides: by vectors learned from its whole answers (answers), by its own "
            "vectors through a linear map (map), or by its own vectors as they are, as in the paper "
            "(vectors; siblings only). Default: for a sibling the better of vectors and answers, for another "
            "model answers."
        ),
    )
    map_kind: MapKind | None = field(
        default=None,
        metadata=_help(
            "The linear map of the vectors (by default the one that predicts activations of held-out prompts "
            "better)."
        ),
    )
    match_layers: LayerMatch = field(
        default="best",
        metadata=_help(
            "The aligned model's layer for each layer of the target: the one that predicts it best "
            "(default), or the one at the same depth."
        ),
    )
    accept_poor_map: bool = field(
        default=False,
        metadata=_help(
            "Go on even if the map explains too little, or if vectors learned from answers make held-out "
            "answers no likelier."
        ),
    )

    def __post_init__(self) -> None:
        if self.max_false_open is not None:
            check_share("max_false_open", self.max_false_open)
        check_share("confidence", self.confidence)
        if self.strength is not None and not (self.strength > 0 and math.isfinite(self.strength)):
            raise InputError(f"`strength` is {self.strength}; expected a positive number, such as 0.2.")
        if self.monitor_tokens < 1:
            raise InputError(f"`monitor_tokens` is {self.monitor_tokens}; expected a positive number.")
        if self.steer_layers is not None:
            if not self.steer_layers:
                raise InputError(
                    "`steer_layers` is empty; give the layers to steer, or None to choose them from data."
                )
            object.__setattr__(self, "steer_layers", tuple(sorted(set(self.steer_layers))))

    @property
    def fixes_steering(self) -> bool:
        """Whether the user fixed anything of layers, strength and positions."""
        return (self.steer_layers, self.strength, self.positions) != (None, None, None)

    def changed(self) -> tuple[str, ...]:
        """Names of the choices that are not at their default."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) != each.default)

    def limits(self, own_traffic: bool) -> tuple[float, float]:
        """The largest share that may open: of the user's own traffic, and of the labelled ordinary prompts.

        Args:
            own_traffic: whether the user gave benign prompts. Then `max_false_open` is a limit for those.
        """
        own = OWN_LIMIT if self.max_false_open is None else self.max_false_open
        if own_traffic or self.max_false_open is None:
            return own, max(own, SHIPPED_LIMIT)
        return own, own


class FitChoices(TypedDict, total=False):
    """The fields of `FitOptions` as keyword arguments."""

    pictures: Pictures
    system: str | None
    max_false_open: float | None
    confidence: float
    gate_layer: int | None
    steer_layers: Sequence[int] | None
    strength: float | None
    positions: Positions | None
    monitor: bool
    monitor_tokens: int
    paper: bool
    carry: Carry | None
    map_kind: MapKind | None
    match_layers: LayerMatch
    accept_poor_map: bool


def documents_choices(function: F) -> F:
    """Replaces `{choices}` in the function's docstring with a list of the fields of `FitOptions`."""
    if function.__doc__ is not None:  # python -OO
        lines = [f"{each.name}: {each.metadata['help']}" for each in fields(FitOptions)]
        text = "the fields of `FitOptions`, of which None is made from data:\n" + "\n".join(
            textwrap.indent(textwrap.fill(line, 90, subsequent_indent="    "), " " * 16) for line in lines
        )
        function.__doc__ = function.__doc__.replace("{choices}", text)
    return function


_NEEDS_ALIGNED = (
    "steer_layers",
    "strength",
    "positions",
    "carry",
    "map_kind",
    "match_layers",
    "accept_poor_map",
    "aligned_chat_template",  # of the command line alone
    "monitor",
)


def check_given(given: Collection[str], *, aligned: bool) -> None:
    """Checks that no choice was given that would have no effect.

    Args:
        given: names of the choices that the user gave.
        aligned: whether there is an aligned model.

    Raises:
        InputError: a choice of steering without an aligned model, or `monitor_tokens` without `monitor`.
    """
    for name in _NEEDS_ALIGNED:
        if name in given and not aligned:
            raise InputError(
                f"`{name}` was given without `aligned`, and a gate alone steers nothing. Give an aligned "
                f"model with `aligned`, or leave `{name}` out."
            )
    if "monitor_tokens" in given and "monitor" not in given:
        raise InputError("`monitor_tokens` was given without `monitor`. Give both, or neither.")


def check_share(name: str, value: float) -> None:
    """Raises `InputError` unless the value of the argument `name` lies between 0 and 1."""
    if not 0 < value < 1:
        example = CONFIDENCE if name == "confidence" else 0.01
        raise InputError(f"`{name}` is {value}; expected a share between 0 and 1, such as {example}.")
