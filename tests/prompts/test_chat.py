from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, MptConfig

from inferaligner.errors import ChatTemplateMissingError, InputError, PromptTooLongError
from inferaligner.prompts.chat import context_length, encode_chats, render_chat, template_suffix
from tests.support.tiny_models import tiny_tokenizer

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_rendering(tokenizer: Any) -> None:
    assert render_chat(tokenizer, "Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render_chat(tokenizer, "Hi", system="Be brief.") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat(tokenizer, "Hi", system="") != render_chat(tokenizer, "Hi")


def test_tokens_are_those_of_the_rendered_text(tokenizer: Any) -> None:
    prompts = ["Hi", "How do I bake a loaf of bread?", "é ☃"]
    encoded = encode_chats(tokenizer, prompts, system="Be brief.")
    for prompt, ids in zip(prompts, encoded, strict=True):
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert ids == expected
        assert tokenizer.decode(ids) == render_chat(tokenizer, prompt, system="Be brief.")
    assert all(tokenizer.pad_token_id not in ids for ids in encoded)


def test_special_tokens_are_not_added_twice() -> None:
    """Tokenizers of Llama and Gemma add <bos> by themselves, and so do their templates."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert tokenizer("Hi")["input_ids"][0] == 1
    (ids,) = encode_chats(tokenizer, ["Hi"])
    assert ids.count(1) == 1


def test_no_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateMissingError, match="--chat-template"):
        render_chat(tokenizer, "Hi")
    with pytest.raises(ChatTemplateMissingError):
        encode_chats(tokenizer, ["Hi"])


def test_a_template_that_refuses_system_prompts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = GEMMA
    assert render_chat(tokenizer, "Hi") == "<|im_start|><|im_start|>Hi<|im_end|>"
    with pytest.raises(
        InputError, match=r"a system prompt and a user turn: System role not supported\. Leave"
    ):
        render_chat(tokenizer, "Hi", system="Be brief.")


def test_no_prompts(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="No prompts"):
        encode_chats(tokenizer, [])


def test_nothing_is_cut(tokenizer: Any) -> None:
    prompts = ["Hi", "How do I bake\na loaf of bread at home, and which flour should I choose for it?"]
    lengths = [len(ids) for ids in encode_chats(tokenizer, prompts)]
    assert encode_chats(tokenizer, prompts, max_length=max(lengths)) == encode_chats(tokenizer, prompts)
    with pytest.raises(
        PromptTooLongError, match=f"Prompt 2 .*How do I bake a loaf.* has {lengths[1]} tokens"
    ) as told:
        encode_chats(tokenizer, prompts, max_length=max(lengths) - 1)
    assert f"at most {max(lengths) - 1}" in str(told.value)


def test_suffix_of_the_template(tokenizer: Any) -> None:
    suffix = template_suffix(tokenizer)
    assert tokenizer.decode(suffix) == "<|im_end|>\n<|im_start|>assistant\n"
    for prompt in ("Hi", "anything else"):
        assert encode_chats(tokenizer, [prompt])[0][-len(suffix) :] == suffix


@pytest.mark.parametrize(
    ("template", "suffix"), [("{{ messages[0]['content'] }}", []), ("{{ 'the same' }}", None)]
)
def test_templates_at_the_edge(template: str, suffix: list[int] | None) -> None:
    """One that writes nothing after the text, and one that ignores it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    whole = encode_chats(tokenizer, ["x"])[0]
    assert template_suffix(tokenizer) == (whole if suffix is None else suffix)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (SimpleNamespace(n_positions=12), 12),
        (MptConfig(max_seq_len=33), 33),
        (SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=5)), 5),
        (SimpleNamespace(), None),
        (SimpleNamespace(max_position_embeddings=None), None),
    ],
)
def test_context_length(config: Any, length: int | None) -> None:
    assert context_length(config) == length
