from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors

from inferaligner.errors import InputError
from inferaligner.models.templates import ensure_one_bos, read_template, stop_at_turn_ends
from tests.models.tiny import CHAT_TEMPLATE, tiny_tokenizer

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "Hello"}]
BOS = 0


def with_bos(template: str) -> Any:
    """A tokenizer that puts <bos> (here <pad>, number 0) in front of plain text, as gemma's does."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", BOS)]
    )
    tokenizer.chat_template = template
    assert tokenizer("a").input_ids[0] == BOS
    return tokenizer


def chat_ids(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def test_template_from_file_and_from_text(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8")
    assert read_template(file) == read_template(str(file)) == read_template(CHAT_TEMPLATE) == CHAT_TEMPLATE


def test_extensions_of_transformers_are_valid() -> None:
    template = "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% generation %}{{ m }}"
    read_template(template + "{% endgeneration %}{% endfor %}")


@pytest.mark.parametrize("text", ["no-such-file.jinja", "chatml", "", "x" * 5000, "a\0b"])
def test_neither_file_nor_template(text: str) -> None:
    with pytest.raises(InputError, match="neither a readable file nor a jinja template"):
        read_template(text)


def test_broken_template_names_the_line() -> None:
    with pytest.raises(InputError, match=r"not valid jinja: .* in line 2"):
        read_template("{{ messages }}\n{% for m in messages %}")


def test_template_without_messages() -> None:
    with pytest.raises(InputError, match="never mentions the messages"):
        read_template("{{ bos_token }} hello")


def test_missing_bos_is_put_in_front_once() -> None:
    tokenizer = with_bos(PLAIN)
    assert BOS not in chat_ids(tokenizer)
    plain = tokenizer.apply_chat_template(CHAT, tokenize=False)
    ensure_one_bos(tokenizer)
    assert chat_ids(tokenizer)[0] == BOS
    assert chat_ids(tokenizer).count(BOS) == 1
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "<pad>" + plain
    ensure_one_bos(tokenizer)
    assert chat_ids(tokenizer).count(BOS) == 1, "a second call must change nothing"


@pytest.mark.parametrize("template", ["{{ bos_token }}" + PLAIN, "<pad>" + PLAIN])
def test_template_with_bos_is_left_alone(template: str) -> None:
    tokenizer = with_bos(template)
    ensure_one_bos(tokenizer)
    assert tokenizer.chat_template == template
    assert chat_ids(tokenizer).count(BOS) == 1


def test_tokenizer_that_adds_no_bos_is_left_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    ensure_one_bos(tokenizer)
    assert tokenizer.chat_template == PLAIN


def test_no_template_stays_none() -> None:
    tokenizer = with_bos(PLAIN)
    tokenizer.chat_template = None
    ensure_one_bos(tokenizer)
    assert tokenizer.chat_template is None


def test_template_that_cannot_render_a_user_message() -> None:
    tokenizer = with_bos("{{ raise_exception('only systems: ' + messages[0]['role']) }}")
    with pytest.raises(InputError, match="cannot render a single message of a user: only systems: user"):
        ensure_one_bos(tokenizer)


@pytest.mark.parametrize(
    ("known", "template", "more", "expected"),
    [
        (0, CHAT_TEMPLATE, [], [0, 2]),
        (2, CHAT_TEMPLATE, [], 2),
        ([0, 2], CHAT_TEMPLATE, [7], [0, 2, 7]),
        (None, CHAT_TEMPLATE, [], 2),
        (0, PLAIN, [], 0),
        (None, None, [], None),
        (0, "<end_of_turn>", [], 0),  # not in the vocabulary
    ],
)
def test_generation_stops_at_the_end_of_a_turn(
    known: Any, template: Any, more: list[int], expected: Any
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
    stop_at_turn_ends(model, tokenizer, more)
    assert model.generation_config.eos_token_id == expected
