"""A fixed refusal behind the same gate: what a filter in front of the model would do."""

from contextlib import AbstractContextManager

from inferaligner.evaluation.methods.gated import Gated
from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.steering.gate_policy import REFUSAL
from inferaligner.steering.guard import Guard

NAME = "canned"
NEEDS: Needs = "gate"


class CannedRefusal(Gated):
    """Opened prompts get one sentence, without generating."""

    @property
    def canned(self) -> str | None:
        return REFUSAL

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        target = self.bench.target
        # Without the monitor: it steers answers that have begun, and a filter in front does not.
        return self._aligner.apply(target.model, target.reader, on_open="refuse", monitor=False)


def make(bench: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner. One that is a gate alone will do."""
    return CannedRefusal(NAME, "canned refusal", bench, bench.need_aligner(NAME))
