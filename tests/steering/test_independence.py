"""Golden: state belongs to the guard, and the model is as before when the last one is closed."""

import gc
import threading
import weakref
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ContinuousBatchingConfig

from inferaligner.errors import SteeringError
from inferaligner.method.activations import record_activations
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan
from tests.support.steering_cases import Case, make_case, trace_of_hooks


def test_two_models() -> None:
    first, second = make_case("llama"), make_case("qwen2", opens=(False, True, True, False))
    with first.guard(), second.guard():
        together = [first.generate(), second.generate(), first.generate()]
    with first.guard():
        alone = first.generate()
    assert torch.equal(together[0], alone)
    assert torch.equal(together[2], alone)
    with second.guard():
        assert torch.equal(together[1], second.generate())


def test_one_plan_on_two_models() -> None:
    """Guards copy what they move to a device or dtype; the plan stays the caller's."""
    case = make_case()
    other = make_case().model.to(torch.bfloat16)
    kept = {layer: vector.clone() for layer, vector in case.plan.additions.items()}
    with case.guard():
        alone = case.generate()
    with Guard(other, case.plan), case.guard():
        other.generate(**case.batch(), max_new_tokens=2)
        assert torch.equal(case.generate(), alone)
    assert all(torch.equal(case.plan.additions[layer], kept[layer]) for layer in kept)


@pytest.mark.parametrize("order", ["inner first", "outer first"])
def test_nested_aligners(order: str) -> None:
    case = make_case(opens=(True, False, True, False))
    other = make_case(model=case.model, opens=(False, False, True, True), steered=(2, 3), seed=0)
    before = trace_of_hooks(case.model)
    bare = case.logits()
    with case.guard():
        only_first = case.logits()
    outer, inner = case.guard(), other.guard()
    outer.__enter__()
    inner.__enter__()
    both = case.logits()
    assert [decision.open for decision in outer.decisions] == list(case.opens)
    assert torch.equal(both[1], bare[1]), "closed for both"
    for row in (0, 2, 3):
        assert not torch.allclose(both[row], bare[row], atol=1e-2)
    if order == "inner first":
        inner.__exit__(None, None, None)
        assert torch.equal(case.logits(), only_first)
        outer.__exit__(None, None, None)
    else:
        outer.__exit__(None, None, None)
        with_other = case.logits()
        assert [decision.open for decision in inner.decisions] == list(other.opens)
        assert torch.equal(with_other[0], bare[0])
        assert not torch.allclose(with_other[3], bare[3], atol=1e-2)
        inner.__exit__(None, None, None)
    assert trace_of_hooks(case.model) == before
    assert torch.equal(case.logits(), bare)


def test_nested_aligners_that_replay_are_refused() -> None:
    """A replay of one would pass through the other, which cannot tell it from a new prompt."""
    case = make_case()
    late = make_case(model=case.model, reads=((2, 0),), steered=(0, 1))
    before = trace_of_hooks(case.model)
    for outer, inner in ((case, late), (late, case)):
        with outer.guard() as guard:
            with pytest.raises(SteeringError, match="Two aligners"):
                inner.guard().__enter__()
            outer.generate()
            assert [decision.open for decision in guard.decisions] == list(outer.opens)
        assert trace_of_hooks(case.model) == before
    # positions="all" replays only a prompt that came in chunks.
    every = make_case(model=case.model, positions="all")
    with case.guard(), every.guard():
        every.generate()
        with pytest.raises(SteeringError, match="Two aligners"):
            every.generate(prefill_chunk_size=4)
    assert trace_of_hooks(case.model) == before


def test_a_guard_entered_again() -> None:
    case = make_case()
    guard = case.guard()
    with guard:
        first = case.generate()
        cache = case.model(**case.batch(rows=[0]), use_cache=True).past_key_values
        with pytest.raises(SteeringError, match="active already"):
            guard.__enter__()
        assert torch.equal(case.generate(), first), "the failed attempt must not take the hooks away"
        case.model(**case.batch(rows=[0]), past_key_values=None)
    with guard:
        # What happened to that cache since is unknown.
        with pytest.raises(SteeringError, match="never passed this guard"):
            case.model(input_ids=torch.tensor([[5]]), past_key_values=cache)
        assert guard.decisions == []
        assert torch.equal(case.generate(), first)


def test_every_generate_is_gated_afresh() -> None:
    case = make_case()
    bare = [case.generate(rows=[row]) for row in range(4)]
    with case.guard() as guard:
        for row in (0, 1, 2, 3, 1, 0):
            tokens = case.generate(rows=[row])
            assert [decision.open for decision in guard.decisions] == [case.opens[row]]
            assert torch.equal(tokens, bare[row]) is not case.opens[row]


def test_decisions_are_of_the_latest_batch() -> None:
    case = make_case()
    with case.guard() as guard:
        assert guard.decisions == []
        case.generate(rows=[0, 1])
        assert [decision.open for decision in guard.decisions] == [True, False]
        with pytest.raises(ValueError):
            case.generate(rows=[0], no_such_option=1)
        assert guard.decisions == [], "this call never saw its prompt"
        case.generate(rows=[3])
        assert [decision.open for decision in guard.decisions] == [False]
    assert [decision.open for decision in guard.decisions] == [False], "readable after the context"


