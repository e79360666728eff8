import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from inferaligner.errors import InputError, UnknownArchitectureError
from inferaligner.models.fingerprint import (
    ModelFingerprint,
    TokenizerFingerprint,
    differences,
    fingerprint_model,
    fingerprint_tokenizer,
)
from tests.support.tiny_models import FAMILIES, VOCABULARY, WIDTH, tiny_model, tiny_tokenizer

LORA_TARGETS = {
    "gpt2": "c_attn",
    "gpt_neox": "query_key_value",
    "falcon_new": "query_key_value",
    "falcon_old": "query_key_value",
    "bloom": "query_key_value",
    "mpt": "Wqkv",
    "phi3": "qkv_proj",
    "odd_h": "mix",
    "odd_layers": "mix",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_same_in_every_dtype_and_under_peft(family: str) -> None:
    model = FAMILIES[family]()
    expected = fingerprint_model(model)
    assert (expected.width, expected.vocab_size, expected.heads) == (WIDTH, VOCABULARY, 4)
    assert fingerprint_model(model.to(torch.bfloat16)) == expected
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=[LORA_TARGETS.get(family, "q_proj")]))
    assert fingerprint_model(wrapped) == expected
    assert fingerprint_model(wrapped.merge_and_unload()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_another_width_is_another_fingerprint(family: str) -> None:
    expected = fingerprint_model(FAMILIES[family]())
    found = fingerprint_model(tiny_model(family, hidden_size=2 * WIDTH))
    assert found.shapes_sha256 != expected.shapes_sha256
    assert f"the width of the residual stream is {2 * WIDTH}, expected {WIDTH}" in differences(
        found, expected
    )


def test_random_weights_do_not_matter() -> None:
    assert fingerprint_model(tiny_model(seed=1)) == fingerprint_model(tiny_model(seed=2))


def test_families_differ() -> None:
    prints = {name: fingerprint_model(factory()) for name, factory in FAMILIES.items()}
    # The two layouts of the odd model have the same shapes; so has everything else of them.
    assert prints.pop("odd_h") == prints.pop("odd_layers")
    assert len(set(prints.values())) == len(prints)


@pytest.mark.parametrize(
    "change",
    [{"intermediate_size": 96}, {"num_key_value_heads": 4}, {"head_dim": 16}],
)
def test_shapes_beyond_the_named_ones_count(change: dict[str, int]) -> None:
    found, expected = fingerprint_model(tiny_model(**change)), fingerprint_model(tiny_model())
    [line] = differences(found, expected)
    assert "shapes of the decoder's weights differ" in line


def test_longer_context_by_rotary_positions_does_not_matter() -> None:
    longer = fingerprint_model(tiny_model(max_position_embeddings=512))
    assert longer == fingerprint_model(tiny_model())
    assert fingerprint_model(tiny_model("gpt2", n_positions=512)) != fingerprint_model(tiny_model("gpt2"))


def test_saved_and_loaded_model_has_the_same(llama_folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert fingerprint_model(loaded) == fingerprint_model(tiny_model("llama"))


def test_differences_of_models_in_plain_words() -> None:
    found = fingerprint_model(tiny_model("mistral", vocab_size=400))
    expected = fingerprint_model(tiny_model("llama"))
    assert differences(expected, expected) == []
    assert differences(found, expected) == [
        "the architecture is MistralForCausalLM, expected LlamaForCausalLM",
        "the model type is mistral, expected llama",
        "the number of decoder layers is 6, expected 4",
        "the vocabulary size is 400, expected 320",
    ]


def test_fingerprints_are_frozen_and_survive_json() -> None:
    model, tokenizer = fingerprint_model(tiny_model()), fingerprint_tokenizer(tiny_tokenizer())
    with pytest.raises(ValidationError):
        model.width = 3  # type: ignore[misc]
    assert ModelFingerprint.model_validate_json(model.model_dump_json()) == model
    assert TokenizerFingerprint.model_validate_json(tokenizer.model_dump_json()) == tokenizer
    with pytest.raises(ValidationError):
        ModelFingerprint.model_validate({**model.model_dump(), "extra": 1})


def test_model_without_config_is_refused() -> None:
    with pytest.raises(UnknownArchitectureError):
        fingerprint_model(torch.nn.Linear(2, 2))


def test_tokenizer_in_use_stays_the_same(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    expected = fingerprint_tokenizer(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=4, return_tensors="pt")
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"], "the backend must have changed"
    assert fingerprint_tokenizer(tokenizer) == expected
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.eos_token
    assert fingerprint_tokenizer(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint_tokenizer(AutoTokenizer.from_pretrained(tmp_path)) == expected


def change_template(tokenizer: Any) -> None:
    tokenizer.chat_template += " "


def drop_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None


def change_normaliser(tokenizer: Any) -> None:
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def add_token(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<new>"])


def change_eos(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|im_start|>"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            change_template,
            "the chat template is another one (--chat-template FILE or NAME chooses the one of the fit)",
        ),
        (drop_template, "the tokenizer has no chat template, and one was used"),
        (
            change_normaliser,
            "the tokenizer splits text differently (its vocabulary, merges or normaliser differ)",
        ),
        (add_token, "the tokenizer splits text differently (its vocabulary, merges or normaliser differ)"),
        (change_eos, "the eos token is 1, expected 2"),
    ],
)
def test_tokenizer_changes_are_told(change: Any, line: str) -> None:
    tokenizer = tiny_tokenizer()
    expected = fingerprint_tokenizer(tokenizer)
    change(tokenizer)
    assert differences(fingerprint_tokenizer(tokenizer), expected) == [line]


def test_template_that_was_not_there_before() -> None:
    tokenizer = tiny_tokenizer()
    with_template = fingerprint_tokenizer(tokenizer)
    tokenizer.chat_template = None
    assert differences(with_template, fingerprint_tokenizer(tokenizer)) == [
        "the tokenizer has a chat template, and none was used"
    ]


def test_fingerprints_of_two_kinds_are_not_compared() -> None:
    with pytest.raises(InputError, match="ModelFingerprint cannot be compared with a TokenizerFingerprint"):
        differences(fingerprint_model(tiny_model()), fingerprint_tokenizer(tiny_tokenizer()))
