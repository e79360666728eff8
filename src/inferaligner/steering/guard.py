"""The guard that `with aligner.apply(model) as guard:` opens: hooks on the model until the context ends.

The order of events for one batch of prompts:
1. The user calls `model.generate(...)`. The guard notes where the prompts end and begins a scope (the state
   of one batch). A plain `model(...)` call that brings a new prompt begins one too.
2. `_before` runs before every forward pass and describes it. Gate hooks read; the last one latches the rows
   and copies the decisions to the host (one wait per prompt batch, none per token). Steer hooks act on open
   rows.
3. With a monitor, its hook reads every generated token and latches rows on the device. The steer hooks then
   look up the open rows on the device at every step, because the host does not know them.
4. `_after` runs after the pass, checks that the hooks ran, and replays the prefill of open rows where one
   pass was too early.

All state belongs to the guard: two guards, on one model or on two, share nothing.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.models.anatomy import dissect, unwrap
from inferaligner.models.kv_cache import cache_in
from inferaligner.prompts.encoding import image_tokens
from inferaligner.steering.active_guards import refuse_other_guards, register, unregister
from inferaligner.steering.batch_state import Pass, PromptScope
from inferaligner.steering.end_check import EndCheck
from inferaligner.steering.generate_wrapper import GenerateAnnouncer
from inferaligner.steering.guard_state import GuardState
from inferaligner.steering.installed_hooks import InstalledHooks
from inferaligner.steering.monitor_hooks import refuse_unfollowed
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
    """An applied aligner; `decisions` has the score and the decision on each row of the latest batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SteeringPlan,
        mode: Mode = "gate",
        refusal: CannedRefusal | None = None,
        end_check: EndCheck | None = None,
    ) -> None:
        """
        Args:
            model: the model to gate; hooks are added when the context is entered.
            plan: the gate, and what is added to open rows.
            mode: whether the gate decides, or every row is steered ("always"), or none ("never").
            refusal: the text that answers open rows. It needs a `GatePlan`, and a `GatePlan` needs it unless
                the mode is "never".
            end_check: detects how prompts end; None: every prompt ends as the chat template ends it.

        Raises:
            MismatchError: the plan does not fit the model's width or depth.
            SteeringError: plan and refusal do not go together.
        """
        if isinstance(plan, GatePlan) != (refusal is not None) and mode != "never":
            raise SteeringError(
                "A gate without steering vectors needs a refusal for open rows, and a plan that steers takes "
                'none. Use apply(on_open="refuse"), or fit with an aligned model.'
            )
        self.plan = plan
        self.refusal = refusal
        self._end_check = end_check or EndCheck(None, "allow")
        self.mode: Mode = mode
        self._state = GuardState()
        self._model: Any = unwrap(model)
        self._anatomy = dissect(self._model)
        plan.check_fits(self._anatomy)
        self._hooks = InstalledHooks()
        self._monitor = None if mode == "always" else plan.monitor  # with every row open, nothing to watch
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
        """The decision on each row of the latest batch; beams and return sequences are rows of their own."""
        scope = self._state.scope
        return [] if scope is None else scope.decisions()

    @contextmanager
    def prompt_lengths(self, lengths: Sequence[int]) -> Iterator[None]:
        """Sets where prompts end in direct forward calls on prompt + continuation.

        Without it, a direct call takes each row's last token for the last token of its prompt.

        Args:
            lengths: tokens of each row's prompt, padding not counted.
        """
        self._lengths = list(lengths)
        try:
            yield
        finally:
            self._lengths = None

    # -- for other decoding loops (see row_state.py) ---------------------------------------------------

    @contextmanager
    def strengths(self, strengths: Sequence[float]) -> Iterator[None]:
        """Scales what direct forward calls on new prompts add to each row; 1 adds the plan's vectors."""
        self._strengths = list(strengths)
        try:
            yield
        finally:
            self._strengths = None

    def carried(self) -> CarriedRows:
        """The state of the latest batch's rows. Raises `SteeringError` before all of them are decided."""
        scope = self._state.scope
        if scope is None:
            raise SteeringError("No prompt has passed this guard yet.")
        return scope.carried()

    def carry_on(self, rows: CarriedRows, cache: Any) -> None:
        """Continues rows of earlier batches: calls with one token a row and this cache decode them.

        Raises:
            SteeringError: the guard is not active, or the rows come from a guard with another monitor.
        """
        if not self._hooks.handles:
            raise SteeringError("This guard is not active; carry rows on inside its context.")
        if (self._monitor is None) != (rows.watch is None):
            raise SteeringError("The rows come from a guard with another monitor.")
        scope = PromptScope.carrying(rows, self.plan.gate, self.mode, self.plan.positions)
        scope.belongs_to(cache)
        self._hooks.arm(scope)
        self._state.scope = scope

    # -- the context ---------------------------------------------------------------------------------

    def __enter__(self) -> Guard:
        if self._hooks.handles:
            raise SteeringError("This guard is active already; make another one with apply().")
        self._state.scope = None  # decisions of an earlier context do not hold any more
        try:
            self._hooks.add(
                self._anatomy,
                self.plan,
                self._state,
                monitor=self._monitor,
                steers=self.mode != "never",
                dtype=self._model.dtype,
            )
            before, after = never_compiled(self._before), never_compiled(self._after)
            self._hooks.handles.append(self._model.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.handles.append(self._model.register_forward_hook(after, with_kwargs=True))
            if hasattr(self._model, "generate"):
                self._announcer = GenerateAnnouncer(self._model, self._generation)
            register(self._model, self)
            forget_compiled(self._model)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.remove()
        if self._announcer is not None:
            self._announcer.lift()
            self._announcer = None
        unregister(self._model, self)
        forget_compiled(self._model)
        self._state.now = None

    @contextmanager
    def _generation(self, arguments: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """Surrounds the model's own generate(); yields the arguments that a refusal replaces."""
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
            self._state.scope = None
            if self.refusal is None:
                yield None
            else:
                yield {"logits_processor": refusing(arguments, defaults, self.refusal, self._open_rows)}
        finally:
            self._generating = None
            self._pending = None
            self._end_tokens = None
            self._state.now = None

    def _open_rows(self) -> Tensor | None:
        scope = self._state.scope
        return scope.open if scope is not None and scope.settled else None

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
        scope = self._state.scope
        if self._replaying is not None:
            assert scope is not None
            now = scope.replay_pass(self._replaying, length, cached_tokens(cache))
        elif scope is not None and scope.decoding is not None and self._decodes(scope, cache, length):
            # The decoding step must not wait for the device. A static cache counts its tokens there, so the
            # count is not read; it is enough that these tokens come after the prompt.
            scope.check_rows(rows)
            now = scope.decoding
        else:
            now = self._begin_prompt(tokens, arguments, cache)
        self._state.now = now
        assert self._state.scope is not None
        self._hooks.before_pass(self._state.scope, now, ids, length)

    def _decodes(self, scope: PromptScope, cache: Any, length: int) -> bool:
        """Whether a pass comes after the prompts of `scope`: its cache is the object that holds them."""
        if self._generating is None:
            return length == 1 and scope.follows(cache) and cached_tokens(cache) > 0
        # Older model code makes a new cache (a tuple of tensors) in every pass, so it cannot be recognised.
        return self._pending is None and (scope.follows(cache) or isinstance(cache, (tuple, list)))

    def _begin_prompt(self, tokens: Tensor, arguments: dict[str, Any], cache: Any) -> Pass:
        refuse_packed(arguments)
        if self.refusal is not None and self._generating is None:
            raise SteeringError(
                "Open prompts are answered with a text, and a forward call generates none. Call generate()."
            )
        start = cached_tokens(cache)
        if self._generating is None:
            self._state.scope = self._direct_scope(tokens, arguments, cache, start)
        elif self._pending is not None:
            self._state.scope = self._new_scope(self._pending, cache)
            self._pending = None
        scope = self._state.scope
        assert scope is not None
        now = scope.begin_pass(tokens.shape[0], tokens.shape[1], start)
        refuse_image_reads(tokens, scope.spans.reads, start, self.plan.gate.offsets, self._image_tokens)
        for device in self._hooks.devices:
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
        scope, earlier = self._new_scope(self._end_check(spans, tokens, start), cache), self._state.scope
        if self._strengths is not None:
            scope.scale(self._strengths)
        if earlier is not None and start > 0 and earlier.follows(cache):
            # Not known to be a new turn: it may be the rest of the same prompt, or drafted tokens.
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
        scope, now = self._state.scope, self._state.now
        self._state.now = None
        if scope is None or now is None:
            return None
        self._hooks.after_pass(now)
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
        self._hooks.arm(scope)
        scope.prefill.clear()
        scope.cache_before = None
        return output

    def _replay(self, scope: PromptScope, cache: Any, output: Any) -> Any:
        refuse_other_guards(self._model, self)
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
