"""The bases of methods with an aligner's gate, which share its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from inferaligner.aligner import Aligner, Source
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.method.decision import Decision
from inferaligner.prompts.images import Prompt
from inferaligner.steering.guard import Guard


class Gated(Method):
    """A method with the gate of an aligner; what happens to open prompts is up to the subclass."""

    def __init__(self, name: str, title: str, context: MethodContext, aligner: Aligner) -> None:
        super().__init__(name, title, context)
        self._aligner = aligner
        self._digest = aligner.artifact.digest()
        aligner.check(context.target.model, context.target.reader)

    @property
    def gate(self) -> str | None:
        return self._digest

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision] | None:
        return self._aligner.score(self.context.target.model, self.context.target.reader, prompts)

    def settings(self) -> dict[str, object]:
        gate = self._aligner.artifact.gate
        return {"aligner": self._digest, "gate": gate.kind, "gate layers": list(gate.layers)}


class GatedSteering(Gated):
    """The gate and the steering of an aligner, and its monitor if it has one; `source` names the vectors."""

    def __init__(
        self, name: str, title: str, context: MethodContext, aligner: Aligner, *, source: Source = "aligned"
    ) -> None:
        super().__init__(name, title, context, aligner)
        self._source: Source = source
        self._plan = aligner.plan(source)

    @property
    def has_monitor(self) -> bool:
        return self._plan.monitor is not None

    def acting(self) -> AbstractContextManager[Guard | None]:
        return Guard(self.context.target.model, self._plan, "always")

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        return Guard(self.context.target.model, self._plan, "gate")

    def settings(self) -> dict[str, object]:
        steering = self._aligner.artifact.steering
        return {
            **super().settings(),
            "vectors": self._source,
            "steered layers": list(steering.layers),
            "strength": steering.strength,
            "strengths": list(steering.strengths.values()),
            "positions": steering.positions,
            **({"monitor": "reads answers"} if self.has_monitor else {}),
        }
