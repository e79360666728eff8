"""The options about an open gate that several commands share, and the policy that they make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from inferaligner.cli.terminal import check_text
from inferaligner.steering.gate_policy import FLAGS, REFUSAL, AllowedPrompts, GatePolicy, OnOpen

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact

PANEL = "What the gate does"


@dataclass(frozen=True)
class OpenGateOptions:
    """What happens to prompts and answers that open the gate."""

    panel: ClassVar = PANEL

    on_open: Annotated[
        OnOpen,
        typer.Option(
            help="Steer prompts that open the gate, or answer them with --refusal. An aligner without "
            "steering vectors can only refuse."
        ),
    ] = "steer"
    refusal: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"The answer of --on-open refuse (by default: {REFUSAL})."),
    ] = None
    monitor: Annotated[
        bool,
        typer.Option(help="Read answers while they are generated, if the aligner has a monitor."),
    ] = True

    def policy(
        self, artifact: AlignerArtifact, *, shadow: bool = False, prompts: AllowedPrompts = "chat"
    ) -> GatePolicy:
        """The policy that a command's options describe, checked against the aligner.

        Raises:
            InputError, SteeringError: as `GatePolicy.check`, in words of flags.
        """
        if self.refusal is not None:
            check_text(self.refusal, FLAGS.refusal)
        policy = GatePolicy(
            shadow=shadow, on_open=self.on_open, refusal=self.refusal, monitor=self.monitor, prompts=prompts
        )
        policy.check(artifact, FLAGS)
        return policy
