"""How the token ids of a prompt end: as the chat template ends a prompt, in a begun answer, or as raw text.

A gate is fitted on the tokens with which the template closes the user's turn and opens the assistant's (the
*generation prompt*). A prompt may continue after them: with an empty think block, which the template itself
writes when thinking is switched off, or with an answer that the caller has begun. A raw text has no
generation prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inferaligner.prompts.chat import TEMPLATE_ERRORS, for_template, render_chat, template_suffix
from inferaligner.prompts.encoding import Reader, template_of, tokenizer_of

EndKind = Literal["template", "begun", "raw"]
"""`template`: as the chat template ends a prompt. `begun`: after that, in a begun answer. `raw`: without the
template's generation prompt."""


@dataclass(frozen=True)
class PromptEnd:
    """How a prompt ends.

    Attributes:
        kind: See `EndKind`.
        turn_end: The number of tokens up to the end of the generation prompt; None in raw text, and if the
            prompt itself ends there.
    """

    kind: EndKind
    turn_end: int | None = None


AS_THE_TEMPLATE = PromptEnd("template")


@dataclass(frozen=True)
class TemplateEnds:
    """The token ids with which a chat template ends a prompt.

    Attributes:
        suffix: The tokens from the end of the user's turn to the end of the generation prompt.
        merged: Tokens that a tokenizer may write in place of the suffix's last one, where the answer's first
            characters merge with it (two newlines are often one token).
        closings: Tokens that the template itself may write after the suffix, such as an empty think block.
        turns: Special tokens of the suffix; after it, they begin another turn.
    """

    suffix: tuple[int, ...]
    merged: frozenset[int] = frozenset()
    closings: tuple[tuple[int, ...], ...] = ()
    turns: frozenset[int] = frozenset()

    @classmethod
    def of(cls, reader: Reader) -> TemplateEnds:
        """Reads the ends from the chat template in use.

        Raises:
            ChatTemplateMissingError: The reader has no chat template.
            InputError: The template cannot be rendered.
        """
        suffix = tuple(template_suffix(reader))
        tokenizer = tokenizer_of(reader)
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        return cls(
            suffix,
            _merged(tokenizer, suffix[-1]) if suffix and suffix[-1] not in special else frozenset(),
            _closings(reader, len(suffix)),
            frozenset(token for token in suffix if token in special),
        )

    def end_of(self, ids: Sequence[int]) -> PromptEnd:
        """How a prompt ends, by its token ids without padding."""
        end = self._turn_end(ids)
        if end is None:
            return PromptEnd("raw")
        behind, whole = tuple(ids[end:]), ids[end - 1] == self.suffix[-1]
        if whole and not behind:
            return AS_THE_TEMPLATE
        if whole and behind in self.closings:
            return PromptEnd("template", end)
        # An answer that closes its turn and begins another one without the template's end: the end of the
        # last complete turn says nothing about the text that follows.
        if not self.turns.isdisjoint(behind):
            return PromptEnd("raw")
        return PromptEnd("begun", end)

    def _turn_end(self, ids: Sequence[int]) -> int | None:
        size = len(self.suffix)
        if not size:
            return None
        whole, last = tuple(ids), self.suffix[-1]
        for end in range(len(whole), size - 1, -1):
            # The last occurrence: earlier ones close earlier turns.
            fits = whole[end - 1] == last or whole[end - 1] in self.merged
            if fits and whole[end - size : end - 1] == self.suffix[:-1]:
                return end
        return None


def end_objection(end: PromptEnd, *, judges_begun: bool) -> str | None:
    """Why a server that takes chats alone refuses a prompt with this end.

    Args:
        end: How the prompt ends.
        judges_begun: Whether the server's aligner has a gate for begun answers.

    Returns:
        A message for the client; None if the server takes the prompt.
    """
    if end.kind == "begun" and not judges_begun:
        return (
            "The prompt continues after the end that the model's chat template writes, with a begun answer, "
            "and the aligner of this server was fitted without a gate for begun answers. Leave the begun "
            "answer out; the operator can fit the aligner again, or allow such prompts with --prompts any."
        )
    if end.kind == "raw":
        return (
            "The prompt does not end as the model's chat template ends it, where the guidance gate reads. "
            "Use the chat endpoint with the model's own template and add_generation_prompt; the operator can "
            "allow raw text with --prompts any."
        )
    return None


def _merged(tokenizer: Any, token: int) -> frozenset[int]:
    """The longer tokens that begin with the text of `token`."""
    pieces = _pieces(tokenizer)
    text = pieces.get(token)
    if not text:
        return frozenset()
    return frozenset(each for each, piece in pieces.items() if piece != text and piece.startswith(text))


@functools.lru_cache(maxsize=4)
def _pieces(tokenizer: Any) -> dict[int, str]:
    return {int(token): str(piece) for piece, token in tokenizer.get_vocab().items()}


def _closings(reader: Reader, size: int) -> tuple[tuple[int, ...], ...]:
    """The tokens that the template writes after its generation prompt when thinking is off, if any."""
    tokenizer = tokenizer_of(reader)
    word = "kestrel"
    usual = render_chat(reader, word)
    try:
        without = str(
            tokenizer.apply_chat_template(
                for_template(reader, [{"role": "user", "content": word}]),
                chat_template=template_of(reader),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )
    except TEMPLATE_ERRORS:
        return ()
    if without == usual or not without.startswith(usual):
        return ()
    encode = functools.partial(tokenizer, add_special_tokens=False)
    before, after = list(encode(usual)["input_ids"]), list(encode(without)["input_ids"])
    return (tuple(after[len(before) :]),) if after[: len(before)] == before else ()
