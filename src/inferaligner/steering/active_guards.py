"""Several guards on one model: each is noted on the model itself, and the note goes with the last of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferaligner.errors import SteeringError

if TYPE_CHECKING:
    from inferaligner.steering.guard import Guard

_NOTE = "_inferaligner_guards"


def join(model: Any, guard: Guard) -> None:
    """Notes an active guard; raises `SteeringError` where two would mislead each other."""
    if not guard.plan.one_pass or not all(other.plan.one_pass for other in _others(model, guard)):
        refuse_company(model, guard)
    model.__dict__.setdefault(_NOTE, []).append(guard)


def leave(model: Any, guard: Guard) -> None:
    """The opposite of `join`; nothing happens if the guard never joined."""
    others = _others(model, guard)
    model.__dict__.pop(_NOTE, None)
    if others:
        model.__dict__[_NOTE] = others


def refuse_company(model: Any, guard: Guard) -> None:
    """Raises `SteeringError` if another guard is active: it would take a replay for new prompts."""
    if _others(model, guard):
        raise SteeringError(
            "Two aligners are applied to one model, and one of them has to run prompts a second time, "
            "which the other would take for new ones. Use plans with every steered layer above the gate "
            "and positions='from_gate', or apply one at a time."
        )


def _others(model: Any, guard: Guard) -> list[Guard]:
    return [other for other in model.__dict__.get(_NOTE, []) if other is not guard]
