import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from inferaligner.errors import InputError, MissingExtraError, ModelLoadError, UnknownArchitectureError
from inferaligner.models import loading
from inferaligner.models.anatomy import dissect
from inferaligner.models.builtin import builtin_names
from inferaligner.models.fingerprint import fingerprint_model, fingerprint_tokenizer
from inferaligner.models.loading import load_model
from tests.support.odd_model import OddConfig, OddForCausalLM
from tests.support.tiny_adapter import save_adapter
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import CHAT_TEMPLATE, FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_folder(llama_folder: Path) -> None:
    loaded = load_model(str(llama_folder), device="cpu")
    assert loaded.spec == str(llama_folder)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.bfloat16, "auto keeps the checkpoint's dtype"
    assert loaded.model.device == torch.device("cpu")
    assert loaded.tokenizer.padding_side == "left"
    original = tiny_model("llama").to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=IDS).logits, original(input_ids=IDS).logits)
    assert fingerprint_tokenizer(loaded.tokenizer) == fingerprint_tokenizer(tiny_tokenizer())


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("odd")])
def test_every_family_is_loaded_whole(family: str, tmp_path: Path) -> None:
    original = FAMILIES[family]()
    original.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert fingerprint_model(loaded.model) == fingerprint_model(original)
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=IDS).logits, original(input_ids=IDS).logits)


def test_dtype_and_device_are_options(llama_folder: Path) -> None:
    assert load_model(llama_folder, dtype="float32", device="cpu").model.dtype == torch.float32
    assert load_model(llama_folder, dtype=torch.float16, device="cpu").model.dtype == torch.float16
    assert load_model(llama_folder, device="meta").model.device == torch.device("meta")
    for device in ("balanced", "auto-map"):
        model = load_model(llama_folder, device=device).model
        with torch.no_grad():
            assert model(input_ids=IDS.to(model.device)).logits.shape == (1, 10, 320)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int3"}, {"device": "tpu9"}, {"quantization": "int2"}, {"chat_template": "none.jinja"}],
)
def test_options_are_checked_before_anything_is_loaded(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loading, "resolve", lambda _spec: pytest.fail("resolved before the options were read")
    )
    with pytest.raises(InputError):
        load_model("org/name", **options)


def test_missing_pad_token_becomes_eos(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert loaded.tokenizer.pad_token == "<|im_end|>"
    assert loaded.tokenizer.padding_side == "left"


def test_model_without_pad_token_generates_in_batches(tmp_path: Path) -> None:
    model = tiny_model("llama", pad_token_id=None)
    model.generation_config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").model.generation_config.pad_token_id == 0


def test_no_token_to_pad_with(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match="neither a pad nor an eos token"):
        load_model(folder, device="cpu")


def test_chat_template_from_file(llama_folder: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m['content'] }}]<|im_end|>{% endfor %}"
    (tmp_path / "my.jinja").write_text(template)
    for given in (template, tmp_path / "my.jinja"):
        loaded = load_model(llama_folder, device="cpu", chat_template=given)
        assert loaded.tokenizer.chat_template == template
        assert loaded.model.generation_config.eos_token_id == 2
    assert load_model(llama_folder, device="cpu").tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("separate_files", [True, False])
def test_one_of_several_named_templates(folder: Path, separate_files: bool) -> None:
    tokenizer = tiny_tokenizer()
    rag = "R" + CHAT_TEMPLATE
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "rag": rag}
    for old in folder.glob("*.jinja"):
        old.unlink()
    tokenizer.save_pretrained(folder, save_jinja_files=separate_files)
    assert (folder / "additional_chat_templates" / "rag.jinja").is_file() == separate_files
    plain, named = load_model(folder, device="cpu"), load_model(folder, device="cpu", chat_template="rag")
    assert (plain.tokenizer.chat_template, named.tokenizer.chat_template) == (CHAT_TEMPLATE, rag)
    tokenizer.chat_template = rag
    assert fingerprint_tokenizer(named.reader) == fingerprint_tokenizer(tokenizer)
    with pytest.raises(InputError, match="has the templates default, rag"):
        load_model(folder, device="cpu", chat_template="tool_use")


def test_no_template_is_named_default(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    for old in folder.glob("*.jinja"):
        old.unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"named chat templates \(tool_use\)"):
        load_model(folder, device="cpu")
    loaded = load_model(folder, device="cpu", chat_template="tool_use")
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE


