"""Methods whose gate reads the target: all share decisions and closed prompts, most the way of steering."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from inferaligner.aligner import Aligner, Source
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.method.decision import Decision
from inferaligner.prompts.images import Prompt
from inferaligner.steering.guard import Guard


class Gated(Method):
    """The gate of an aligner; what is done behind it is up to the method."""

    def __init__(self, name: str, title: str, bench: MethodContext, aligner: Aligner) -> None:
        super().__init__(name, title, bench)
        self._aligner = aligner
        self._digest = aligner.artifact.digest()
        aligner.check(bench.target.model, bench.target.reader)

    @property
    def gate(self) -> str | None:
        return self._digest

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision] | None:
        return self._aligner.score(self.bench.target.model, self.bench.target.reader, prompts)

    def settings(self) -> dict[str, object]:
        gate = self._aligner.artifact.gate
        return {"aligner": self._digest, "gate": gate.kind, "gate layers": list(gate.layers)}


class GatedSteering(Gated):
    """The gate and the steering of an aligner, and its monitor where it has one."""

    def __init__(
        self, name: str, title: str, bench: MethodContext, aligner: Aligner, *, source: Source = "aligned"
    ) -> None:
        super().__init__(name, title, bench, aligner)
        self._source: Source = source
        self._plan = aligner.plan(source)

    @property
    def watches(self) -> bool:
        return self._plan.monitor is not None

    def acting(self) -> AbstractContextManager[Guard | None]:
        return Guard(self.bench.target.model, self._plan, "always")

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        return Guard(self.bench.target.model, self._plan, "gate")

    def settings(self) -> dict[str, object]:
        steering = self._aligner.artifact.steering
        return {
            **super().settings(),
            "vectors": self._source,
            "steered layers": list(steering.layers),
            "strength": steering.strength,
            "strengths": list(steering.strengths.values()),
            "positions": steering.positions,
            **({"monitor": "reads answers"} if self.watches else {}),
        }
