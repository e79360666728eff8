from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors

from inferaligner.errors import InputError
from inferaligner.models.fingerprint import fingerprint_tokenizer
from inferaligner.models.templates import (
    ensure_one_bos,
    read_choice,
    read_template,
    stop_at_turn_ends,
    use_template,
)
from inferaligner.prompts.chat import render_chat
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_tokenizer

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


@pytest.mark.parametrize("tag", ["{% generation %}", "{%- generation %}", "{%- generation -%}"])
def test_the_generation_tag_of_transformers_is_valid(tag: str) -> None:
    end = tag.replace("generation", "endgeneration")
    template = (
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}" + tag + "{{ m.content }}"
    )
    template += end + "{% endfor %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = read_template(template)
    assert render_chat(tokenizer, "Hello") == "Hello"


def test_functions_of_transformers_are_there() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = read_template(
        "{{ strftime_now('%Y')[:1] }} {{ messages | tojson(indent=1) }}"
        "{% if messages | length > 9 %}{{ raise_exception('too many') }}{% endif %}"
    )
    assert render_chat(tokenizer, "<b>").startswith("2 [") and '"<b>"' in render_chat(tokenizer, "<b>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",  # the sandbox lets templates change nothing
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception('no') }}{{ messages }}",
        "{{ messages[7].content + 'a' }}",
        "{{ 1 // 0 }}{{ messages }}",
        "{{ messages | tojson(nothing=1) }}",
        "{{ ''.index('a') }}{{ messages }}",
        "{{ namespace(a=1).b.c }}{{ messages }}",
    ],
)
def test_templates_that_cannot_render_say_so(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = read_template(template)
    with pytest.raises(InputError, match=r"refused a user turn: .*\. Give another template"):
        render_chat(tokenizer, "Hello")


def test_byte_order_mark_of_a_file_is_no_part_of_the_template(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8-sig")
    assert read_template(file) == CHAT_TEMPLATE


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


NAMED = {"default": CHAT_TEMPLATE, "rag": PLAIN, "tool_use": "T" + PLAIN}


@pytest.mark.parametrize(
    ("given", "templates", "expected"),
    [
        (None, NAMED, CHAT_TEMPLATE),
        ("rag", NAMED, PLAIN),
        ("default", NAMED, CHAT_TEMPLATE),
        ("default", PLAIN, PLAIN),
        (None, PLAIN, PLAIN),
        (None, None, None),
        ("X" + PLAIN, NAMED, "X" + PLAIN),
    ],
)
def test_one_template_of_several_is_used(given: str | None, templates: Any, expected: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    use_template(tokenizer, None if given is None else read_choice(given), "tiny")
    assert tokenizer.chat_template == expected


def test_several_templates_without_a_default_are_listed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"tool_use": PLAIN, "rag": PLAIN}
    with pytest.raises(InputError, match=r"tiny has 2 named chat templates \(rag, tool_use\).*NAME"):
        use_template(tokenizer, None, "tiny")
    with pytest.raises(InputError, match=r"The tokenizer has 2 named chat templates \(rag, tool_use\)"):
        fingerprint_tokenizer(tokenizer)
    use_template(tokenizer, read_choice("rag"), "tiny")
    assert tokenizer.chat_template == PLAIN


@pytest.mark.parametrize(
    ("templates", "has"), [(NAMED, "default, rag, tool_use"), (PLAIN, "default"), (None, "no chat template")]
)
def test_a_name_that_the_tokenizer_does_not_have(templates: Any, has: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    with pytest.raises(InputError, match=f"--chat-template chatml .*tiny has .*{has}"):
        use_template(tokenizer, read_choice("chatml"), "tiny")


def test_a_name_goes_before_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rag", "mine"):
        Path(name).write_text("file" + PLAIN)
    Path("tool_use").mkdir()
    picked = {given: read_choice(given).pick(NAMED, "tiny") for given in ("rag", "mine", "./rag", "tool_use")}
    filed = "file" + PLAIN
    assert picked == {"rag": PLAIN, "mine": filed, "./rag": filed, "tool_use": "T" + PLAIN}


@pytest.mark.parametrize("given", ["none.jinja", "a/b", "", "a\0b", "x" * 5000])
def test_what_cannot_be_a_name_must_be_a_file(given: str) -> None:
    with pytest.raises(InputError, match="neither a readable file nor a jinja template"):
        read_choice(given)


def test_bos_is_put_in_front_of_templates_from_elsewhere_alone() -> None:
    tokenizer = with_bos(PLAIN)
    use_template(tokenizer, read_choice("default"), "tiny")
    assert tokenizer.chat_template == PLAIN, "the model's own template is left as it is"
    use_template(tokenizer, read_choice("X" + PLAIN), "tiny")
    assert tokenizer.chat_template == "{{ bos_token }}X" + PLAIN
