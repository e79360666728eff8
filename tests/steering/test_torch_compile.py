"""Golden: `torch.compile` and the hooks never pass each other by."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from inferaligner.errors import SteeringError
from inferaligner.steering import guard as guard_module
from inferaligner.steering.guard import Guard
from tests.support.compiled_decoding import compiled_decoding, graphs
from tests.support.reused_memory import ReusedMemory
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model

with contextlib.suppress(ImportError):
    # Inductor imports setuptools. Imported first from there, in a process that had run other tests, it once
    # took the standard library's distutils in place of its own, and failed.
    import setuptools  # noqa: F401

ONE_PASS: dict[str, Any] = {"reads": ((0, 0),), "steered": (0, 1)}
REPLAY: dict[str, Any] = {"reads": ((1, 0),), "steered": (0,)}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def small_case(family: str = "llama", **plan: Any) -> Case:
    """Two layers; tracing transformers' code is what takes the time here ("odd_h" is traced at once)."""
    return make_case(model=tiny_model(family, num_hidden_layers=2), **plan)


def compile_forward(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager", dynamic=True)


def compile_in_place(model: Any) -> None:
    model.compile(backend="eager", dynamic=True)


@pytest.mark.parametrize(
    ("family", "compile_model", "plan"),
    [
        ("llama", compile_forward, ONE_PASS),
        ("odd_h", compile_forward, REPLAY),
        ("odd_h", compile_in_place, ONE_PASS),
        ("llama", compile_in_place, REPLAY),
    ],
)
def test_compiled_before_apply(
    family: str, compile_model: Callable[[Any], None], plan: dict[str, Any]
) -> None:
    case = small_case(family, **plan, lengths=(10, 7, 9, 12))
    bare = case.logits()
    with case.guard():
        expected = case.logits()
    compile_model(case.model)
    # From 5.23 on transformers attends to one token otherwise when it is compiled; the last digit may differ.
    uncompiled, bare = bare, case.logits()
    torch.testing.assert_close(bare, uncompiled, atol=1e-5, rtol=1e-5)
    assert graphs() > 0, "the test must compile"
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        compiled = graphs()
        case.logits(max_new_tokens=20)
        case.logits(rows=[0, 1, 2])
        assert graphs() == compiled, "no compilation per token, nor per length of the prompt"
    torch.testing.assert_close(steered, expected, atol=1e-5, rtol=1e-5)
    for row in case.closed_rows:
        assert torch.equal(steered[row], bare[row])
    assert torch.equal(case.logits(), bare)


def test_compiled_inside_the_context() -> None:
    case = small_case("odd_layers", **ONE_PASS)
    bare = case.logits()
    with case.guard() as guard:
        expected = case.logits()
        compile_forward(case.model)
        assert torch.equal(case.logits(), expected)
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        assert graphs() > 0
    assert torch.equal(case.logits(), bare), "what was compiled with the hooks must not go on steering"


@pytest.mark.parametrize("given", ["wrapper", "model"])
def test_compiled_wrapper(given: str) -> None:
    """`compiled = torch.compile(model)` leaves no mark on the model itself."""
    case = small_case("odd_h", **ONE_PASS)
    compiled: Any = torch.compile(case.model, backend="eager")
    batch = case.batch()
    with torch.no_grad():
        bare = compiled(**batch).logits
        assert graphs() > 0
        with case.guard():
            expected = case.model(**batch).logits
            tokens = case.generate()
        with Guard(compiled if given == "wrapper" else case.model, case.plan) as guard:
            assert torch.equal(compiled(**batch).logits, expected)
            assert [decision.open for decision in guard.decisions] == list(case.opens)
            answers = compiled.generate(**batch, do_sample=False, **case.settings)
            assert torch.equal(answers[:, batch["input_ids"].shape[1] :], tokens)
        assert not torch.equal(expected, bare)
        assert torch.equal(compiled(**batch).logits, bare)


def test_compiled_layers() -> None:
    case = small_case("odd_layers", **ONE_PASS)
    bare = case.logits()
    with case.guard():
        expected = case.logits()
    for layer in case.model.model.layers:
        layer.compile(backend="eager", dynamic=True)
    assert torch.equal(case.logits(), bare)
    with case.guard():
        assert torch.equal(case.logits(), expected)
    assert torch.equal(case.logits(), bare)


@pytest.mark.parametrize("plan", [ONE_PASS, REPLAY], ids=["one", "late"])
def test_decoding_compiled_by_generate(plan: dict[str, Any]) -> None:
    case = small_case(**plan)
    options = compiled_decoding()
    bare = case.logits(**options)
    assert graphs() == 1, "the test must compile"
    with case.guard():
        expected = case.logits()
        steered = case.logits(**options)
        assert graphs() == 2
    for row in case.closed_rows:
        assert torch.equal(steered[row], bare[row])
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered[0, 0], bare[0, 0], atol=1e-2)
    assert torch.equal(case.logits(**options), bare)


