"""Chat templates as a setting: read from a file or from text, then brought to terms with the tokenizer.

A template decides how a prompt begins (with exactly one <bos>) and where an answer ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from inferaligner.errors import InputError
from inferaligner.prompts.chat import TEMPLATE_ERRORS
from inferaligner.prompts.encoding import default_template, tokenizer_of
from inferaligner.storage.paths import expanded

# Names of templates are names of files without their ending; those with a dot or a slash are paths here.
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)

# Tokens with which chat templates end a turn.
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>")


@dataclass(frozen=True)
class TemplateChoice:
    """A chat template that a user asked for.

    Attributes:
        given: the option's value.
        text: the template, if the option's value is one or names a readable file; None for a name alone.
    """

    given: str
    text: str | None

    def pick(self, templates: Mapping[str, str], owner: str) -> str:
        """The template by the given name among a tokenizer's, else the given text.

        Args:
            templates: the tokenizer's own, by name.
            owner: whose they are, for messages.

        Raises:
            InputError: a name that the tokenizer does not have.
        """
        if self.given in templates:
            return templates[self.given]
        if self.text is not None:
            return self.text
        has = f"the templates {', '.join(sorted(templates))}" if templates else "no chat template"
        raise InputError(
            f"--chat-template {self.given} is neither a readable file nor a jinja template. {owner} has "
            f"{has}. Give the path of a .jinja file, the template itself, or the name of one that the "
            "tokenizer has."
        )


def read_choice(given: str | os.PathLike[str]) -> TemplateChoice:
    """What a user gave for a chat template, as far as it can be read without the tokenizer.

    Args:
        given: a path to a jinja file, the template itself, or the name of one of the tokenizer's templates
            (letters, digits, ``_`` and ``-``), which goes before a file of that name.

    Raises:
        InputError: it cannot be any of these.
    """
    text = os.fspath(given)
    if _NAME.fullmatch(text) and not Path(text).is_file():
        return TemplateChoice(text, None)
    return TemplateChoice(text, read_template(given))


def read_template(template: str | os.PathLike[str]) -> str:
    """The text of a chat template.

    Args:
        template: a path to a jinja file, or the template itself (recognised by its ``{{`` or ``{%``).

    Raises:
        InputError: there is no such file, or transformers cannot compile the text as a jinja template.
    """
    text = os.fspath(template)
    source = "the given text"
    if "{{" not in text and "{%" not in text:
        source = text
        try:
            # Some editors begin a file with a byte order mark, which must not begin every prompt.
            text = expanded(text).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise InputError(
                f"The chat template {source!r} is neither a readable file nor a jinja template ({error}). "
                "Give the path of a .jinja file, or the template itself."
            ) from error
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # Of no conversation: this compiles the template, in the very environment that will render it.
        render_jinja_template(conversations=[], chat_template=text)
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


def use_template(reader: Any, choice: TemplateChoice | None, owner: str) -> None:
    """Give a reader one chat template: the chosen one, else the one that it has or that is named default.

    Args:
        reader: a tokenizer, or a processor around one; both have the template afterwards.
        choice: what the user asked for, if anything.
        owner: whose templates the reader has, for messages.

    Raises:
        InputError: no template has the chosen name, or none was chosen and none is named default; or a
            template from elsewhere cannot render a message.
    """
    tokenizer = tokenizer_of(reader)
    # A processor's own template goes before its tokenizer's.
    templates = {**_by_name(tokenizer.chat_template), **_by_name(reader.chat_template)}
    if choice is None:
        tokenizer.chat_template = default_template(templates, owner) if templates else None
    else:
        tokenizer.chat_template = choice.pick(templates, owner)
        if tokenizer.chat_template not in templates.values():
            ensure_one_bos(tokenizer)
    reader.chat_template = tokenizer.chat_template


def _by_name(templates: str | Mapping[str, str] | None) -> dict[str, str]:
    if not templates:
        return {}
    return dict(templates) if isinstance(templates, Mapping) else {"default": templates}


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
    except TEMPLATE_ERRORS as error:
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