@pytest.mark.parametrize("where", ["context", "forward", "generate", "prompt"])
def test_after_an_error(where: str) -> None:
    case = make_case()
    before = trace_of_hooks(case.model)
    bare = case.logits()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    guard = case.guard()
    with pytest.raises(ZeroDivisionError), guard:
        expected = case.logits()
        if where == "context":
            fail()
        steps = {"forward": 0, "generate": 2, "prompt": 0}[where]
        calls = 0

        def later(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > steps:
                fail()

        handle = case.model.model.layers[2].register_forward_hook(later)
        try:
            with pytest.raises(ZeroDivisionError):
                if where == "forward":
                    case.model(**case.batch())
                else:
                    case.generate()
        finally:
            handle.remove()
        # The guard goes on working after it.
        assert torch.equal(case.logits(), expected)
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        fail()
    assert trace_of_hooks(case.model) == before
    assert torch.equal(case.logits(), bare)


def test_an_error_while_entering() -> None:
    case = make_case()
    before = trace_of_hooks(case.model)
    guard = case.guard()
    guard._anatomy.layers[3].register_forward_hook = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        guard.__enter__()
    del guard._anatomy.layers[3].register_forward_hook
    assert trace_of_hooks(case.model) == before


def test_nothing_keeps_the_guard_or_its_caches_alive() -> None:
    case = make_case()
    guard = case.guard()
    with guard, torch.no_grad():
        case.generate()
        cache = case.model(**case.batch(), use_cache=True).past_key_values
        note = weakref.ref(cache)
        del cache
        gc.collect()
        assert note() is None
    note_of_guard = weakref.ref(guard)
    del guard
    gc.collect()
    assert note_of_guard() is None


def test_generate_from_two_threads_is_refused() -> None:
    case = make_case()
    inside, release = threading.Event(), threading.Event()
    answers: list[torch.Tensor] = []

    def hold(*_: Any) -> None:
        inside.set()
        assert release.wait(30)

    with case.guard() as guard:
        expected = case.generate()
        handle = case.model.model.layers[0].register_forward_hook(hold)
        thread = threading.Thread(target=lambda: answers.append(case.generate()))
        thread.start()
        try:
            assert inside.wait(30)
            with pytest.raises(SteeringError, match="running already"):
                case.generate()
            with pytest.raises(SteeringError, match="another thread"):
                case.model(**case.batch())
        finally:
            release.set()
            thread.join(30)
            handle.remove()
        assert torch.equal(answers[0], expected), "the refused calls must not disturb the running one"
        assert [decision.open for decision in guard.decisions] == list(case.opens)


def test_replicas_of_the_model_are_refused() -> None:
    """DataParallel runs copies of the model, with its hooks, in threads of their own."""
    case = make_case()
    with case.guard():
        replica = case.model._replicate_for_data_parallel()
        replica.forward = case.model.forward
        with pytest.raises(SteeringError, match="copy of the guarded model"):
            nn.Module.__call__(replica, **case.batch())


def test_parts_of_the_model_are_refused() -> None:
    """Nothing tells where a prompt ends when only the decoder is called."""
    case = make_case()
    batch = case.batch()
    recorded = record_activations(case.model, case.prompts, layers=[1, 3])
    with case.guard() as guard:
        case.generate()
        for part in (case.model.model, case.model.forward):
            with pytest.raises(SteeringError, match="outside a call of the guarded model"):
                part(**batch)
        # Recording is: its output goes nowhere, and what it reads is the bare model's.
        inside = record_activations(case.model, case.prompts, layers=[1, 3])
        assert torch.equal(inside.values, recorded.values)
        assert [decision.open for decision in guard.decisions] == list(case.opens)


def test_continuous_batching_is_refused() -> None:
    """Its loop runs in a thread that reports errors with the answers instead of raising them."""
    case = make_case()
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    more = {"page_size": 16, "auto_switch_to_flash": False} if "page_size" in known else {"block_size": 16}
    config = ContinuousBatchingConfig(
        num_blocks=16,
        max_batch_tokens=64,
        max_requests_per_batch=4,
        **more,  # type: ignore[arg-type]
    )
    settings: dict[str, Any] = {"continuous_batching_config": config, "max_new_tokens": 3, "warmup": False}
    bare = case.model.generate_batch(case.prompts, **settings)
    assert all(answer.generated_tokens for answer in bare.values()), "it works without a guard"
    with case.guard():
        answers = case.model.generate_batch(case.prompts, **settings)
    assert len(answers) in (0, 4), "transformers 5.16 leaves failed ones out"
    for answer in answers.values():
        assert answer.generated_tokens == []
        assert "packed into one row" in answer.error


@pytest.mark.parametrize(
    "packed",
    [
        {"cu_seq_lens_q": torch.tensor([0, 4, 10])},
        {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])},
    ],
    ids=["lengths", "positions"],
)
def test_packed_rows_are_refused(packed: dict[str, Any]) -> None:
    case = make_case()
    with case.guard(), pytest.raises(SteeringError, match="packed into one row"):
        case.model(input_ids=case.batch(rows=[0])["input_ids"], **packed)


def test_unknown_arguments_are_refused() -> None:
    case = make_case()
    with case.guard():
        with pytest.raises(SteeringError, match="neither input_ids nor inputs_embeds"):
            case.model(attention_mask=torch.ones(1, 3))
        with pytest.raises(SteeringError, match="Unknown KV cache tuple"):
            case.model(input_ids=torch.tensor([[5, 6]]), past_key_values=((torch.zeros(1), torch.zeros(1)),))
        logits = case.model(case.batch()["input_ids"]).logits  # by position
        assert torch.equal(logits, case.model(input_ids=case.batch()["input_ids"]).logits)


def test_a_vector_that_does_nothing_changes_nothing() -> None:
    """The control for every "is steered" above: it is the vector that makes the difference."""
    case = make_case()
    zero = {layer: torch.zeros_like(vector) for layer, vector in case.plan.additions.items()}
    still = Case(case.model, case.prompts, SteeringPlan(case.plan.gate, zero), case.opens)
    bare = case.logits()
    with still.guard() as guard:
        assert torch.equal(still.logits(), bare)
    assert [decision.open for decision in guard.decisions] == list(case.opens)
