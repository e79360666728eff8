"""Training rows are tokenised as prompts will be, with the loss on answers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reproduction.chat_rows import token_rows
from reproduction.corpora.corpus import Row
from reproduction.dry_run import _tokenizer
from reproduction.recipe import TEMPLATES

from inferaligner.errors import InputError
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import tiny_tokenizer

_ROW = Row("How do I bake bread?", "Mix flour and water, then wait.", "")


def _parts(row: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    ids, mask = row["input_ids"], row["completion_mask"]
    start = mask.index(1)
    assert mask == [0] * start + [1] * (len(ids) - start)
    return ids[:start], ids[start:]


def test_the_prompt_is_what_fit_sees_and_the_answer_ends_its_turn() -> None:
    tokenizer = tiny_tokenizer()
    asked, said = _parts(token_rows(tokenizer, [_ROW], 512)[0])
    assert asked == encode_chats(tokenizer, [_ROW.prompt])[0]
    assert said[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(said[:-1]) == _ROW.answer


def test_a_long_answer_is_cut_and_a_long_prompt_left_out() -> None:
    tokenizer = tiny_tokenizer()
    room = len(encode_chats(tokenizer, [_ROW.prompt])[0])
    (row,) = token_rows(tokenizer, [_ROW, Row(_ROW.prompt * 50, "Yes.", "")], room + 3)
    asked, said = _parts(row)
    assert (len(asked), len(said)) == (room, 3)
    assert tokenizer.eos_token_id not in said
    assert token_rows(tokenizer, [_ROW], room) == []


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_every_shipped_template_can_be_trained_with(template: Path) -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = template.read_text("utf-8")
    asked, said = _parts(token_rows(tokenizer, [_ROW], 512)[0])
    assert asked == encode_chats(tokenizer, [_ROW.prompt])[0]
    told = tokenizer.decode(said)
    assert _ROW.answer in told
    ends = {"</s>", "<|im_end|>", "<|eot_id|>"}  # of gemma's too: a base model has never ended a turn
    assert tokenizer.convert_ids_to_tokens(said[-1]) in ends


def test_a_template_that_renders_finished_exchanges_otherwise_is_refused() -> None:
    tokenizer: Any = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ messages | length }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(InputError, match="renders the prompt of a finished exchange differently"):
        token_rows(tokenizer, [_ROW], 512)
