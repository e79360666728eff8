"""Log probabilities in the two formats of OpenAI's endpoints, with token ids as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.server.engine.sampling import TokenLogprob

_IMPOSSIBLE = -9999.0  # what OpenAI writes for a probability of zero; JSON has no infinity


class TokenText:
    """Formats tokens and their log probabilities; special tokens are written out."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, tokens: Sequence[int]) -> str:
        """The text of several tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def chat(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The format of chats: `{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`."""
        return {"content": [self._chat_token(one) for one in logprobs], "refusal": None}

    def completion(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
        """The format of raw completions: lists `tokens`, `token_logprobs`, `top_logprobs`, `text_offset`.

        `offset` is the position of the first token in the text of the choice.
        """
        tokens = [self.text([one.token]) for one in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if one.logprob is None else _finite(one.logprob) for one in logprobs],
            "top_logprobs": [self._top(one) for one in logprobs],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        values: dict[str, float] = {}
        # Likeliest first: of two tokens with the same text, the likelier one stays.
        for token, value in (*one.top, (one.token, one.logprob)):
            values.setdefault(self.text([token]), _finite(value))
        return values

    def _chat_token(self, one: TokenLogprob) -> dict[str, Any]:
        return {
            **self._entry(one.token, one.logprob or 0.0),
            "top_logprobs": [self._entry(token, value) for token, value in one.top],
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text([token])
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}


def _finite(logprob: float) -> float:
    return max(logprob, _IMPOSSIBLE)
