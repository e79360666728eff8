"""The aligner's steering on every prompt, without a gate."""

from contextlib import AbstractContextManager

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.steering.guard import Guard

NAME = "always"
NEEDS = "vectors"


class AlwaysOn(Method):
    """The aligner's steering on every row."""

    def acting(self) -> AbstractContextManager[Guard | None]:
        target = self.context.target
        return self.context.need_aligner(NAME).apply(target.model, target.reader, mode="always")

    def settings(self) -> dict[str, object]:
        return {"aligner": self.context.need_aligner(NAME).artifact.digest()}


def make(context: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner."""
    context.need_aligner(NAME)
    return AlwaysOn(NAME, "always-on steering", context)
