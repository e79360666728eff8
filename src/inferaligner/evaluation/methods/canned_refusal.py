"""A fixed refusal behind the aligner's gate, as a filter in front of the model would give it."""

from contextlib import AbstractContextManager

from inferaligner.evaluation.methods.gated import Gated
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.steering.gate_choices import REFUSAL
from inferaligner.steering.guard import Guard

NAME = "canned"
NEEDS = "gate"


class CannedRefusalMethod(Gated):
    """Open prompts get one sentence; nothing is generated."""

    @property
    def canned(self) -> str | None:
        return REFUSAL

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        target = self.context.target
        # Without the monitor, because a filter in front of the model cannot steer an answer that has begun.
        return self._aligner.apply(target.model, target.reader, on_open="refuse", monitor=False)


def make(context: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner; an aligner that is a gate alone is enough."""
    return CannedRefusalMethod(NAME, "canned refusal", context, context.need_aligner(NAME))
