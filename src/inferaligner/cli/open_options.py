"""`--on-open` and `--refusal`: what a prompt gets that opens the gate."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.terminal import check_text
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact

_PANEL = "Where the gate is open"


class WhenOpen(str, Enum):
    """Steer the model, or answer with a text."""

    steer = "steer"
    refuse = "refuse"


OnOpen = Annotated[
    WhenOpen,
    typer.Option(
        help="Steer the model, or answer with --refusal and generate nothing. An aligner without "
        "vectors can only refuse.",
        rich_help_panel=_PANEL,
    ),
]
Refusal = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The answer of --on-open refuse (by default: I'm sorry, but I can't help with that.).",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]


def check_open(
    artifact: AlignerArtifact, on_open: WhenOpen, refusal: str | None, *, monitor: bool
) -> str | None:
    """The text for open prompts, or None where they are steered. `monitor`: whether answers are to be read.

    Raises `InputError` for options that do not go together, or with this aligner.
    """
    if on_open is WhenOpen.steer:
        if refusal is not None:
            raise InputError("--refusal was given without --on-open refuse. Give both, or neither.")
        if artifact.gate_only:
            raise InputError(
                "This aligner is a gate alone, fitted without an aligned model: it has nothing to steer "
                "with. Give --on-open refuse."
            )
        return None
    if monitor and artifact.monitor is not None:
        raise InputError(
            "This aligner has a monitor, which steers answers that have begun; with --on-open refuse nothing "
            "is steered. Give --no-monitor to leave answers unread, or leave --on-open out."
        )
    from inferaligner.steering.refusal import REFUSAL

    text = (REFUSAL if refusal is None else refusal).strip()
    if not text:
        raise InputError("--refusal is empty; expected the text that open prompts are answered with.")
    check_text(text, "--refusal")
    return text


def opening(refusal: str | None) -> dict[str, Any]:
    """The arguments of `Aligner.apply` for it."""
    return {} if refusal is None else {"on_open": "refuse", "refusal": refusal}
