"""Chat templates as a setting: read from a file or from text, then brought to terms with the tokenizer.

A template decides how a prompt begins (with exactly one <bos>) and where an answer ends.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inferaligner.errors import InputError
from inferaligner.places import expanded

# Tokens with which chat templates end a turn.
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>")


def read_template(template: str | os.PathLike[str]) -> str:
    """The text of a chat template.

    Args:
        template: a path to a jinja file, or the template itself (recognised by its ``{{`` or ``{%``).

    Raises:
        InputError: there is no such file, or the text is not a jinja template.
    """
    text = os.fspath(template)
    source = "the given text"
    if "{{" not in text and "{%" not in text:
        source = text
        try:
            text = expanded(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(
                f"The chat template {source!r} is neither a readable file nor a jinja template ({error}). "
                "Give the path of a .jinja file, or the template itself."
            ) from error
    try:
        # The extensions are those with which transformers renders chats.
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"The chat template from {source} is not valid jinja: {error.message} in line {error.lineno}. "
            "Correct it there."
        ) from error
    if "message" not in text:
        raise InputError(
            f"The chat template from {source} never mentions the messages, so every prompt would be rendered "
            "the same. Expected a jinja template that loops over `messages`."
        )
    return text


def ensure_one_bos(tokenizer: Any) -> None:
    """Let rendered chats begin with <bos> when the tokenizer puts one in front of plain text.

    A rendered chat is tokenised without special tokens, because templates write <bos> themselves. Those
    from GGUF files and from users' own files often do not, and a model such as gemma writes noise without
    it. A template that writes <bos> is left alone, so there is never a second one.
    """
    bos = tokenizer.bos_token_id
    template = tokenizer.chat_template
    if bos is None or not isinstance(template, str) or tokenizer("a").input_ids[:1] != [bos]:
        return
    try:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except jinja2.TemplateError as error:
        raise InputError(
            f"The chat template cannot render a single message of a user: {error}. Correct the template."
        ) from error
    if tokenizer(chat, add_special_tokens=False).input_ids[:1] != [bos]:
        tokenizer.chat_template = "{{ bos_token }}" + template


def stop_at_turn_ends(model: Any, tokenizer: Any, more: Sequence[int] = ()) -> None:
    """Let ``model.generate`` stop where the chat template ends a turn, besides where it stops already.

    A template that comes from elsewhere than the model's own settings may end turns with a token that
    those settings do not name; the model would go on to write both sides of the conversation.

    Args:
        model: its generation settings are changed.
        tokenizer: with the chat template that is in use.
        more: ids of further end tokens.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    known = settings.eos_token_id
    ids = list(known) if isinstance(known, (list, tuple)) else [] if known is None else [known]
    template, vocabulary = tokenizer.chat_template, tokenizer.get_vocab()
    ids += more
    ids += [vocabulary[end] for end in _TURN_ENDS if end in (template or "") and end in vocabulary]
    if ids:
        ids = list(dict.fromkeys(ids))
        settings.eos_token_id = ids if len(ids) > 1 else ids[0]
