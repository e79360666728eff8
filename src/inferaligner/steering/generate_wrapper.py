"""A wrapper around `model.generate` that shows a guard where a call begins and ends."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Around = Callable[[dict[str, Any]], AbstractContextManager[dict[str, Any] | None]]
"""From a call's arguments to a context around the call, which may yield arguments that replace them."""


class GenerateAnnouncer:
    """A function in the place of `model.generate` that opens `around(arguments)` for each call.

    `lift` removes it. Announcers may be lifted in any order: an announcer below others stays, passes calls
    on, and is removed together with the last one above it.
    """

    def __init__(self, model: Any, around: Around) -> None:
        self.active = True
        self._model = model
        self._below = model.__dict__.get("generate")
        original = model.generate
        signature = inspect.signature(original)
        rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if not self.active:
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            named = {name: value for name, value in bound.items() if name != rest}
            arguments = {**named, **bound.get(rest, {})}
            with around(arguments) as instead:
                return original(*args, **kwargs) if not instead else original(**{**arguments, **instead})

        generate.announcer = self  # type: ignore[attr-defined]
        self.generate = generate
        model.generate = generate

    def lift(self) -> None:
        """Removes the wrapper; the model's own `generate` returns with the last one."""
        self.active = False
        top = self._model.__dict__.get("generate")
        while (one := _announcer_of(top)) is not None and not one.active:
            top = one._below
        if top is not None:
            self._model.generate = top
        elif "generate" in self._model.__dict__:
            del self._model.generate


def _announcer_of(function: Any) -> GenerateAnnouncer | None:
    # `functools.wraps` copies attributes: a wrapper of other code around ours has it too, and must stay.
    one = getattr(function, "announcer", None)
    return one if isinstance(one, GenerateAnnouncer) and one.generate is function else None
