"""`with aligner.apply(model) as guard:` - hooks on the model while the context is open.

Who calls what, for one batch of prompts:
1. `model.generate(...)` is the user's own call. The guard notes where the prompts end and opens a scope.
   A plain `model(...)` call opens one by itself when it brings a new prompt.
2. Before every forward pass, `_before` describes the pass; gate hooks read, the last one latches the rows;
   steer hooks act on open rows.
3. After the pass, `_after` checks that the hooks really ran, tells the host the decision (one wait per
   prompt batch, none per token), and replays the prefill of opened rows where one pass was too early.

State belongs to the guard: two guards, on one model or on two, share nothing.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from inferaligner.errors import MismatchError, SteeringError
from inferaligner.gate import Decision
from inferaligner.models.anatomy import dissect, unwrap
from inferaligner.steering.hooks import GateHook, SteerHook
from inferaligner.steering.plan import Mode, SteeringPlan
from inferaligner.steering.prompt_ends import (
    cached_tokens,
    ends_from_lengths,
    ends_of_forward,
    ends_of_generate,
)
from inferaligner.steering.replay import copy_of_cache, replay
from inferaligner.steering.scope import Pass, PromptScope


class Guard:
    """An applied aligner. `decisions` holds score and verdict per row of the latest prompt batch."""

    def __init__(self, model: PreTrainedModel, plan: SteeringPlan, mode: Mode = "gate") -> None:
        self.plan = plan
        self.mode: Mode = mode
        self.scope: PromptScope | None = None
        self.now: Pass | None = None
        self._model: Any = unwrap(model)
        self._anatomy = dissect(self._model)
        self._check_shapes()
        self._gate_hooks: list[GateHook] = []
        self._steer_hooks: list[SteerHook] = []
        self._handles: list[RemovableHandle] = []
        self._lengths: Sequence[int] | None = None
        self._pending: Tensor | None = None  # prompt ends of a generate() call whose prefill has not come yet
        self._generating: int | None = None  # the thread inside generate()
        self._replaying: Tensor | None = None
        self._signature = inspect.signature(self._model.forward)
        self._shadowed: Any = None

    # -- what users read -----------------------------------------------------------------------------

    @property
    def decisions(self) -> list[Decision]:
        """Per row of the latest batch (beams and return sequences counted): score, and open or not."""
        return [] if self.scope is None else self.scope.decisions()

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """For direct forward calls on prompt + continuation: how many tokens of each row are the prompt.

        Without it, a direct call takes the last token of each row for the prompt's last one.
        """
        self._lengths = list(lengths)
        try:
            yield
        finally:
            self._lengths = None

    # -- the context ---------------------------------------------------------------------------------

    def __enter__(self) -> Guard:
        if self._handles:
            raise SteeringError("This guard is active already; make another one with apply().")
        layers = self._anatomy.layers
        gate = self.plan.gate
        try:
            for layer in gate.layers:
                reads = [
                    (read, weight.clone())
                    for read, weight in zip(gate.reads, gate.weights, strict=True)
                    if read.layer == layer
                ]
                gate_hook = GateHook(self, reads, last=layer == gate.last_layer)
                self._gate_hooks.append(gate_hook)
                self._handles.append(layers[layer].register_forward_hook(gate_hook))
            if self.mode != "never":
                for layer in self.plan.layers:
                    steer_hook = SteerHook(self, self.plan.additions[layer].clone())
                    self._steer_hooks.append(steer_hook)
                    self._handles.append(layers[layer].register_forward_hook(steer_hook))
            self._handles.append(self._model.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(self._after, with_kwargs=True))
            self._shadow_generate()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gate_hooks.clear()
        self._steer_hooks.clear()
        self._restore_generate()
        self._forget_compiled()
        self.now = None

    def _shadow_generate(self) -> None:
        """Lets the guard know where a generate() call begins; the call itself stays the model's own."""
        self._forget_compiled()
        if not hasattr(self._model, "generate"):
            return
        original = self._model.generate
        signature = inspect.signature(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if not self._handles:  # left in a chain of guards after this one was closed
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
            with self._generation(arguments):
                return original(*args, **kwargs)

        self._shadowed = (generate, self._model.__dict__.get("generate"))
        self._model.generate = generate

    def _restore_generate(self) -> None:
        if self._shadowed is None:
            return
        ours, before = self._shadowed
        # A guard that was opened later and is still open has put its own in front; it passes ours by.
        if self._model.__dict__.get("generate") is ours:
            if before is None:
                del self._model.generate
            else:
                self._model.generate = before
        self._shadowed = None

    def _forget_compiled(self) -> None:
        # A decoding step compiled without these hooks would run without them, and the other way round.
        if getattr(self._model, "_compiled_call", None) is not None:
            del self._model._compiled_call
        if torch.compiler.is_compiling() is False and _has_compiled_parts(self._model):
            torch._dynamo.reset()  # type: ignore[no-untyped-call]

    @contextmanager
    def _generation(self, arguments: dict[str, Any]) -> Iterator[None]:
        me = threading.get_ident()
        if self._generating is not None:
            raise SteeringError(
                "A generate() call is running already under this guard. "
                + (
                    "Self-drafting (assistant_early_exit) cannot be guarded: its drafts skip the gate."
                    if self._generating == me
                    else "Use one guard per model and thread, or put both prompts into one batch."
                )
            )
        config = arguments.get("generation_config") or self._model.generation_config
        pad = arguments.get("pad_token_id", config.pad_token_id)
        eos = arguments.get("eos_token_id", config.eos_token_id)
        self._generating = me
        self._pending = ends_of_generate(arguments, pad, eos)
        self.scope = None
        try:
            yield
        finally:
            self._generating = None
            self._pending = None
            self.now = None

    # -- every forward pass --------------------------------------------------------------------------

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = kwargs if not args else {**dict(zip(self._signature.parameters, args, strict=False)), **kwargs}
        ids = arguments.get("input_ids")
        tokens = ids if ids is not None else arguments.get("inputs_embeds")
        if tokens is None:
            raise SteeringError("The forward call has neither input_ids nor inputs_embeds.")
        cache = arguments.get("past_key_values")
        rows, length = tokens.shape[0], tokens.shape[1]
        scope = self.scope
        if self._replaying is not None:
            assert scope is not None
            start = 0 if cache is None else cached_tokens(cache)
            self.now = Pass(start, length, reads_gate=False, settled=True, replayed_rows=self._replaying)
        elif scope is not None and scope.settled and cache is not None and self._decodes(scope, cache, length):
            # The decoding step: nothing here may wait for the device. The cache's own count is not asked
            # for; what matters is only that these tokens come after the prompt.
            self.now = Pass(scope.last_end + 1, length, reads_gate=False, settled=True)
            if rows != len(scope.ends):
                scope.begin_pass(rows, length, scope.seen)  # raises
        else:
            self._begin_prompt(tokens, arguments, cache)
        for hook in self._gate_hooks:
            hook.ran = False
        for steer in self._steer_hooks:
            steer.ran = False

    def _decodes(self, scope: PromptScope, cache: Any, length: int) -> bool:
        if self._generating is not None:
            return self._pending is None
        return length == 1 and scope.follows(cache) and cached_tokens(cache) > 0

    def _begin_prompt(self, tokens: Tensor, arguments: dict[str, Any], cache: Any) -> None:
        _refuse_packed(arguments)
        rows, length = tokens.shape[0], tokens.shape[1]
        start = cached_tokens(cache)
        if self._generating is not None:
            if self._pending is not None:
                self.scope = self._new_scope(self._pending, cache)
                self._pending = None
        else:
            self._begin_direct(tokens, arguments, cache, start)
        scope = self.scope
        assert scope is not None
        self.now = scope.begin_pass(rows, length, start)
        if self.now.reads_gate and self._may_replay():
            scope.prefill.append(dict(arguments))

    def _begin_direct(self, tokens: Tensor, arguments: dict[str, Any], cache: Any, start: int) -> None:
        earlier = self.scope
        if tokens.shape[1] == 1 and start > 0:
            raise SteeringError(
                "A decoding step arrived with a cache whose prompt never passed this guard. "
                "Run the prompt inside the `with aligner.apply(model)` context."
            )
        if self._lengths is not None:
            ends = ends_from_lengths(self._lengths, tokens, arguments, start)
        else:
            ends = ends_of_forward(tokens, arguments, start)
        self.scope = self._new_scope(ends, cache)
        if earlier is not None and start > 0 and earlier.follows(cache):
            self.scope.keep_open(earlier)

    def _new_scope(self, ends: Tensor, cache: Any) -> PromptScope:
        scope = PromptScope(ends, self.plan.gate, self.mode, self.plan.positions)
        scope.belongs_to(cache)
        if self._may_replay():
            scope.cache_before = copy_of_cache(cache)
        return scope

    def _may_replay(self) -> bool:
        return self.mode != "never" and (not self.plan.one_pass or self.plan.positions == "all")

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        scope, now = self.scope, self.now
        if scope is None or now is None:
            return None
        self._verify_hooks_ran(scope, now)
        if now.replayed_rows is not None or (now.settled and not now.reads_gate):
            return None
        made = getattr(output, "past_key_values", None)
        if made is not None:
            scope.belongs_to(made)
        late = not self.plan.one_pass or (self.plan.positions == "all" and len(scope.prefill) > 1)
        if scope.end_pass(now) and late and self.mode != "never" and scope.any_open:
            output = self._replay(scope, made, output)
        if scope.settled:
            scope.prefill.clear()
            scope.cache_before = None
            return output
        return None

    def _replay(self, scope: PromptScope, cache: Any, output: Any) -> Any:
        assert scope.open is not None
        rows = scope.open.nonzero().flatten().cpu()

        def run(arguments: dict[str, Any], subset: Tensor) -> Any:
            self._replaying = subset
            try:
                return self._model(**arguments)
            finally:
                self._replaying = None

        return replay(scope.prefill, scope.cache_before, cache, rows, run, output)

    def _verify_hooks_ran(self, scope: PromptScope, now: Pass) -> None:
        missed = now.reads_gate and not all(hook.ran for hook in self._gate_hooks)
        if not missed and (not now.settled or scope.any_open):
            missed = not all(hook.ran for hook in self._steer_hooks)
        if missed:
            raise SteeringError(
                "The model ran without the guard's hooks, so its output is unprotected and was discarded. "
                "This happens when it was compiled before the aligner was applied: apply first, then "
                "torch.compile, or call torch._dynamo.reset() after apply."
            )

    def _check_shapes(self) -> None:
        anatomy, plan = self._anatomy, self.plan
        width = int(plan.gate.weights.shape[1])
        deepest = max(plan.layers[-1], plan.gate.last_layer)
        for vector in plan.additions.values():
            width = int(vector.shape[0]) if int(vector.shape[0]) != anatomy.width else width
        if width != anatomy.width or deepest >= anatomy.depth:
            raise MismatchError(
                f"The aligner has vectors of width {width} up to layer {deepest}, but the model has "
                f"width {anatomy.width} and layers 0 to {anatomy.depth - 1}. "
                "It was fitted on another model; fit one for this model."
            )


def _has_compiled_parts(model: nn.Module) -> bool:
    """Whether the model or its forward was handed to torch.compile by the user."""
    forward = model.__dict__.get("forward")
    return hasattr(forward, "_torchdynamo_orig_callable") or any(
        getattr(part, "_compiled_call_impl", None) is not None for part in model.modules()
    )


def _refuse_packed(arguments: dict[str, Any]) -> None:
    if any(arguments.get(name) is not None for name in ("cu_seq_lens_q", "block_table", "block_tables")):
        raise SteeringError(
            "Several sequences are packed into one row (continuous batching or padding-free input), so there "
            "is no one last prompt token per row. Use padded batches, or the vLLM engine for serving."
        )
