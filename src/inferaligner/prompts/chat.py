"""From a user's prompt to the token ids that a model sees.

Every module that reads activations gets its token ids from `encode_chats`, so that "the last token of the
prompt" always means the same token: the last one of the chat template's generation prompt. This holds for
prompts with pictures too: pictures stand before the user's text, and the template's own tokens come last.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError

from inferaligner.errors import ChatTemplateMissingError, InputError, PromptTooLongError
from inferaligner.prompts.encoding import (
    Reader,
    check_placeholders,
    encode_seen,
    seen_inputs,
    template_of,
    tokenizer_of,
)
from inferaligner.prompts.images import Picture, Prompt, pictures_of, text_of

# Placeholders for the user's text where only the template around it matters. Two different words, so that
# text of the template is never mistaken for the user's.
_MARKERS = ("kestrel", "marmalade")

# Errors of rendering a chat: a template may run any expression, such as 1 // 0, ''.index('a') or 'a' + 1.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

# Names of the longest input in configurations; transformers maps most other names to the first one.
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def render_chat(reader: Reader, prompt: Prompt, *, system: str | None = None) -> str:
    """Renders one user turn with the chat template, generation prompt included.

    Args:
        reader: The tokenizer, or the processor of a vision-language model.
        prompt: The user's turn.
        system: A system prompt that goes before it.

    Returns:
        The text up to the first token of the answer.

    Raises:
        ChatTemplateMissingError: The reader has no chat template.
        InputError: The template refuses these turns.
    """
    turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": turn_content(prompt)})
    return render_turns(reader, turns)


def turn_content(prompt: Prompt) -> str | list[dict[str, str]]:
    """The content of a user turn: a text, or one part for each picture and then the text."""
    images = [{"type": "image"} for _ in pictures_of(prompt)]
    return [*images, {"type": "text", "text": text_of(prompt)}] if images else text_of(prompt)


def render_turns(reader: Reader, turns: Sequence[dict[str, Any]]) -> str:
    """Renders a conversation with the chat template, generation prompt included.

    Raises:
        ChatTemplateMissingError: The reader has no chat template.
        InputError: The template refuses these turns.
    """
    template = template_of(reader)
    if not template:
        raise ChatTemplateMissingError(
            "The tokenizer has no chat template, so there is no defined last prompt token. "
            "Give one with --chat-template FILE (a Jinja template), or use the model's chat tokenizer."
        )
    tokenizer = tokenizer_of(reader)
    try:
        return _rendered(tokenizer, template, for_template(reader, turns))
    except TEMPLATE_ERRORS as error:
        system = turns[0]["role"] == "system"
        raise InputError(
            f"The tokenizer's chat template refused {'a system prompt and ' if system else ''}a user turn: "
            f"{error}. {'Leave the system prompt out, or give' if system else 'Give'} another template with "
            "--chat-template FILE."
        ) from error


def for_template(reader: Reader, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns in the form that the template takes: some templates take a text only as a list of parts."""
    if not _takes_parts_alone(tokenizer_of(reader), template_of(reader) or ""):
        return list(turns)
    return [{**turn, "content": _parts(turn["content"])} for turn in turns]


def tokens_after_answer(reader: Reader) -> list[int]:
    """The token ids that the chat template writes after an assistant's turn.

    Empty where the template refuses a conversation that ends with the assistant.
    """
    tokenizer, template = tokenizer_of(reader), template_of(reader) or ""
    question, answer = _MARKERS
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        text = _rendered(tokenizer, template, for_template(reader, turns), answer_follows=False)
    except TEMPLATE_ERRORS:
        return []
    _, _, after = text.rpartition(answer)
    return list(tokenizer(after, add_special_tokens=False)["input_ids"])


def _rendered(
    tokenizer: Any, template: str, turns: Sequence[dict[str, Any]], *, answer_follows: bool = True
) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(turns), chat_template=template, tokenize=False, add_generation_prompt=answer_follows
        )
    )


