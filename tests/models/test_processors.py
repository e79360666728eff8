"""Vision-language models from a folder: model and processor, where torchvision is missing too."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from inferaligner.errors import InputError, ModelLoadError
from inferaligner.models.fingerprint import fingerprint_tokenizer
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats, render_chat, template_suffix
from inferaligner.prompts.images import ImagePrompt
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from tests.support.tiny_vision import VISION_FAMILIES, picture, prompts, save_vision, tiny_vision


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_folder_gives_model_and_processor(family: str, tmp_path: Path) -> None:
    kept = save_vision(family, tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded.model) is type(kept.model)
    assert type(loaded.processor).__name__ == type(kept.processor).__name__
    assert loaded.reader is loaded.processor and loaded.processor.tokenizer is loaded.tokenizer
    assert encode_chats(loaded.reader, prompts()) == encode_chats(kept.reader, prompts())
    assert loaded.tokenizer.padding_side == "left"


def test_text_is_the_same_tokens_through_either(tmp_path: Path) -> None:
    loaded = tiny_vision("llava")
    assert encode_chats(loaded.tokenizer, ["Hi", "Ho"]) == encode_chats(loaded.processor, ["Hi", "Ho"])
    assert template_suffix(loaded.tokenizer) == template_suffix(loaded.processor)
    assert fingerprint_tokenizer(loaded.tokenizer) == fingerprint_tokenizer(loaded.processor)


def test_a_template_that_takes_parts_alone_gets_parts() -> None:
    """The templates of LLaVA and others leave out a text that does not come as a part."""
    loaded = tiny_vision("llava")
    assert "kestrel" not in loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "kestrel"}], tokenize=False
    )
    assert "kestrel" in render_chat(loaded.reader, "kestrel", system="Be brief.")
    assert "Be brief." in render_chat(loaded.reader, "kestrel", system="Be brief.")


def test_text_in_company_of_pictures_is_the_same_tokens() -> None:
    for family in VISION_FAMILIES:
        reader = tiny_vision(family).reader
        asked = prompts()
        assert list(encode_chats(reader, asked)[0]) == list(encode_chats(reader, [asked[0]])[0])


def test_placeholders_in_the_text_are_refused() -> None:
    loaded = tiny_vision("llava")
    with pytest.raises(InputError, match="1 placeholders for pictures"):
        encode_chats(loaded.reader, ["What is <image> this?"])
    with pytest.raises(InputError, match="has 1 pictures, but its rendering has 2"):
        encode_chats(loaded.reader, [ImagePrompt("What is <image> this?", (picture(),))])


def test_a_model_without_eyes_says_so() -> None:
    with pytest.raises(InputError, match="vision-language"):
        encode_chats(tiny_tokenizer(), [ImagePrompt("What is this?", (picture(),))])


def test_a_folder_without_a_processor_reads_text(tmp_path: Path) -> None:
    loaded = tiny_vision("llava")
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    assert found.processor is None and found.reader is found.tokenizer


def test_a_language_model_has_no_processor(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path).processor is None


def test_a_broken_processor_is_told(tmp_path: Path) -> None:
    save_vision("llava", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(ModelLoadError, match=r"The processor in .* cannot be read"):
        load_model(tmp_path)


def test_a_given_template_is_the_processors_too(tmp_path: Path) -> None:
    save_vision("llava", tmp_path / "model")
    template = CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>helper")
    loaded = load_model(tmp_path / "model", chat_template=template)
    assert loaded.processor.chat_template == loaded.tokenizer.chat_template == template
    assert render_chat(loaded.reader, "Hi").endswith("helper\n")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here")
def test_without_torchvision_videos_are_left_out(tmp_path: Path) -> None:
    save_vision("qwen2_5_vl", tmp_path)
    loaded: Any = load_model(tmp_path)
    assert loaded.processor.video_processor is None
    shutil.rmtree(tmp_path)


def test_named_templates_of_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = save_vision("llava", tmp_path)
    own = kept.processor.chat_template
    for old in tmp_path.glob("*.jinja"):
        old.unlink()
    # The processor is shared with other tests.
    monkeypatch.setattr(kept.processor, "chat_template", {"default": own, "other": "O" + own})
    kept.processor.save_pretrained(tmp_path)
    for given, expected in ((None, own), ("other", "O" + own)):
        loaded = load_model(tmp_path, chat_template=given)
        assert loaded.processor.chat_template == loaded.tokenizer.chat_template == expected
        assert render_chat(loaded.reader, "Hi") == render_chat(loaded.tokenizer, "Hi")
