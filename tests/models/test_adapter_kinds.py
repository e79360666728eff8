"""Every kind of adapter that PEFT has: loaded exactly, or refused. A kind that PEFT adds fails here first."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora
from safetensors.torch import load_file, save_file

from inferaligner.errors import InferAlignerError, MissingExtraError, ModelLoadError
from inferaligner.models import peft_adapters
from inferaligner.models.fingerprint import fingerprint_model
from inferaligner.models.loading import load_model
from tests.support.tiny_models import tiny_model, tiny_tokenizer

IDS = torch.arange(3, 19)[None]

# Settings with which a kind can be put onto a tiny Llama; {} where target modules are enough.
SETTINGS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2},
    "ADALORA": {"total_step": 10, "target_r": 2},
    "ADAMSS": {},
    "BEFT": {},
    "BOFT": {"boft_block_size": 8},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 2},
    "DELORA": {"r": 2},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {},
    "GLORA": {"r": 2},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 2},
    "HRA": {"r": 2},
    "IA3": {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LILY": {"r": 2},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8},
    "OSF": {},
    "PEANUT": {"r": 2},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [4, 7]},
    "UNILORA": {"save_indices": True},
    "VBLORA": {"vector_length": 8, "num_vectors": 20, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}  # fmt: skip
REFUSED = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE",
           "ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW")  # fmt: skip
BESIDE = ("BEFT", "LILY", "ADAMSS")

# Kinds that need a package which may be missing where the tests run.
PACKAGES = {"ADAMSS": "sklearn"}
KINDS = [pytest.param(kind, marks=pytest.mark.extras) if kind in PACKAGES else kind for kind in SETTINGS]

# Kinds whose weights have the same shapes whatever the width: nothing in the adapter contradicts the base.
WIDTHLESS = ("FOURIERFT", "PSOFT", "WAVEFT")


def save_kind(
    kind: str, folder: Path, *, adapted: Any = None, base: Any = None, tokenizer: Any = None, **settings: Any
) -> torch.Tensor:
    """Write an adapter of random weights with its base and return the logits of PEFT's unmerged model.

    Args:
        adapted: the model that it is made on.
        base: the model that is written as its base, by default the same.
    """
    original = tiny_model("llama") if adapted is None else adapted
    (original if base is None else base).save_pretrained(folder / "base")
    (tokenizer or tiny_tokenizer()).save_pretrained(folder / "base")
    chosen = {"target_modules": ["q_proj", "v_proj"], **SETTINGS[kind], **settings}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]](task_type="CAUSAL_LM", **chosen)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(original, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.peft_config["default"].base_model_name_or_path = str(folder / "base")
        model.save_pretrained(folder / "adapter", save_embedding_layers="auto")
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def check_exact(folder: Path, expected: torch.Tensor) -> Any:
    loaded = load_model(folder / "adapter", device="cpu", dtype="float32").model
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    return loaded


def needs(kind: str) -> None:
    if (package := PACKAGES.get(kind)) is not None and find_spec(package) is None:
        pytest.skip(f"{kind} needs {package}, which is not installed: make test-extras")


def test_every_kind_of_peft_is_known() -> None:
    kinds = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert kinds == set(SETTINGS) | set(REFUSED), (
        "PEFT has other kinds than these tests: put a new one here and in models/peft_adapters.py"
    )
    assert set(REFUSED) == set(peft_adapters._REFUSED)
    assert set(SETTINGS) - set(BESIDE) == peft_adapters._MERGED


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_exactly(kind: str, tmp_path: Path) -> None:
    needs(kind)
    expected = save_kind(kind, tmp_path)
    loaded = check_exact(tmp_path, expected)
    assert isinstance(loaded, peft.PeftModel) == (kind in BESIDE)
    assert fingerprint_model(loaded) == fingerprint_model(tiny_model("llama"))
    with torch.no_grad():
        base = tiny_model("llama")(input_ids=IDS).logits
    assert (base - expected).abs().max() > 1e-3, "the adapter must do something"
    assert not loaded.training


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, tmp_path: Path) -> None:
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}
    (tmp_path / "adapter_config.json").write_text(str(config).replace("'", '"'))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ModelLoadError, match=f"is of type {kind}, which .*; expected one that changes weights"
    ):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_on_tied_weights(kind: str, target: str, tmp_path: Path) -> None:
    needs(kind)
    options: dict[str, Any] = {"target_modules": [target]}
    if kind == "IA3":
        options["feedforward_modules"] = []
    try:
        expected = save_kind(kind, tmp_path, adapted=tiny_model("llama", tie_word_embeddings=True), **options)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
        pytest.skip(f"PEFT has no {kind} for {target}: {str(error)[:80]}")
    if (kind, target) == ("OSF", "embed_tokens"):  # PEFT adapts it and writes a file without any weights
        with pytest.raises(ModelLoadError, match="holds no weights of a layer"):
            load_model(tmp_path / "adapter", device="cpu")
        return
    check_exact(tmp_path, expected)


BASES = {
    "fewer layers": {"num_hidden_layers": 3},
    "more layers": {"num_hidden_layers": 6},
    "wider": {"hidden_size": 64},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_base_of_another_shape(kind: str, base: str, tmp_path: Path) -> None:
    needs(kind)
    save_kind(kind, tmp_path, base=tiny_model("llama", **BASES[base]))
    if (base == "wider" and kind in WIDTHLESS) or (kind == "TRAINABLE_TOKENS" and base != "wider"):
        load_model(tmp_path / "adapter", device="cpu")
        return
    with pytest.raises(ModelLoadError, match="does not fit its base model: "):
        load_model(tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_base_with_other_modules(kind: str, tmp_path: Path) -> None:
    needs(kind)
    save_kind(kind, tmp_path, base=tiny_model("gpt2"))
    with pytest.raises(InferAlignerError):
        load_model(tmp_path / "adapter", device="cpu")


def test_kind_whose_file_names_no_layer(tmp_path: Path) -> None:
    save_kind("UNILORA", tmp_path, save_indices=False)
    with pytest.raises(ModelLoadError, match="holds no weights of a layer"):
        load_model(tmp_path / "adapter", device="cpu")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_: Any, **__: Any) -> Any:
        raise ImportError("scikit-learn is required for AdaMSS.")

    save_kind("LORA", tmp_path)
    monkeypatch.setattr(peft.PeftModel, "from_pretrained", from_pretrained)
    with pytest.raises(MissingExtraError, match=r"type LORA, which needs .*: scikit-learn is required"):
        load_model(tmp_path / "adapter", device="cpu")


# Settings of LoRA beyond rank and modules, with the base that they are for.
LORA: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dora": ({"use_dora": True}, {}),
    "rslora": ({"use_rslora": True, "lora_alpha": 3}, {}),
    "pissa": ({"init_lora_weights": "pissa"}, {}),
    "olora": ({"init_lora_weights": "olora"}, {}),
    "gaussian": ({"init_lora_weights": "gaussian"}, {}),
    "eva": ({"init_lora_weights": "eva", "eva_config": lora.EvaConfig()}, {}),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, {}),
    "mica": ({"init_lora_weights": "mica"}, {}),
    "patterns": ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 5}}, {}),
    "some layers": ({"layers_to_transform": [1, 3]}, {}),
    "all biases": ({"bias": "all"}, {"family": "qwen2"}),
    "biases of LoRA's modules": ({"bias": "lora_only"}, {"family": "qwen2"}),
    "bias of its own": ({"lora_bias": True}, {}),
    "bias of its own on a bias": ({"lora_bias": True}, {"family": "qwen2"}),
    "layer_replication": ({"layer_replication": [(0, 3), (1, 4)]}, {}),
    "modules_to_save": ({"modules_to_save": ["lm_head", "embed_tokens"]}, {}),
    "tied modules_to_save": ({"modules_to_save": ["lm_head"]}, {"tie_word_embeddings": True}),
    "both modules_to_save": (
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"tie_word_embeddings": True},
    ),
    "ensure_weight_tying": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"tie_word_embeddings": True},
    ),
    "trainable tokens": ({"trainable_token_indices": [4, 7]}, {}),
    "tied trainable tokens": ({"trainable_token_indices": [4, 7]}, {"tie_word_embeddings": True}),
    "convolutions": ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, {"family": "gpt2"}),
    "experts": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, {"family": "qwen3_moe"}),
    "router": ({"target_modules": ["gate"]}, {"family": "mixtral"}),
    "tied dora": ({"use_dora": True, "target_modules": ["lm_head"]}, {"tie_word_embeddings": True}),
    "qalora": ({"use_qalora": True, "qalora_group_size": 8}, {}),
    "kasa": ({"kasa_config": lora.KasaConfig()}, {}),
    "monteclora": ({"monteclora_config": lora.MontecloraConfig()}, {}),
    "velora": ({"velora_config": lora.VeloraConfig()}, {}),
    "bdlora": (
        {
            "use_bdlora": lora.BdLoraConfig(
                target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2
            )
        },
        {},
    ),
}


@pytest.mark.parametrize("name", LORA)
def test_settings_of_lora(name: str, tmp_path: Path) -> None:
    settings, base = LORA[name]
    expected = save_kind("LORA", tmp_path, adapted=tiny_model(**base), **settings)
    check_exact(tmp_path, expected)


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "loftq", "lora_ga"])
def test_start_that_cannot_be_repeated(init: str, tmp_path: Path) -> None:
    """These change the base's weights when training starts, by chance or from data that is elsewhere."""
    save_kind("LORA", tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": init}))
    with pytest.raises(
        ModelLoadError, match=f"init_lora_weights={init}.* path_initial_model_for_weight_conv"
    ):
        load_model(tmp_path / "adapter", device="cpu")


def test_mixture_of_adapters(tmp_path: Path) -> None:
    save_kind("LORA", tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "arrow_config": {"top_k": 1}}))
    with pytest.raises(ModelLoadError, match=r"is a router \(arrow_config\)"):
        load_model(tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize("safe", [True, False])
def test_both_formats_of_weights_are_checked(safe: bool, tmp_path: Path) -> None:
    save_kind("LORA", tmp_path, base=tiny_model("llama", num_hidden_layers=3))
    folder = tmp_path / "adapter"
    if not safe:
        weights = load_file(folder / "adapter_model.safetensors")
        torch.save(weights, folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="no place for 4 of its weights"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rows", "to"), [(320, 325), (320, 384), (384, 320)])
def test_resized_embeddings(rows: int, to: int, tied: bool, tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=rows, tie_word_embeddings=tied)
    larger = tiny_model("llama", vocab_size=rows, tie_word_embeddings=tied)
    larger.resize_token_embeddings(to)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(max(0, min(to - 320, 5)))])
    expected = save_kind("LORA", tmp_path, adapted=larger, base=base)
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = check_exact(tmp_path, expected)
    assert loaded.get_input_embeddings().weight.shape[0] == fingerprint_model(loaded).vocab_size == to
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied


