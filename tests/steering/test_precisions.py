"""Golden in every dtype, through PEFT, quantised, and dispatched by accelerate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.steering.guard import Guard
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model

ONE_PASS: dict[str, Any] = {"reads": ((1, 0),), "steered": (1, 2)}
REPLAY: dict[str, Any] = {"reads": ((2, 0),), "steered": (0, 1, 3)}
PLANS = pytest.mark.parametrize("plan", [ONE_PASS, REPLAY], ids=["one", "late"])


def check(case: Case) -> None:
    bare = case.logits()
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
    for row in case.closed_rows:
        assert torch.equal(steered[row], bare[row])
    for row in case.open_rows:
        assert not torch.allclose(steered[row, 0].float(), bare[row, 0].float(), atol=1e-2)
    assert torch.equal(case.logits(), bare)


@PLANS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, plan: dict[str, Any]) -> None:
    case = make_case(model=tiny_model().to(dtype), **plan)
    check(case)
    with torch.no_grad(), case.guard():
        assert case.model(**case.batch()).logits.dtype == dtype


def test_scores_are_float32_sums_of_what_the_layer_returned() -> None:
    """A bfloat16 model is scored as `record_activations` and `GuidanceGate.scores` score it."""
    from inferaligner.method.activations import record_activations

    case = make_case(model=tiny_model().to(torch.bfloat16), reads=((1, 0), (2, 1)), steered=(2,))
    recorded = record_activations(case.model, case.prompts, layers=[1, 2], offsets=(0, 1), batch_tokens=1)
    expected = case.plan.gate.scores(recorded.values, recorded.layers, recorded.offsets)
    with case.guard() as guard:
        for row in range(4):
            case.generate(rows=[row])
            assert guard.decisions[0].score == pytest.approx(float(expected[row]), abs=1e-5)


def lora(seed: int = 1) -> Any:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            target_modules=["q_proj", "v_proj", "down_proj"],
            init_lora_weights=False,
        )
        return peft.get_peft_model(tiny_model(), settings).eval()


@PLANS
@pytest.mark.parametrize("given", ["wrapper", "model"])
def test_peft(given: str, plan: dict[str, Any]) -> None:
    """generate() and direct calls through the wrapper; the adapter stays active."""
    adapted = lora()
    case = make_case(model=adapted.get_base_model(), strength=3.0, **plan)
    batch: dict[str, Any] = case.batch()
    settings: dict[str, Any] = {**batch, "do_sample": False, **case.settings}
    bare, bare_logits = adapted.generate(**settings), adapted(**batch).logits
    assert not torch.equal(bare_logits, tiny_model()(**batch).logits), "the adapter must matter"
    with Guard(adapted if given == "wrapper" else case.model, case.plan) as guard, torch.no_grad():
        tokens = adapted.generate(**settings)
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        logits = adapted(**batch).logits
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        assert torch.equal(logits, case.model(**batch).logits)
        assert torch.equal(adapted.base_model(**batch).logits, logits)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(**batch).logits, logits, atol=1e-3)
    for row in range(4):
        assert torch.equal(logits[row], bare_logits[row]) is not case.opens[row]
        assert torch.equal(tokens[row], bare[row]) is not case.opens[row]
    assert torch.equal(adapted.generate(**settings), bare)
    assert not case.model._forward_hooks
    assert not case.model._forward_pre_hooks


def test_a_wrapper_that_bypasses_the_model_is_refused() -> None:
    """Some wrappers (PEFT's older versions) call `model.forward`, which runs no hooks of the model."""
    adapted = lora()
    case = make_case(model=adapted.get_base_model())
    adapted.base_model.forward = lambda *args, **kwargs: case.model.forward(*args, **kwargs)
    with Guard(adapted, case.plan):
        with pytest.raises(SteeringError, match="outside a call of the guarded model"):
            adapted(**case.batch())
        assert adapted.generate(**case.batch(), max_new_tokens=2).shape == (4, 12)


@pytest.mark.extras
@PLANS
def test_torchao_int8_weights(plan: dict[str, Any]) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-extras")
    model = tiny_model().to(torch.bfloat16)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert type(model.model.layers[0].mlp.up_proj.weight.data) is not torch.Tensor
    check(make_case(model=model, **plan))


@pytest.mark.extras
@PLANS
def test_bitsandbytes_int8_weights(plan: dict[str, Any]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="not installed: make test-extras")
    model = tiny_model().to(torch.bfloat16)
    for layer in model.model.layers:
        old = layer.mlp.up_proj
        new = bitsandbytes.nn.Linear8bitLt(
            old.in_features, old.out_features, bias=False, has_fp16_weights=False
        )
        new.load_state_dict(old.state_dict())
        layer.mlp.up_proj = new.to("cpu")
    check(make_case(model=model, **plan))


@PLANS
@pytest.mark.parametrize("how", ["dispatched", "offloaded to disk", "offloaded to memory"])
def test_accelerate(how: str, plan: dict[str, Any], tmp_path: Path) -> None:
    """accelerate puts a forward of its own on every module; layers that rest elsewhere are fetched."""
    accelerate = pytest.importorskip("accelerate")
    reference = make_case(**plan)
    with reference.guard():
        expected = reference.logits()
    model = tiny_model()
    if how == "offloaded to memory":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        last = "disk" if how == "offloaded to disk" else "cpu"
        places = {
            "model.embed_tokens": "cpu",
            "model.rotary_emb": "cpu",
            "model.norm": "cpu",
            "lm_head": "cpu",
        }
        places |= {f"model.layers.{layer}": "cpu" if layer < 2 else last for layer in range(4)}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    resting = {parameter.device.type for parameter in model.parameters()}
    assert ("meta" in resting) is how.startswith("offloaded")
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    assert any(forwards.values()), "accelerate must be in place"
    case = Case(model, reference.prompts, reference.plan, reference.opens)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    check(case)
    with case.guard():
        assert torch.equal(case.logits(), expected)
    assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards
