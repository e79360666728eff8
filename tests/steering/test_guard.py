"""Refusals, NaN, and what a decoding step may not do."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.errors import MismatchError, SteeringError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.steering.batch_state import PromptScope
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Mode, Positions, SteeringPlan
from tests.support.host_reads import count_host_reads
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"gate_width": 16, "width": 16, "layers": (1,), "reads": 1}, "width 16"),
        ({"gate_width": 16, "width": 32, "layers": (1,), "reads": 1}, "width 16 and 32"),
        ({"gate_width": 32, "width": 16, "layers": (1,), "reads": 1}, "width 16 and 32"),
        ({"gate_width": 32, "width": 32, "layers": (1, 4), "reads": 1}, "layer 4"),
        ({"gate_width": 32, "width": 32, "layers": (1,), "reads": 7}, "layer 7"),
    ],
)
def test_a_plan_of_another_model(plan: dict[str, Any], told: str) -> None:
    gate = GuidanceGate("test", (GateRead(plan["reads"]),), torch.ones(1, plan["gate_width"]), 0.0)
    additions = {layer: torch.ones(plan["width"]) for layer in plan["layers"]}
    with pytest.raises(MismatchError, match=f"{told}.*width 32 and layers 0 to 3"):
        Guard(tiny_model(), SteeringPlan(gate, additions))


def test_nan_opens_the_gate() -> None:
    """A model that overflows at the gate's layer is steered, not let through."""
    case = make_case()
    layer = case.model.model.layers[1]
    handle = layer.register_forward_hook(lambda module, inputs, output: spoilt(output, case.batch()))
    bare = case.logits()
    try:
        with case.guard() as guard:
            steered = case.logits()
            decisions = guard.decisions
    finally:
        handle.remove()
    assert decisions[3].score != decisions[3].score
    assert [decision.open for decision in decisions] == [True, False, True, True]
    assert torch.equal(steered[1], bare[1])


def spoilt(stream: Tensor, batch: dict[str, Tensor]) -> Tensor:
    if stream.shape[1] == batch["input_ids"].shape[1]:
        stream = stream.clone()
        stream[3, -1, 0] = torch.nan
    return stream


@pytest.mark.parametrize("opens", [(False,) * 4, (True, False, True, False), (True,) * 4])
@pytest.mark.parametrize("late", [False, True])
def test_a_decoding_step_waits_for_nothing(opens: Any, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever moves a number to the host, called from this package's code, while decoding: never."""
    case = make_case(opens=opens, **({"reads": ((2, 0),), "steered": (0, 1)} if late else {}))
    embedding = case.model.model.embed_tokens
    with case.guard(), count_host_reads(embedding, monkeypatch) as counted:
        case.generate(max_new_tokens=8)
    prefill = 2 if late and any(opens) else 1
    assert counted.passes == 7 + prefill
    assert {number for number, _ in counted.reads} <= set(range(prefill + 1)), counted.reads
    assert counted.reads, "the count must include the one read of the prompt"


@pytest.mark.parametrize("mode", ["gate", "always", "never"])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 4}], ids=["whole", "chunks"])
@pytest.mark.parametrize("opens", [(False,) * 4, (True, False, True, False)])
def test_one_wait_a_prompt(
    opens: Any, options: dict[str, Any], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision crosses to the host once: at the gate's layer, where that spares the layers above it."""
    case = make_case(opens=opens)
    crossings = []
    original = Tensor.cpu

    def cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        caller = sys._getframe(1).f_code
        if caller.co_filename.endswith("batch_state.py"):
            crossings.append(caller.co_name)
        return original(self, *args, **kwargs)

    with case.guard(mode):
        monkeypatch.setattr(Tensor, "cpu", cpu)
        case.generate(max_new_tokens=8, **options)
    assert crossings == ["_spare_closed" if mode == "gate" else "end_pass"]


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 4}], ids=["whole", "chunks"])
@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_a_closed_batch_is_handed_on(
    positions: Positions, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an equal tensor, the same one, of the prompt as well; and nobody asks what to steer."""
    case = make_case(opens=(False,) * 4, positions=positions)
    monkeypatch.setattr(PromptScope, "steered_columns", None)
    returned: list[Any] = []
    received: list[Any] = []
    layers = case.model.model.layers
    handles = [layers[2].register_forward_hook(lambda m, i, output: returned.append(output))]
    with case.guard():
        handles.append(layers[3].register_forward_pre_hook(lambda m, inputs: received.append(inputs[0])))
        case.generate(**options)
    for handle in handles:
        handle.remove()
    assert len(returned) == (8 if options else 6)
    assert all(mine is theirs for mine, theirs in zip(returned, received, strict=True))


@pytest.mark.parametrize("row", [0, 1])
def test_a_missing_steer_hook(row: int) -> None:
    """Told where a row is open, in the prompt already; closed rows have no use for it."""
    case = make_case()
    bare = case.logits(rows=[row])
    with case.guard():
        case.model.model.layers[2]._forward_hooks.clear()
        if case.opens[row]:
            with pytest.raises(SteeringError, match="without the guard's hooks"):
                case.model(**case.batch(rows=[row]))
        else:
            assert torch.equal(case.logits(rows=[row]), bare)


def test_gradients_flow_through_the_addition() -> None:
    """Nothing is detached or written in place: training through a guard is possible."""
    case = make_case()
    batch = case.batch(rows=[0])
    with case.guard():
        case.model(**batch).logits.sum().backward()
    gradient = case.model.model.embed_tokens.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    case.model.zero_grad()


def test_mamba_has_another_kind_of_cache() -> None:
    """A state without a length: decoding works, and a new turn on top of it is refused."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=320, state_size=4, pad_token_id=0)
    model = MambaForCausalLM(config).eval()
    case = make_case(model=model, lengths=(8, 8, 8, 8), steered=(1, 2))
    bare = case.logits()
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        assert torch.equal(case.generate(use_cache=False), case.generate())
        with torch.no_grad():
            state = case.model(case.batch()["input_ids"], use_cache=True).cache_params
        with pytest.raises(SteeringError, match="does not count the tokens"):
            case.model(case.batch()["input_ids"], cache_params=state, use_cache=True)
    for row in range(4):
        assert torch.equal(steered[row], bare[row]) is not case.opens[row]
    late = make_case(model=model, lengths=(8, 8, 8, 8), reads=((2, 0),), steered=(0,))
    with late.guard(), pytest.raises(SteeringError, match="cannot take replayed rows"):
        late.generate()


def test_other_rows_do_not_matter_to_a_decision() -> None:
    """Twice the same prompt in one batch: twice the same score, to the bit."""
    case = make_case(lengths=(9, 9, 9, 9))
    twice = Case(case.model, [case.prompts[row] for row in (0, 1, 0, 1, 2, 0)], case.plan, ())
    with case.guard() as guard:
        twice.generate()
        scores = [decision.score for decision in guard.decisions]
    assert scores[0] == scores[2] == scores[5]
    assert scores[1] == scores[3]
