"""The options about an open gate that several commands share, and the policy that they make up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from inferaligner.cli.option_groups import flag
from inferaligner.cli.terminal import check_text
from inferaligner.steering.gate_choices import FLAGS, REFUSAL, AllowedPrompts, OnOpen

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact
    from inferaligner.steering.gate_policy import GatePolicy


@dataclass(frozen=True)
class OpenGateOptions:
    """What happens to prompts and answers that open the gate."""

    panel: ClassVar = "What the gate does"

    on_open: OnOpen = flag(
        "steer",
        help="Steer prompts that open the gate, or answer them with --refusal. An aligner without "
        "steering vectors can only refuse.",
    )
    refusal: str | None = flag(
        None, metavar="TEXT", help=f"The answer of --on-open refuse (by default: {REFUSAL})."
    )
    monitor: bool = flag(True, help="Read answers while they are generated, if the aligner has a monitor.")

    def policy(
        self, artifact: AlignerArtifact, *, shadow: bool = False, prompts: AllowedPrompts = "chat"
    ) -> GatePolicy:
        """The policy that a command's options describe, checked against the aligner.

        Raises:
            InputError, SteeringError: as `GatePolicy.check`, in words of flags.
        """
        if self.refusal is not None:
            check_text(self.refusal, FLAGS.refusal)
        from inferaligner.steering.gate_policy import GatePolicy

        policy = GatePolicy(
            shadow=shadow, on_open=self.on_open, refusal=self.refusal, monitor=self.monitor, prompts=prompts
        )
        policy.check(artifact, FLAGS)
        return policy


@dataclass(frozen=True)
class ServedGateOptions(OpenGateOptions):
    """What the gate does on a server."""

    shadow: bool = flag(False, "--shadow", help="Decide and report, never steer.")
    prompts: AllowedPrompts = flag(
        "chat",
        help="chat: accept chats, and begun answers if the aligner has a gate for them. any: accept raw "
        "text too.",
    )
    allow_override: bool = flag(
        False,
        "--allow-override",
        help="Let requests set the strength, down to the bare model. For trials, never for the public.",
    )
    audit_log: Path | None = flag(
        None, metavar="FILE", help="One JSON line per decision; prompts are hashed."
    )
    audit_text: bool = flag(False, "--audit-text", help="Put the prompts into the log too.")
