"""Chat templates as a setting: reading one from a file or a text, and setting it on a tokenizer.

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

# Templates are named like files without their ending; an option with a dot or a slash is a path.
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)

# Tokens with which chat templates end a turn.
_TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>")


@dataclass(frozen=True)
class TemplateChoice:
    """A user's choice of a chat template.

    Attributes:
        given: The option's value.
        text: The template, if the value is a template or names a readable file; None for a name alone.
    """

    given: str
    text: str | None

    def pick(self, templates: Mapping[str, str], owner: str) -> str:
        """The tokenizer's template of the given name, else the given text.

        Args:
            templates: The tokenizer's own templates, by name.
            owner: The tokenizer in words, for messages.

        Raises:
            InputError: The tokenizer has no template of that name.
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
    """Reads a user's choice of a chat template, as far as that is possible without the tokenizer.

    Args:
        given: A path to a jinja file, the template itself, or the name of one of the tokenizer's templates
            (letters, digits, ``_`` and ``-``), which takes precedence over a file of that name.

    Raises:
        InputError: It is none of these.
    """
    text = os.fspath(given)
    if _NAME.fullmatch(text) and not Path(text).is_file():
        return TemplateChoice(text, None)
    return TemplateChoice(text, read_template(given))


def read_template(template: str | os.PathLike[str]) -> str:
    """Reads and checks the text of a chat template.

    Args:
        template: A path to a jinja file, or the template itself (recognised by its ``{{`` or ``{%``).

    Raises:
        InputError: The file does not exist, or transformers cannot compile the text as a jinja template.
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
        # Rendering no conversation compiles the template in the environment that will render prompts.
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
    """Sets one chat template on a reader: the chosen one, else its only one or the one named default.

    Args:
        reader: A tokenizer, or a processor; its tokenizer gets the template too.
        choice: The user's choice, if any.
        owner: The reader in words, for messages.

    Raises:
        InputError: No template has the chosen name; or none was chosen and none is named default; or a
            template from another source cannot render a message.
    """
    tokenizer = tokenizer_of(reader)
    # A processor's own template takes precedence over its tokenizer's.
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
    """Adds <bos> to the chat template if the tokenizer adds it to plain text and the template does not.

    A rendered chat is tokenised without special tokens, because templates write <bos> themselves. Templates
    from GGUF files and from users' files often do not, and a model such as gemma writes noise without it.

    Raises:
        InputError: The template cannot render a message.
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
    """Adds the chat template's end-of-turn tokens to the end tokens of ``model.generate``.

    A template from another source may end turns with a token that the model's generation settings do not
    name; the model would go on and write both sides of the conversation.

    Args:
        model: Its generation settings are changed.
        tokenizer: The tokenizer, with the chat template in use.
        more: Ids of further end tokens.
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
