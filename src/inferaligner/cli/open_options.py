"""The options about an open gate that several commands share, and the policy that they make up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inferaligner.cli.terminal import check_text
from inferaligner.steering import gate_policy
from inferaligner.steering.gate_policy import FLAGS, REFUSAL, AllowedPrompts, GatePolicy

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact

PANEL = "What the gate does"

OnOpen = Annotated[
    gate_policy.OnOpen,
    typer.Option(
        help="Steer prompts that open the gate, or answer them with --refusal. An aligner without steering "
        "vectors can only refuse.",
        rich_help_panel=PANEL,
    ),
]
Refusal = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=f"The answer of --on-open refuse (by default: {REFUSAL}).",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Monitor = Annotated[
    bool,
    typer.Option(
        help="Read answers while they are generated, if the aligner has a monitor.", rich_help_panel=PANEL
    ),
]


def policy_of(
    artifact: AlignerArtifact,
    *,
    on_open: gate_policy.OnOpen,
    refusal: str | None,
    monitor: bool,
    shadow: bool = False,
    prompts: AllowedPrompts = "chat",
) -> GatePolicy:
    """The policy that a command's options describe, checked against the aligner.

    Raises:
        InputError, SteeringError: as `GatePolicy.check`, in words of flags.
    """
    if refusal is not None:
        check_text(refusal, FLAGS.refusal)
    policy = GatePolicy(shadow=shadow, on_open=on_open, refusal=refusal, monitor=monitor, prompts=prompts)
    policy.check(artifact, FLAGS)
    return policy
