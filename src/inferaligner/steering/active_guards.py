"""The guards that are active on one model, kept on the model as `inferaligner.models.row_keepers`."""

from __future__ import annotations

from typing import Any, Protocol

from inferaligner.errors import SteeringError
from inferaligner.models.row_keepers import RowKeeper, add_keeper, keepers_on, remove_keeper
from inferaligner.steering.plan import SteeringPlan


class ActiveGuard(RowKeeper, Protocol):
    """A guard, as far as other guards on the model are concerned."""

    plan: SteeringPlan


def register(model: Any, guard: ActiveGuard) -> None:
    """Notes on the model that `guard` is active.

    Raises:
        SteeringError: another guard is active, and one of the two needs a second prefill.
    """
    if not guard.plan.one_pass or not all(other.plan.one_pass for other in _others(model, guard)):
        refuse_other_guards(model, guard)
    add_keeper(model, guard)


def unregister(model: Any, guard: ActiveGuard) -> None:
    """Removes the note; nothing happens for a guard that was never registered."""
    remove_keeper(model, guard)


def refuse_other_guards(model: Any, guard: ActiveGuard) -> None:
    """Raises `SteeringError` if another guard is active: it would take a second prefill for new prompts."""
    if _others(model, guard):
        raise SteeringError(
            "Two aligners are applied to one model, and one of them has to run prompts a second time, "
            "which the other would take for new ones. Use plans with every steered layer above the gate "
            "and positions='from_gate', or apply one at a time."
        )


def _others(model: Any, guard: ActiveGuard) -> list[ActiveGuard]:
    return [other for other in keepers_on(model) if other is not guard]
