"""The operator's choices about an open gate, with the checks of what goes together.

`Aligner.apply`, the command line, the embedded server and the vLLM engine all build a `GatePolicy` and call
its `check`; an engine's settings are a policy with more fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from inferaligner.errors import InputError, SteeringError
from inferaligner.steering.gate_choices import ARGUMENTS, REFUSAL, AllowedPrompts, OnOpen, Spelling

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact


class GatePolicy(BaseModel):
    """What becomes of prompts that open the gate; the same on every engine.

    Attributes:
        shadow: decide and report, never steer or refuse.
        on_open: steer an open prompt, or answer it with a text.
        refusal: that text; None is `REFUSAL`.
        monitor: read answers while they are generated, if the aligner has a monitor.
        prompts: which prompts a server accepts. `Aligner.apply` has `on_unknown_end` for this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shadow: bool = False
    on_open: OnOpen = "steer"
    refusal: str | None = None
    monitor: bool = True
    prompts: AllowedPrompts = "chat"

    @classmethod
    def from_choices(cls, **choices: Any) -> Self:
        """The policy with these fields. Raises `InputError` for a field or a value that does not exist."""
        try:
            return cls(**choices)
        except ValidationError as error:
            wrong = [
                f"{'.'.join(map(str, each['loc']))}={each['input']!r}: {each['msg']}"
                for each in error.errors()
            ]
            raise InputError(f"These choices cannot be used: {'; '.join(wrong)}.") from None

    @property
    def refusal_text(self) -> str | None:
        """The text that open prompts get; None where they are steered."""
        if self.on_open == "steer":
            return None
        return REFUSAL if self.refusal is None else self.refusal.strip()

    def check(self, artifact: AlignerArtifact, spelling: Spelling = ARGUMENTS) -> None:
        """Checks that the choices go together, and that the aligner can do what they say.

        Args:
            artifact: the aligner.
            spelling: how errors name the choices.

        Raises:
            InputError: a refusal without `on_open="refuse"`, or an empty one; or a monitor with it.
            SteeringError: the aligner has no vectors and is to steer.
        """
        if self.on_open == "steer":
            if self.refusal is not None:
                raise InputError(
                    f"{spelling.refusal} was given without {spelling.refuse}. Give both, or neither."
                )
            if artifact.gate_only and not self.shadow:
                raise SteeringError(
                    "This aligner is a gate alone, fitted without an aligned model: it has no vectors to "
                    f"steer with. Answer open prompts with a text: {spelling.refuse}."
                )
            return
        if self.monitor and artifact.monitor is not None:
            raise InputError(
                f"This aligner has a monitor, which steers answers that have begun; with {spelling.refuse} "
                f"nothing is steered. Give {spelling.no_monitor} to leave answers unread, or steer."
            )
        if not self.refusal_text:
            raise InputError(
                f"{spelling.refusal} is empty; expected the text that open prompts are answered with."
            )
