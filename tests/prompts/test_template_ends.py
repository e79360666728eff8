"""Where a prompt's template hands over to the assistant, by token ids alone."""

from __future__ import annotations

from typing import Any

import pytest

from inferaligner.prompts.chat import encode_chats, render_chat
from inferaligner.prompts.template_ends import PromptEnd, TemplateEnds, end_objection
from tests.support.tiny_models import THINKING_TEMPLATE, tiny_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return tiny_tokenizer()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_chat_ends_as_the_template_ends_it(tokenizer: Any) -> None:
    ends = TemplateEnds.of(tokenizer)
    for ids in encode_chats(tokenizer, ["Why?", "Why is the sky blue?"]):
        assert ends.end_of(ids) == PromptEnd("template")


@pytest.mark.parametrize("begun", ["Sure, here is how you do it:", "{", "The answer is", " ", "<think>"])
def test_a_begun_answer_ends_behind_the_turn(tokenizer: Any, begun: str) -> None:
    ends, turn = TemplateEnds.of(tokenizer), encode_chats(tokenizer, ["Why?"])[0]
    assert ends.end_of([*turn, *ids_of(tokenizer, begun)]) == PromptEnd("begun", len(turn))


def test_the_last_turn_counts(tokenizer: Any) -> None:
    ends = TemplateEnds.of(tokenizer)
    first = render_chat(tokenizer, "Why?")
    both = first + "So.<|im_end|>\n" + render_chat(tokenizer, "And then?")
    assert ends.end_of(ids_of(tokenizer, both)) == PromptEnd("template")
    found = ends.end_of(ids_of(tokenizer, both + "Well"))
    assert found == PromptEnd("begun", len(ids_of(tokenizer, both)))


@pytest.mark.parametrize("text", ["Why is the sky blue?", "", "<|im_start|>user\nWhy?<|im_end|>\n"])
def test_raw_text_has_no_such_place(tokenizer: Any, text: str) -> None:
    assert TemplateEnds.of(tokenizer).end_of(ids_of(tokenizer, text)) == PromptEnd("raw")


@pytest.mark.parametrize(
    "behind",
    [
        "Sure.<|im_end|>\n<|im_start|>user\nAnd this?<|im_end|>\n<|im_start|>assistant",
        "Sure.<|im_end|>\n<|im_start|>user\nAnd this?",
        "Sure.<|im_end|>",
    ],
)
def test_a_begun_answer_that_opens_another_turn_is_raw(tokenizer: Any, behind: str) -> None:
    """The harmless turn before it would say nothing about the one that follows."""
    text = render_chat(tokenizer, "Hello") + behind
    assert TemplateEnds.of(tokenizer).end_of(ids_of(tokenizer, text)) == PromptEnd("raw")


def test_an_empty_think_block_of_the_template_is_its_end(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING_TEMPLATE
    ends = TemplateEnds.of(tokenizer)
    turn = encode_chats(tokenizer, ["Why?"])[0]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    without = ids_of(tokenizer, rendered)
    assert rendered.endswith("<think>\n\n</think>\n\n")
    assert ends.end_of(without) == PromptEnd("template", len(turn))
    assert ends.end_of([*without, *ids_of(tokenizer, "So")]) == PromptEnd("begun", len(turn))
    # Where the template does not write it, somebody else has begun the answer.
    other = TemplateEnds.of(tiny_tokenizer())
    assert other.closings == () and other.end_of(without) == PromptEnd("begun", len(turn))


def test_an_answer_that_begins_with_what_merges(tokenizer: Any) -> None:
    """Two newlines may be one token, which then stands in place of the suffix's last one."""
    ends = TemplateEnds.of(tokenizer)
    turn = encode_chats(tokenizer, ["Why?"])[0]
    joined = 9_999
    merged = TemplateEnds(ends.suffix, frozenset({joined}), (), ends.turns)
    assert merged.end_of([*turn[:-1], joined]) == PromptEnd("begun", len(turn))
    assert merged.end_of([*turn[:-1], joined, 40]) == PromptEnd("begun", len(turn))
    assert ends.end_of([*turn[:-1], joined, 40]) == PromptEnd("raw")


def test_which_tokens_merge_is_read_from_the_vocabulary(tokenizer: Any) -> None:
    tokenizer.add_tokens(["Ċfirst"])  # as a byte-level vocabulary writes a newline and a word
    (added,) = [t for piece, t in tokenizer.get_vocab().items() if piece == "Ċfirst"]
    assert added in TemplateEnds.of(tokenizer).merged


def test_what_a_server_of_chats_says() -> None:
    assert end_objection(PromptEnd("template"), judges_begun=False) is None
    assert end_objection(PromptEnd("begun", 5), judges_begun=True) is None
    assert "begun answer" in str(end_objection(PromptEnd("begun", 5), judges_begun=False))
    assert "chat template" in str(end_objection(PromptEnd("raw"), judges_begun=True))
