"""`with aligner.apply(model) as guard:` - hooks on the model while the context is open.

Who calls what, for one batch of prompts:
1. `model.generate(...)` is the user's own call. The guard notes where the prompts end and opens a scope.
   A plain `model(...)` call opens one by itself when it brings a new prompt.
2. Before every forward pass, `_before` describes the pass; gate hooks read, the last one latches the rows
   and tells the host (one wait per prompt batch, none per token); steer hooks act on open rows, if any.
3. Where there is a monitor, its hook reads every generated token and latches rows on the device; the steer
   hooks then tell rows apart at every step, because the host does not know.
4. After the pass, `_after` checks that the hooks really ran, and replays the prefill of opened rows where
   one pass was too early.

State belongs to the guard: two guards, on one model or on two, share nothing.
"""

from __future__ import annotations

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

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.models.anatomy import dissect, module_device, unwrap
from inferaligner.models.kv_cache import cache_in
from inferaligner.prompts.encoding import image_tokens
from inferaligner.steering.active_guards import join, leave, refuse_company
from inferaligner.steering.batch_state import Pass, PromptScope
from inferaligner.steering.end_check import EndCheck
from inferaligner.steering.generate_wrapper import GenerateAnnouncer
from inferaligner.steering.hooks import GateHook, SteerHook
from inferaligner.steering.monitor_hooks import MonitorHook, refuse_several_tokens, refuse_unfollowed
from inferaligner.steering.monitor_state import AnswerWatch
from inferaligner.steering.plan import GatePlan, Mode, SteeringPlan
from inferaligner.steering.prompt_spans import (
    PromptSpans,
    cached_tokens,
    generate_end_tokens,
    generate_setting,
    refuse_image_reads,
    refuse_packed,
    spans_from_lengths,
    spans_of_forward,
    spans_of_generate,
)
from inferaligner.steering.refusal import CannedRefusal, refusing
from inferaligner.steering.replay import copy_of_cache, own_tensors, replay
from inferaligner.steering.row_state import CarriedRows
from inferaligner.steering.torch_compile import forget_compiled, never_compiled


