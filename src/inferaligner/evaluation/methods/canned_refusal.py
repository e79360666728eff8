"""A fixed refusal behind the same gate: what a filter in front of the model would do."""

from contextlib import AbstractContextManager

from inferaligner.evaluation.methods.gated import GatedSteering
from inferaligner.evaluation.methods.method import Bench, Method
from inferaligner.steering.guard import Guard

NAME = "canned"
REFUSAL = "I'm sorry, but I can't help with that."


class CannedRefusal(GatedSteering):
    """Opened prompts get one sentence, without generating."""

    @property
    def canned(self) -> str | None:
        return REFUSAL

    def gated(self) -> AbstractContextManager[Guard | None] | None:
        return None


def make(bench: Bench, option: str) -> Method:
    """Raises `InputError` without an aligner."""
    return CannedRefusal(NAME, "canned refusal", bench, bench.need_aligner(NAME))