def test_one_graph_for_closed_mixed_and_open_batches() -> None:
    """Neither the length of a prompt, nor the token, nor who is open compiles decoding again."""
    case = small_case(**ONE_PASS, lengths=(10, 7, 9, 12))
    options = {**compiled_decoding(), "max_new_tokens": 5}
    batches = {"closed": [[1, 3], [3, 1]], "open": [[0, 2], [2, 0]], "mixed": [[0, 1], [1, 2], [3, 0]]}
    case.generate(rows=[0, 1], **options)
    counters.clear()
    with case.guard() as guard:
        for number, (kind, rows) in enumerate(batches.items(), start=1):
            for pair in rows:
                for new_tokens in (5, 9):
                    expected = case.generate(rows=pair, max_new_tokens=new_tokens)
                    assert torch.equal(
                        case.generate(rows=pair, **{**options, "max_new_tokens": new_tokens}), expected
                    )
                    assert [d.open for d in guard.decisions] == [case.opens[row] for row in pair]
            # A cache of another size is another graph, hooks or not.
            assert graphs() <= 2 * number, kind
        counters.clear()
        for rows in batches.values():
            case.generate(rows=rows[0], **options)
        assert graphs() == 0


@pytest.mark.parametrize("how", ["forward", "module", "generate"])
def test_stale_code_raises(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second line of defence, with the first taken away: code from before the hooks serves nothing."""
    case = small_case("llama" if how == "generate" else "odd_h", **ONE_PASS)
    options = compiled_decoding() if how == "generate" else {}
    if how == "forward":
        compile_forward(case.model)
    if how == "module":
        compile_in_place(case.model)
    bare = case.logits(**options)
    monkeypatch.setattr(guard_module, "forget_compiled", lambda model: None)
    with case.guard(), pytest.raises(SteeringError, match="without the guard's hooks"):
        case.logits(**options)
    assert torch.equal(case.logits(**options), bare)


def test_a_compiled_gate_of_several_layers() -> None:
    """Scores and open rows are made inside of the compiled prefill, by several hooks."""
    case = make_case("odd_h", reads=((0, 0), (1, 1), (1, 0)), steered=(1, 2), positions="all")
    with case.guard() as guard:
        expected = case.logits()
        decisions = guard.decisions
        compile_forward(case.model)
        assert torch.equal(case.logits(), expected)
        assert graphs() > 0
        assert guard.decisions == decisions


@pytest.mark.slow
def test_inductor() -> None:
    """Generated code rounds in its own way: closed rows are those of the bare model compiled the same."""
    case = small_case(**ONE_PASS)
    options = compiled_decoding("inductor")
    bare = case.logits(**options)
    with case.guard():
        expected = case.logits()
        steered: Tensor = case.logits(**options)
    assert graphs() >= 2
    torch.testing.assert_close(steered, expected, atol=1e-3, rtol=1e-3)
    for row in case.closed_rows:
        torch.testing.assert_close(steered[row], bare[row], atol=1e-4, rtol=1e-4)
    assert torch.equal(case.logits(**options), bare)


@pytest.mark.parametrize("plan", [{**ONE_PASS, "reads": ((0, 0), (0, 1))}, REPLAY], ids=["one", "late"])
def test_what_compiled_code_returned_may_be_overwritten(plan: dict[str, Any]) -> None:
    """CUDA graphs hand out memory that their next run uses again: nothing of ours may rest there."""
    model = tiny_model("odd_h", num_hidden_layers=2).to(torch.bfloat16)
    case = make_case(model=model, **plan)
    batches = ([0, 1, 2, 3], [0, 2], [1, 3], [2, 1, 0, 3])

    def answers() -> list[Tensor]:
        with torch.no_grad():
            return [model(**case.batch(rows=rows)).logits.clone() for rows in batches]

    with case.guard() as guard:
        expected = answers()
        decisions = guard.decisions
    memory = ReusedMemory()
    model.forward = torch.compile(model.forward, backend=memory, dynamic=True)
    with memory.on(model), case.guard() as guard:
        for steered, right in zip(answers(), expected, strict=True):
            assert torch.equal(steered, right)
        assert guard.decisions == decisions
    assert graphs() > 0 and memory.overwritten > 0, "the test must compile, and overwrite"