class Guard:
    """An applied aligner. `decisions` holds score and verdict per row of the latest prompt batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SteeringPlan,
        mode: Mode = "gate",
        refusal: CannedRefusal | None = None,
        end_check: EndCheck | None = None,
    ) -> None:
        """`refusal` is what open rows are answered with; it goes with a `GatePlan`, and no other. Without an
        `end_check` every prompt counts as one that ends as the template ends it."""
        if isinstance(plan, GatePlan) != (refusal is not None) and mode != "never":
            raise SteeringError(
                "A gate alone needs a refusal to answer open rows with, and a plan that steers takes none. "
                'Use apply(on_open="refuse"), or fit with an aligned model.'
            )
        self.plan = plan
        self.refusal = refusal
        self._end_check = end_check or EndCheck(None, "allow")
        self.mode: Mode = mode
        self.scope: PromptScope | None = None
        self.now: Pass | None = None  # the pass that is running
        self._model: Any = unwrap(model)
        self._anatomy = dissect(self._model)
        plan.check_fits(self._anatomy)
        self._gate_hooks: list[GateHook] = []
        self._steer_hooks: list[SteerHook] = []
        self._monitor = None if mode == "always" else plan.monitor  # with every row open, nothing to watch
        self._monitor_hook: MonitorHook | None = None
        self._handles: list[RemovableHandle] = []
        self._devices: set[torch.device] = set()  # on which layers with hooks compute
        self._announcer: GenerateAnnouncer | None = None
        self._lengths: Sequence[int] | None = None
        self._strengths: Sequence[float] | None = None
        self._pending: PromptSpans | None = None  # of a generate() call whose prefill has not come yet
        self._generating: int | None = None  # the thread inside generate()
        self._end_tokens: list[int] | None = None  # of a generate() call
        self._replaying: Tensor | None = None
        self._image_tokens = image_tokens(self._model.config)
        self._parameters = tuple(inspect.signature(self._model.forward).parameters)

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

    # -- for decoding loops of one's own (see carried.py) ----------------------------------------------

    @contextmanager
    def strengths(self, strengths: Sequence[float]) -> Iterator[None]:
        """For direct forward calls on new prompts: what is added to each row, as a multiple of the plan's."""
        self._strengths = list(strengths)
        try:
            yield
        finally:
            self._strengths = None

    def carried(self) -> CarriedRows:
        """The rows of the latest batch, to be carried on. Raises `SteeringError` before they are decided."""
        if self.scope is None:
            raise SteeringError("No prompt has passed this guard yet.")
        return self.scope.carried()

    def carry_on(self, rows: CarriedRows, cache: Any) -> None:
        """From here on, calls with one token a row and this cache decode these rows.

        Raises `SteeringError` outside the context, or if the rows lack the monitor's state.
        """
        if not self._handles:
            raise SteeringError("This guard is not active; carry rows on inside its context.")
        if (self._monitor is None) != (rows.watch is None):
            raise SteeringError("The rows come from a guard with another monitor.")
        scope = PromptScope.carrying(rows, self.plan.gate, self.mode, self.plan.positions)
        scope.belongs_to(cache)
        self._arm(scope)
        self.scope = scope

    # -- the context ---------------------------------------------------------------------------------

    def __enter__(self) -> Guard:
        if self._handles:
            raise SteeringError("This guard is active already; make another one with apply().")
        self.scope = None  # what was decided in an earlier context says nothing about what came since
        layers = self._anatomy.layers
        # Here, and not where they are used: see hooks.py on what compiled code makes.
        at = {n: module_device(layers[n]) for n in {*self.plan.gate_layers, *self.plan.layers}}
        self._devices = set(at.values())
        dtype = self._model.dtype
        try:
            for layer in self.plan.gate_layers:
                self._gate_hooks.append(GateHook(self, layer, at[layer]))
                self._handles.append(layers[layer].register_forward_hook(self._gate_hooks[-1]))
            if self._monitor is not None:
                watched = layers[self._monitor.layer]
                self._monitor_hook = MonitorHook(self, self._monitor, module_device(watched))
                self._handles.append(watched.register_forward_hook(self._monitor_hook))
            if self.mode != "never":
                for layer in self.plan.layers:
                    vector = self.plan.additions[layer].to(at[layer], copy=True)
                    steer_hook = SteerHook(self, vector, dtype if dtype.is_floating_point else None)
                    self._steer_hooks.append(steer_hook)
                    self._handles.append(layers[layer].register_forward_hook(steer_hook))
            before, after = never_compiled(self._before), never_compiled(self._after)
            self._handles.append(self._model.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(after, with_kwargs=True))
            if hasattr(self._model, "generate"):
                self._announcer = GenerateAnnouncer(self._model, self._generation)
            join(self._model, self)
            forget_compiled(self._model)
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
        self._monitor_hook = None
        if self._announcer is not None:
            self._announcer.lift()
            self._announcer = None
        leave(self._model, self)
        forget_compiled(self._model)
        self.now = None

    @contextmanager
    def _generation(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """Around the model's own generate(); gives the arguments that a refusal needs changed."""
        if self._generating is not None:
            raise SteeringError(
                "A generate() call is running already under this guard. "
                "Use one guard per model and thread, or put both prompts into one batch."
            )
        defaults = self._model.generation_config
        own_drafts = generate_setting(arguments, defaults, "assistant_early_exit") is not None
        if own_drafts or arguments.get("assistant_model") is self._model:
            raise SteeringError(
                "Self-drafting (assistant_early_exit, or the model as its own assistant) cannot be guarded: "
                "its drafts skip the gate. Use another model as the assistant, or prompt_lookup_num_tokens."
            )
        if self._monitor is not None:
            refuse_unfollowed(arguments, defaults)
        self._generating = threading.get_ident()
        try:
            self._end_tokens = generate_end_tokens(arguments, defaults)
            self._pending = self._end_check.of_generate(spans_of_generate(arguments, defaults), arguments)
            self.scope = None
            if self.refusal is None:
                yield None
            else:
                yield {"logits_processor": refusing(arguments, defaults, self.refusal, self._open_rows)}
        finally:
            self._generating = None
            self._pending = None
            self._end_tokens = None
            self.now = None

    def _open_rows(self) -> Tensor | None:
        return self.scope.open if self.scope is not None and self.scope.settled else None

    # -- every forward pass --------------------------------------------------------------------------

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model is not self._model or self._generating not in (None, threading.get_ident()):
            raise SteeringError(
                "A forward call came from a copy of the guarded model, or from another thread than the "
                "generate() call that is running. Use one guard per model and thread."
            )
        arguments = kwargs if not args else {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        ids = arguments.get("input_ids")
        tokens = ids if ids is not None else arguments.get("inputs_embeds")
        if tokens is None:
            raise SteeringError("The forward call has neither input_ids nor inputs_embeds.")
        cache, (rows, length) = cache_in(arguments), tokens.shape[:2]
        scope = self.scope
        if self._replaying is not None:
            assert scope is not None
            self.now = scope.replay_pass(self._replaying, length, cached_tokens(cache))
        elif scope is not None and scope.decoding is not None and self._decodes(scope, cache, length):
            # The decoding step: nothing here may wait for the device. A static cache keeps its count there,
            # so it is not asked for; what matters is only that these tokens come after the prompt.
            scope.check_rows(rows)
            self.now = scope.decoding
        else:
            self.now = self._begin_prompt(tokens, arguments, cache)
        if self.now.reads_answer:
            self._before_monitor(ids, length)
        if self.now.reads_gate:
            for hook in self._gate_hooks:
                hook.ran = False
        if self.now.steers != "nothing":
            for steer in self._steer_hooks:
                steer.ran = False

    def _before_monitor(self, ids: Tensor | None, length: int) -> None:
        assert self.scope is not None and self.scope.watch is not None and self._monitor_hook is not None
        assert self.now is not None
        if self.now.steers == "monitored":
            refuse_several_tokens(length)
        self.scope.watch.note_tokens(ids)
        self._monitor_hook.ran = False

    def _decodes(self, scope: PromptScope, cache: Any, length: int) -> bool:
        """Whether a pass comes after the prompts of `scope`: its cache is the very object that holds them."""
        if self._generating is None:
            return length == 1 and scope.follows(cache) and cached_tokens(cache) > 0
        # Older model code makes its cache anew in every pass, from tensors in a tuple: nothing to recognise.
        return self._pending is None and (scope.follows(cache) or isinstance(cache, (tuple, list)))

    def _begin_prompt(self, tokens: Tensor, arguments: dict[str, Any], cache: Any) -> Pass:
        refuse_packed(arguments)
        if self.refusal is not None and self._generating is None:
            raise SteeringError(
                "An open prompt is answered with a text, and a forward call has no answer to put it in. "
                "Call generate()."
            )
        start = cached_tokens(cache)
        if self._generating is None:
            self.scope = self._direct_scope(tokens, arguments, cache, start)
        elif self._pending is not None:
            self.scope = self._new_scope(self._pending, cache)
            self._pending = None
        scope = self.scope
        assert scope is not None
        now = scope.begin_pass(tokens.shape[0], tokens.shape[1], start)
        refuse_image_reads(tokens, scope.spans.reads, start, self.plan.gate.offsets, self._image_tokens)
        for device in self._devices:
            scope.places_on(device)  # copied here: see hooks.py on what compiled code makes
        if now.reads_gate and self._may_replay():
            scope.prefill.append(dict(arguments))
        return now

    def _direct_scope(self, tokens: Tensor, arguments: dict[str, Any], cache: Any, start: int) -> PromptScope:
        if tokens.shape[1] == 1 and start > 0:
            raise SteeringError(
                "A decoding step arrived with a cache whose prompt never passed this guard. "
                "Run the prompt inside the `with aligner.apply(model)` context."
            )
        if self._lengths is not None:
            spans = spans_from_lengths(self._lengths, tokens, arguments, start)
        else:
            spans = spans_of_forward(tokens, arguments, start)
        scope, earlier = self._new_scope(self._end_check(spans, tokens, start), cache), self.scope
        if self._strengths is not None:
            scope.scale(self._strengths)
        if earlier is not None and start > 0 and earlier.follows(cache):
            # Nobody said that a new turn begins: this may be the rest of the same prompt, or drafted tokens.
            scope.keep_open(earlier)
        return scope

    def _new_scope(self, spans: PromptSpans, cache: Any) -> PromptScope:
        scope = PromptScope(spans, self.plan.gate, self.mode, self.plan.positions, self.plan.end_gate)
        scope.belongs_to(cache)
        if self._monitor is not None:
            ends = self._end_tokens
            if ends is None:
                ends = generate_end_tokens({}, getattr(self._model, "generation_config", None))
            scope.watch = AnswerWatch(self._monitor, ends)
        if self._may_replay():
            scope.cache_before = copy_of_cache(cache)
        return scope

    def _may_replay(self) -> bool:
        return self.mode != "never" and (not self.plan.one_pass or self.plan.positions == "all")

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        scope, now = self.scope, self.now
        self.now = None
        if scope is None or now is None:
            return None
        self._verify_hooks_ran(now)
        if now.reads_answer and scope.watch is not None:
            scope.watch.keep()
        if not now.reads_gate:
            return None
        made = cache_in(output)
        scope.belongs_to(made)
        if not scope.end_pass(now):
            return None
        late = not self.plan.one_pass or (self.plan.positions == "all" and len(scope.prefill) > 1)
        if late and scope.any_open:
            output = self._replay(scope, made, output)
        self._arm(scope)
        scope.prefill.clear()
        scope.cache_before = None
        return output

    def _arm(self, scope: PromptScope) -> None:
        assert scope.decoding is not None and scope.acting is not None
        for steer in self._steer_hooks:  # a monitored step asks the watch instead
            steer.arm(scope.acting[:, None, None], scope.decoding.steers, scope.strengths)

    def _replay(self, scope: PromptScope, cache: Any, output: Any) -> Any:
        refuse_company(self._model, self)
        assert scope.open is not None
        rows = scope.open.nonzero().flatten().cpu()

        def run(arguments: dict[str, Any], subset: Tensor) -> Any:
            self._replaying = subset
            try:
                return self._model(**arguments)
            finally:
                self._replaying = None

        if scope.traced:
            output = own_tensors(output)
        return replay(scope.prefill, scope.cache_before, cache, rows, run, output)

    def _verify_hooks_ran(self, now: Pass) -> None:
        missed = now.reads_gate and not all(hook.ran for hook in self._gate_hooks)
        if now.steers != "nothing":
            missed = missed or not all(hook.ran for hook in self._steer_hooks)
        if now.reads_answer:
            missed = missed or self._monitor_hook is None or not self._monitor_hook.ran
        if missed:
            raise SteeringError(
                "The model ran without the guard's hooks, so its output is unprotected and was discarded. "
                "This happens when it was compiled before the aligner was applied: apply first, then "
                "torch.compile, or call torch._dynamo.reset() after apply."
            )
