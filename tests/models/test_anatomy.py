from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from inferaligner.errors import SteeringError, UnknownArchitectureError
from inferaligner.models import anatomy
from inferaligner.models.anatomy import (
    backbone,
    check_stream,
    dissect,
    input_device,
    register_layout,
    residual,
)
from tests.support.odd_model import OddConfig, OddForCausalLM
from tests.support.tiny_models import FAMILIES, VOCABULARY, WIDTH, tiny_model

PATHS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "falcon_new": "transformer.h",
    "falcon_old": "transformer.h",
    "bloom": "transformer.h",
    "mpt": "transformer.blocks",
    "gptj": "transformer.h",
    "odd_h": "transformer.h",
}
DEPTHS = {"mistral": 6, "gemma3": 6, "gpt_neox": 6, "bloom": 6}

IDS = torch.arange(3, 17).reshape(2, 7)


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "_layouts", dict(anatomy._layouts))


def layer_outputs(model: Any, layers: nn.ModuleList, **kwargs: Any) -> tuple[Any, list[Any]]:
    outputs: list[Any] = []
    handles = [layer.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for layer in layers]
    with torch.no_grad():
        result = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **kwargs)
    for handle in handles:
        handle.remove()
    return result, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_dissect_finds_the_decoder(family: str) -> None:
    model = FAMILIES[family]()
    found = dissect(model)
    assert (found.path, found.width, found.depth) == (
        PATHS.get(family, "model.layers"),
        WIDTH,
        DEPTHS.get(family, 4),
    )
    assert found.layers is model.get_submodule(found.path)


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_is_the_hidden_state_after_the_layer(family: str) -> None:
    model = FAMILIES[family]()
    found = dissect(model)
    result, outputs = layer_outputs(model, found.layers, output_hidden_states=True)
    assert len(outputs) == found.depth
    for index in range(found.depth - 1):  # the last hidden state is taken after the final norm
        assert torch.equal(residual(outputs[index]), result.hidden_states[index + 1])
    assert residual(outputs[-1]).shape == (2, 7, found.width)


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_runs_the_layers_without_the_head(family: str) -> None:
    model = FAMILIES[family]()
    layers = dissect(model).layers
    body = backbone(model)
    heads = [module for module in body.modules() if getattr(module, "out_features", None) == VOCABULARY]
    assert not heads
    result, outputs = layer_outputs(body, layers, use_cache=False)
    _, expected = layer_outputs(model, layers, use_cache=False)
    assert result.last_hidden_state.shape[:2] == IDS.shape
    assert getattr(result, "logits", None) is None
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(residual(ours), residual(theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_check_stream_accepts_every_family(family: str) -> None:
    check_stream(FAMILIES[family]())


def test_backbone_of_a_bare_body_is_the_body() -> None:
    body = tiny_model("llama").model
    assert backbone(body) is body
    assert dissect(body).path == "layers"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wrappers_are_seen_through(family: str) -> None:
    bare = tiny_model(family)
    layers = dissect(bare).layers
    target = {"llama": "q_proj", "gpt2": "c_attn"}[family]
    wrapped = peft.get_peft_model(
        bare, peft.LoraConfig(target_modules=[target], fan_in_fan_out=family == "gpt2")
    )
    found = dissect(wrapped)
    assert found.layers is layers
    assert wrapped.get_submodule(found.path) is layers
    assert backbone(wrapped) is bare.base_model

    compiled = torch.compile(wrapped)
    assert dissect(compiled).layers is layers
    assert compiled.get_submodule(dissect(compiled).path) is layers


def test_adapter_stays_active_in_the_backbone() -> None:
    bare = tiny_model("llama")
    with torch.no_grad():
        before = backbone(bare)(input_ids=IDS, use_cache=False).last_hidden_state
        wrapped = peft.get_peft_model(
            bare, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        )
        after = backbone(wrapped.eval())(input_ids=IDS, use_cache=False).last_hidden_state
    assert not torch.equal(before, after)


def test_prompt_learning_adapters_are_refused() -> None:
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(tiny_model("llama"), settings)
    for function in (dissect, backbone):
        with pytest.raises(SteeringError, match="virtual tokens"):
            function(wrapped)


def test_vision_tower_of_the_same_depth_is_not_taken() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text: Any = tiny_model("llama").config
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = LlavaConfig(
        text_config=LlamaConfig(**text.to_dict()),
        vision_config=vision,
        vision_feature_layer=-2,
        image_token_index=5,
    )
    model = LlavaForConditionalGeneration(config).eval()
    found = dissect(model)
    assert (found.path, found.width, found.depth) == ("model.language_model.layers", WIDTH, 4)
    body = backbone(model)
    assert body(input_ids=IDS + 3).last_hidden_state.shape == (2, 7, WIDTH)


def test_experts_as_many_as_layers_are_not_taken() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(4))
    assert dissect(model).path == "model.layers"


def test_several_candidates_are_refused_by_name() -> None:
    model = tiny_model("llama")
    model.other = nn.Module()
    model.other.stack = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(4))
    # transformers says which part is the decoder, so this is still certain ...
    assert dissect(model).path == "model.layers"
    # ... and inside that part it is not.
    model.model.stack = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(4))
    with pytest.raises(UnknownArchitectureError, match=r"model\.layers, model\.stack.*register_layout"):
        dissect(model)


