"""The hook of the answer monitor, and the ways of decoding that the monitor cannot follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from inferaligner.errors import SteeringError
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import residual
from inferaligner.steering.guard_state import GuardState
from inferaligner.steering.prompt_spans import generate_setting


class MonitorHook:
    """Scores the generated tokens of a pass after the monitor's layer, and opens rows."""

    def __init__(self, state: GuardState, monitor: AnswerMonitor, device: torch.device) -> None:
        self._state = state
        self._weights = monitor.weights.to(device, copy=True)
        self._centre = monitor.centre
        self.ran = False  # reset before every pass, checked after those that it must read

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        scope, now = self._state.scope, self._state.now
        if scope is None or now is None or scope.watch is None:
            return  # the other hooks raise an error for layers that run outside a call of the model
        self.ran = True
        watch = scope.watch
        stream = residual(output)
        watch.device = stream.device
        if not now.reads_answer:
            return
        weights = self._weights
        if weights.device != stream.device:
            weights = weights.to(stream.device)
            if not torch.compiler.is_compiling():  # see hooks.py on what compiled code makes
                self._weights = weights
        watch.traced = torch.compiler.is_compiling()
        if now.steers == "monitored":
            watch.step((stream[:, -1].float() * weights).sum(-1) + self._centre)
            return
        scores = (stream.float() * weights).sum(-1) + self._centre
        watch.sweep(scores, *scope.answer_numbers(now, stream))


def refuse_unfollowed(arguments: Mapping[str, Any], defaults: Any) -> None:
    """Raises `SteeringError` for `generate(...)` calls in which the monitor would miss tokens or mix up rows.

    Args:
        arguments: the call's arguments by name.
        defaults: the model's generation configuration.
    """

    def setting(name: str) -> Any:
        return generate_setting(arguments, defaults, name)

    if (setting("num_beams") or 1) > 1:
        raise SteeringError(
            "Beam search exchanges the rows of a batch after every token, which the answer monitor does not "
            "follow. Use num_beams=1, or switch the monitor off: aligner.apply(model, monitor=False)."
        )
    drafts = ("assistant_model", "prompt_lookup_num_tokens", "use_mtp", "assistant_early_exit")
    assisted = next((name for name in drafts if arguments.get(name) or setting(name)), None)
    if assisted is not None:
        raise SteeringError(
            f"Assisted decoding ({assisted}) runs drafted tokens through the model and takes some of them "
            "back, which the answer monitor does not follow. Decode without an assistant, or switch the "
            "monitor off: aligner.apply(model, monitor=False)."
        )


def refuse_several_tokens(length: int) -> None:
    """Raises `SteeringError` unless a decoding step has one token a row; for users' own decoding loops."""
    if length != 1:
        raise SteeringError(
            f"A decoding step brought {length} tokens a row; the answer monitor follows one at a time. "
            "Decode token by token, or switch the monitor off: aligner.apply(model, monitor=False)."
        )