@functools.lru_cache(maxsize=16)
def _takes_parts_alone(tokenizer: Any, template: str) -> bool:
    """Whether a template drops a text that is not in a list of parts, as some templates for images do."""
    (mark, _), kept = _MARKERS, []
    for content in (mark, _parts(mark)):
        try:
            kept.append(mark in _rendered(tokenizer, template, [{"role": "user", "content": content}]))
        except TEMPLATE_ERRORS:
            kept.append(False)
    return kept == [False, True]


def _parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def encode_chats(
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    system: str | None = None,
    max_length: int | Sequence[int] | None = None,
) -> list[list[int]]:
    """Renders prompts and returns their token ids, without padding.

    Args:
        reader: The tokenizer, or the processor of a vision-language model.
        prompts: At least one prompt.
        system: A system prompt that goes before each of them.
        max_length: The largest number of tokens, for all prompts or one number for each.

    Returns:
        One list of ids per prompt. If any prompt has pictures, all of them are `SeenTokens`, which hold
        their image tokens.

    Raises:
        PromptTooLongError: A prompt has more tokens. Prompts are never cut: a cut prompt would end on another
            token than the one that the guidance gate was fitted on.
        InputError: There are no prompts, or pictures that the reader cannot read.
        ChatTemplateMissingError: The reader has no chat template.
    """
    rendered = [render_chat(reader, prompt, system=system) for prompt in prompts]
    if not rendered:
        raise InputError("No prompts were given; at least one is needed.")
    pictures = [pictures_of(prompt) for prompt in prompts]
    if any(pictures):
        encoded = cast("list[list[int]]", encode_seen(reader, rendered, pictures))
    else:
        check_placeholders(reader, rendered, [0] * len(rendered))
        # The template writes the special tokens itself; adding them again would double <bos>.
        encoded = tokenizer_of(reader)(rendered, add_special_tokens=False)["input_ids"]
    if max_length is not None:
        limits = [max_length] * len(encoded) if isinstance(max_length, int) else max_length
        for number, (ids, allowed) in enumerate(zip(encoded, limits, strict=True), start=1):
            if len(ids) > allowed:
                start = text_of(prompts[number - 1])[:60].replace("\n", " ")
                raise PromptTooLongError(
                    f"Prompt {number} ({start!r}…) has {len(ids)} tokens, but the model reads at most "
                    f"{allowed}. Shorten or drop it; prompts are never cut."
                )
    return encoded


def pictures_in(turns: Sequence[dict[str, Any]]) -> int:
    """The number of pictures in a conversation."""
    parts = [part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]]
    return sum(part["type"] == "image" for part in parts)


def inputs_of_turns(
    reader: Reader, turns: Sequence[dict[str, Any]], pictures: Sequence[Picture] = ()
) -> Mapping[str, Any]:
    """The model's inputs for one conversation, generation prompt included.

    Args:
        reader: The tokenizer or processor.
        turns: The conversation, with one part of the type `image` for each picture.
        pictures: The pictures of all turns, in their order.

    Returns:
        Keyword arguments of the model's forward, one row.
    """
    rendered = render_turns(reader, turns)
    if pictures:
        return seen_inputs(encode_seen(reader, [rendered], [pictures]), "left")
    check_placeholders(reader, [rendered], [0])
    return cast(
        "Mapping[str, Any]", tokenizer_of(reader)([rendered], add_special_tokens=False, return_tensors="pt")
    )


def template_suffix(reader: Reader) -> list[int]:
    """The token ids that the template writes after the user's text, the same for every prompt.

    For ChatML: end-of-turn, newline, start-of-turn, "assistant", newline. The first one closes the user's
    turn; a gate may read it as well as the last one.
    """
    first, second = encode_chats(reader, _MARKERS)
    shared = 0
    while shared < min(len(first), len(second)) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    return first[len(first) - shared :]


def context_length(model_config: object) -> int | None:
    """The largest number of tokens that the model reads; None if its configuration has no limit."""
    getter = getattr(model_config, "get_text_config", None)
    config = getter() if callable(getter) else model_config
    lengths = (getattr(config, name, None) for name in _LENGTH_NAMES)
    return next((int(length) for length in lengths if length), None)
