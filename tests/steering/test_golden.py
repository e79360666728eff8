"""The golden checks can fail: each is given the fault that it is there for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from inferaligner.models.anatomy import dissect
from inferaligner.steering import guard as guard_module
from inferaligner.steering import replay as replay_module
from inferaligner.steering.batch_state import PromptScope
from inferaligner.steering.guard import Guard
from inferaligner.steering.hooks import GateHook, SteerHook
from inferaligner.steering.installed_hooks import InstalledHooks
from tests.support import golden

Patch = pytest.MonkeyPatch


def steers_closed_batches(patch: Patch) -> None:
    begin_pass = PromptScope.begin_pass

    def always(self: PromptScope, *arguments: Any) -> Any:
        now = begin_pass(self, *arguments)
        self.mode = "always"
        return now

    patch.setattr(PromptScope, "begin_pass", always)


def steers_a_little_more(patch: Patch) -> None:
    init = SteerHook.__init__

    def more(self: SteerHook, guard: Guard, vector: Any, dtype: Any = None) -> None:
        init(self, guard, vector * (1 + 1e-6), dtype)

    patch.setattr(SteerHook, "__init__", more)


def scores_with_another_bias(patch: Patch) -> None:
    add_scores = PromptScope.add_scores

    def shifted(self: PromptScope, part: Any) -> None:
        add_scores(self, part + 0.01)

    patch.setattr(PromptScope, "add_scores", shifted)


def forgets_the_cache_of_a_replay(patch: Patch) -> None:
    patch.setattr(replay_module, "_write_cache", lambda *_: None)


def reads_the_first_row_for_all(patch: Patch) -> None:
    add_scores = PromptScope.add_scores

    def first(self: PromptScope, part: Any) -> None:
        add_scores(self, part[:1].expand(len(part)))

    patch.setattr(PromptScope, "add_scores", first)


def decodes_without_steering(patch: Patch) -> None:
    patch.setattr(SteerHook, "arm", lambda self, *_: setattr(self, "_decoding", torch.zeros(1)))


def keeps_the_first_decision(patch: Patch) -> None:
    new_scope = Guard._new_scope
    kept: list[PromptScope] = []

    def old(self: Guard, *arguments: Any) -> PromptScope:
        scope = new_scope(self, *arguments)
        if kept and kept[0].open is not None:
            scope._kept = scope.open = kept[0].open.clone()
        kept.append(scope)
        return scope

    patch.setattr(Guard, "_new_scope", old)


def leaves_a_hook_behind(patch: Patch) -> None:
    leave = Guard.__exit__

    def left(self: Guard, *arguments: Any) -> None:
        leave(self, *arguments)
        dissect(self._model).layers[0].register_forward_hook(lambda *_: None)

    patch.setattr(Guard, "__exit__", left)


def sums_in_another_order(patch: Patch) -> None:
    call = GateHook.__call__

    def rounded(self: GateHook, module: Any, inputs: Any, output: Any) -> None:
        call(self, module, inputs, output.bfloat16().float() if len(output) > 1 else output)

    patch.setattr(GateHook, "__call__", rounded)


def waits_for_every_token(patch: Patch) -> None:
    call = GateHook.__call__

    def waits(self: GateHook, module: Any, inputs: Any, output: Any) -> None:
        bool(output.isnan().any())
        call(self, module, inputs, output)

    patch.setattr(GateHook, "__call__", waits)


FAULTS: list[tuple[golden.Check, Callable[[Patch], None], str]] = [
    (golden.a_closed_batch_keeps_its_bits, steers_closed_batches, "expected no bit"),
    (golden.open_rows_follow_the_equation, steers_a_little_more, "hooks by hand"),
    (golden.open_rows_follow_the_equation, scores_with_another_bias, "differs from the sum in float64"),
    (golden.a_replay_steers_as_if_it_had_known, forgets_the_cache_of_a_replay, "logits differ"),
    (golden.a_row_alone_is_the_row_in_its_batch, reads_the_first_row_for_all, "row 1 alone"),
    (golden.cached_is_uncached, decodes_without_steering, "use_cache"),
    (golden.every_batch_is_gated_afresh, keeps_the_first_decision, "after an open one"),
    (golden.hooks_go_after_an_error, leaves_a_hook_behind, "left on the model"),
    (golden.a_score_does_not_depend_on_its_batch, sums_in_another_order, "alone and in a batch"),
    (golden.decoding_adds_no_wait, waits_for_every_token, "waits a token"),
    (golden.numpy_agrees, decodes_without_steering, "numpy"),
]


def subject(dtype: torch.dtype = torch.float32) -> golden.Subject:
    return golden.Subject("llama", torch.device("cpu"), dtype)


@pytest.mark.parametrize(("check", "fault", "message"), FAULTS, ids=lambda one: getattr(one, "__name__", "-"))
def test_a_fault_is_found(
    check: golden.Check, fault: Callable[[Patch], None], message: str, monkeypatch: Patch
) -> None:
    assert check(subject())
    fault(monkeypatch)
    with pytest.raises(golden.GoldenError, match=message):
        check(subject())


def test_every_check_has_its_fault() -> None:
    assert {check for check, *_ in FAULTS} == set(golden.CHECKS.values())


def test_a_model_that_does_not_repeat_itself(monkeypatch: Patch) -> None:
    noisy = subject()
    noisy.model.lm_head.register_forward_hook(lambda module, inputs, output: output + 1e-6 * torch.rand(1))
    with pytest.raises(golden.GoldenError, match="the bare model's second run"):
        golden.CONTROL(noisy)


def test_compiled_decoding(monkeypatch: Patch) -> None:
    from torch._dynamo.utils import counters
    from transformers import CompileConfig

    config = CompileConfig(backend="eager", mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True  # type: ignore[assignment]
    options = {"cache_implementation": "static", "compile_config": config}
    small = replace(subject(), layers=2)
    assert "of eager ones" in golden.compiled_decoding_is_eager_decoding(small, options)
    with pytest.raises(golden.GoldenError, match="compiled nothing"):
        golden.compiled_decoding_is_eager_decoding(small, {"cache_implementation": "static"})
    with monkeypatch.context() as patch:
        before = Guard._before

        def gives_up(self: Guard, *arguments: Any) -> None:
            counters["inductor"]["cudagraph_skips"] += 1
            before(self, *arguments)

        patch.setattr(Guard, "_before", gives_up)
        with pytest.raises(golden.GoldenError, match="given up"):
            golden.compiled_decoding_is_eager_decoding(small, options)
    # Code from before the hooks goes on being used, and nobody looks whether they ran.
    monkeypatch.setattr(guard_module, "forget_compiled", lambda model: None)
    monkeypatch.setattr(InstalledHooks, "after_pass", lambda self, now: None)
    with pytest.raises(golden.GoldenError, match="compiled"):
        golden.compiled_decoding_is_eager_decoding(small, options)


def test_waits_that_cuda_reports_are_counted(monkeypatch: Patch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)

    def switch(mode: Any) -> None:
        modes.append(mode)
        if mode == "warn":
            warnings.warn("This mode does not detect all synchronizing operations", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    with golden.count_waits(torch.device("cuda")) as noted:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert len(noted) == 3
    assert modes == ["warn", 0]