def test_resized_embeddings_of_which_one_was_not_saved(tmp_path: Path) -> None:
    larger = tiny_model("llama")
    larger.resize_token_embeddings(384)
    save_kind("LORA", tmp_path, adapted=larger, base=tiny_model("llama"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights["base_model.model.lm_head.weight"]
    save_file(weights, file)
    with pytest.raises(ModelLoadError, match=r"384 rows .* 320, and it does not hold the output embeddings"):
        load_model(tmp_path / "adapter", device="cpu")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_a_merge_is_no_objection(dtype: str, tmp_path: Path) -> None:
    expected = save_kind("LORA", tmp_path)
    loaded = load_model(tmp_path / "adapter", device="cpu", dtype=dtype).model
    with torch.no_grad():
        difference = loaded(input_ids=IDS).logits.float() - expected
    assert not isinstance(loaded, peft.PeftModel)
    assert difference.square().mean().sqrt() < 0.1 * expected.std()


def test_wrong_merge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were PEFT to merge a kind wrongly, as it does with weights that are shared."""
    save_kind(
        "LORA", tmp_path, adapted=tiny_model("llama", tie_word_embeddings=True), target_modules=["lm_head"]
    )
    monkeypatch.setattr(peft_adapters, "shares_weights", lambda _model: False)
    with pytest.raises(ModelLoadError, match="computes other logits than PEFT's model"):
        load_model(tmp_path / "adapter", device="cpu")


def test_adapter_on_shared_weights_can_be_guarded(tmp_path: Path) -> None:
    """One that stays beside its weights is steered and generates as a merged one does."""
    from inferaligner.method.gate import GateRead, GuidanceGate
    from inferaligner.models.generation import generate_answers
    from inferaligner.steering.guard import Guard
    from inferaligner.steering.plan import SteeringPlan

    expected = save_kind(
        "LORA",
        tmp_path,
        adapted=tiny_model("llama", tie_word_embeddings=True),
        target_modules=["lm_head", "q_proj"],
    )
    loaded = load_model(tmp_path / "adapter", device="cpu", dtype="float32")
    plan = SteeringPlan(
        GuidanceGate("test", (GateRead(1),), torch.ones(1, 32), 0.0), {2: torch.full((32,), 3.0)}
    )
    bare = [
        answer.tokens for answer in generate_answers(loaded.model, loaded.tokenizer, ["Hi"], max_new_tokens=8)
    ]
    answers = {}
    for decision in ("always", "never"):
        with Guard(loaded.model, plan, decision):
            told = generate_answers(loaded.model, loaded.tokenizer, ["Hi"], max_new_tokens=8)
            answers[decision] = [answer.tokens for answer in told]
    assert answers["never"] == bare != answers["always"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