def test_no_candidate_lists_what_is_there() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 9
    with pytest.raises(UnknownArchitectureError, match=r"9 decoder layers.*model\.layers \(4\).*\"llama\""):
        dissect(model)


def test_registered_layout_settles_it(layouts: None) -> None:
    class Named(OddForCausalLM):
        pass

    model = Named(OddConfig(layout="layers"))
    model.config.num_hidden_layers = 9
    with pytest.raises(UnknownArchitectureError):
        dissect(model)
    register_layout("Named", "model.layers")
    assert (dissect(model).path, dissect(model).depth) == ("model.layers", 4)


def test_registered_layout_goes_by_model_type_too(layouts: None) -> None:
    model = tiny_model("llama")
    model.model.stack = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(4))
    register_layout("llama", "model.layers")
    assert dissect(model).layers is model.model.layers


def test_wrong_registered_layout_is_an_error(layouts: None) -> None:
    register_layout("llama", "model.embed_tokens")
    with pytest.raises(UnknownArchitectureError, match=r"a Embedding; expected an nn.ModuleList"):
        dissect(tiny_model("llama"))
    register_layout("llama", "model.blocks")
    with pytest.raises(UnknownArchitectureError, match=r"missing; expected an nn.ModuleList"):
        dissect(tiny_model("llama"))


@pytest.mark.parametrize(("model_type", "path"), [("", "model.layers"), ("x", ""), ("x", "model..layers")])
def test_register_layout_checks_its_arguments(layouts: None, model_type: str, path: str) -> None:
    with pytest.raises(UnknownArchitectureError, match="expected a model type and a dotted path"):
        register_layout(model_type, path)


def test_encoder_decoder_is_refused() -> None:
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(UnknownArchitectureError, match="encoder-decoder"):
        dissect(T5ForConditionalGeneration(config))


def test_model_without_config_is_refused() -> None:
    with pytest.raises(UnknownArchitectureError, match="no `config`"):
        dissect(nn.Linear(2, 2))


def test_model_without_width_is_refused() -> None:
    model = tiny_model("odd_h")
    del model.config.hidden_size
    with pytest.raises(UnknownArchitectureError, match="width of the residual stream"):
        dissect(model)


def test_check_stream_refuses_tokens_before_rows() -> None:
    model = tiny_model("odd_layers")

    class Swapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.inner(hidden.transpose(0, 1) if hidden.shape[0] == 3 else hidden, mask).transpose(
                0, 1
            )

    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = Swapped(layer)
    with pytest.raises(
        UnknownArchitectureError, match=r"layer 0 .* returned \[3, 2, 32\].*expected \[2, 3, 32\]"
    ):
        check_stream(model)


def test_check_stream_leaves_no_hooks() -> None:
    model = tiny_model("llama")
    check_stream(model)
    assert all(not layer._forward_hooks for layer in dissect(model).layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "odd_h"])
def test_input_device_is_that_of_the_embeddings(family: str) -> None:
    model = tiny_model(family)
    assert input_device(model) == torch.device("cpu")
    dissect(model).layers.to("meta")  # layers elsewhere do not matter
    assert input_device(model) == torch.device("cpu")
    assert input_device(model.to("meta")) == torch.device("meta")


def test_input_device_of_offloaded_weights() -> None:
    from accelerate import cpu_offload

    model = tiny_model("llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.device == torch.device("meta")
    assert input_device(model) == torch.device("cpu")
    assert backbone(model)(input_ids=IDS).last_hidden_state.shape == (2, 7, WIDTH)
