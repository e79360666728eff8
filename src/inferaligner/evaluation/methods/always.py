"""Steering without a gate: every prompt is steered."""

from contextlib import AbstractContextManager

from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.steering.guard import Guard

NAME = "always"
NEEDS: Needs = "vectors"


class AlwaysOn(Method):
    """The aligner's steering on every row."""

    def acting(self) -> AbstractContextManager[Guard | None]:
        target = self.bench.target
        return self.bench.need_aligner(NAME).apply(target.model, target.reader, mode="always")

    def settings(self) -> dict[str, object]:
        return {"aligner": self.bench.need_aligner(NAME).artifact.digest()}


def make(bench: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner."""
    bench.need_aligner(NAME)
    return AlwaysOn(NAME, "always-on steering", bench)