def test_template_of_an_adapter_without_a_tokenizer(adapter_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (folder / "chat_template.jinja").write_text("A" + CHAT_TEMPLATE)
    assert load_model(folder, device="cpu").tokenizer.chat_template == "A" + CHAT_TEMPLATE
    tiny_tokenizer().save_pretrained(folder)
    assert load_model(folder, device="cpu").tokenizer.chat_template == CHAT_TEMPLATE


def test_adapter_is_merged(adapter_folder: Path, llama_folder: Path) -> None:
    base, adapted = (load_model(place, device="cpu") for place in (llama_folder, adapter_folder))
    assert type(adapted.model) is type(base.model)
    assert dissect(adapted.model).path == "model.layers"
    with torch.no_grad():
        one, other = adapted.model(input_ids=IDS).logits, base.model(input_ids=IDS).logits
    assert not torch.allclose(one, other, atol=1e-2)
    assert adapted.spec == str(adapter_folder)


def test_adapter_stays_beside_quantised_weights(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_weights = loading._load_weights

    def quantised(*args: Any) -> Any:
        model = load_weights(*args)
        model.is_quantized = True
        return model

    monkeypatch.setattr(loading, "_load_weights", quantised)
    loaded = load_model(adapter_folder, device="cpu")
    assert isinstance(loaded.model, PeftModel)
    assert not loaded.model.training
    assert dissect(loaded.model).depth == 4


def test_adapter_with_more_tokens_than_its_base(tmp_path: Path, llama_folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    larger = tiny_model("llama")
    larger.resize_token_embeddings(len(tokenizer))
    save_adapter(tmp_path, base=str(llama_folder), model=larger)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"has 322 tokens, .* have 320 rows.*were not saved"):
        load_model(tmp_path, device="cpu")


def test_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERALIGNER_CACHE", str(tmp_path / "cache"))
    original = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", original, chat_template=CHAT_TEMPLATE)
    loaded = load_model(file, device="cpu", dtype="float32")
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
    assert loaded.tokenizer.padding_side == "left"
    weights = loaded.model.state_dict()
    assert weights.keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(weights[name], tensor.to(torch.bfloat16).float()), name


def test_adapter_on_a_gguf_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERALIGNER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), chat_template=CHAT_TEMPLATE)
    save_adapter(tmp_path / "adapter", base=str(file))
    assert type(load_model(tmp_path / "adapter", device="cpu").model) is type(tiny_model("llama"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="There is no model at"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_model(tmp_path)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def model_info(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(ModelLoadError, match=r"could not be reached \(no route to host\)"):
        load_model("org/name")


def test_unknown_builtin() -> None:
    with pytest.raises(ModelLoadError, match=", ".join(f"builtin:{name}" for name in builtin_names())):
        load_model("builtin:gpt9")


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelLoadError, match="holds a model and no tokenizer"):
        load_model(folder, device="cpu")


def test_package_that_a_checkpoint_needs(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*_: Any, **__: Any) -> Any:
        raise ImportError("this tokenizer needs sentencepiece")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(MissingExtraError, match="not installed: this tokenizer needs sentencepiece"):
        load_model(llama_folder, device="cpu")


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"The tokenizer in .* cannot be read"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"in .* cannot be read"):
        load_model(folder, device="cpu")


def test_cut_off_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"The model in .* cannot be read: SafetensorError"):
        load_model(folder, device="cpu")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"The model in .* cannot be read"):
        load_model(folder, device="cpu")


def test_missing_tensor_is_not_made_up(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"1 tensors are missing, such as model\.layers\.2\.mlp\.up_proj"
    ):
        load_model(folder, device="cpu")


def test_weights_of_another_width(folder: Path) -> None:
    change_json(folder / "config.json", hidden_size=64)
    with pytest.raises(ModelLoadError, match=r"The model in .* cannot be read"):
        load_model(folder, device="cpu")


def test_unknown_architecture(folder: Path) -> None:
    change_json(folder / "config.json", model_type="llama99")
    with pytest.raises((ModelLoadError, UnknownArchitectureError), match="llama99"):
        load_model(folder, device="cpu")


def test_encoder_decoder(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=320, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnknownArchitectureError, match="encoder-decoder model"):
        load_model(tmp_path, device="cpu")


def test_quantised_checkpoint_is_not_quantised_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_quantization", lambda *_: object())
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelLoadError, match="is quantised already, and quantization='int8'"):
        load_model(folder, device="cpu", quantization="int8")


@pytest.fixture
def remote_folder(tmp_path: Path) -> Path:
    """A model with code of its own, as it would come from the hub."""
    folder = tmp_path / "remote"
    OddForCausalLM(OddConfig(layout="layers")).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    source = Path(__file__).parents[1] / "support" / "odd_model.py"
    shutil.copy(source, folder / "modeling_odd.py")
    change_json(
        folder / "config.json",
        auto_map={
            "AutoConfig": "modeling_odd.OddConfig",
            "AutoModelForCausalLM": "modeling_odd.OddForCausalLM",
        },
    )
    return folder


def test_remote_code_needs_trust(
    remote_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match="If you trust it, load it with trust_remote_code"):
        load_model(remote_folder, device="cpu")
    checked: list[Any] = []
    monkeypatch.setattr(loading, "check_stream", checked.append)
    loaded = load_model(remote_folder, device="cpu", trust_remote_code=True)
    assert dissect(loaded.model).path == "model.layers"
    assert checked == [loaded.model]


def test_remote_code_with_tokens_before_rows(remote_folder: Path) -> None:
    source = remote_folder / "modeling_odd.py"
    text = source.read_text()
    before = "return (hidden, None) if self.as_tuple else hidden"
    assert before in text
    text = text.replace(before, "return hidden.transpose(0, 1)")
    before = "hidden = output[0] if isinstance(output, tuple) else output"
    assert before in text
    source.write_text(text.replace(before, "hidden = output.transpose(0, 1)"))
    with pytest.raises(UnknownArchitectureError, match=r"returned \[3, 2, 32\]"):
        load_model(remote_folder, device="cpu", trust_remote_code=True)


@pytest.mark.real
def test_built_in_model() -> None:
    loaded = load_model("builtin:smollm2-135m")
    assert (dissect(loaded.model).depth, dissect(loaded.model).width) == (30, 576)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer.chat_template is not None
