"""Log probabilities as OpenAI's two endpoints write them: token ids become strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.server.engine.sampling import TokenLogprob

_IMPOSSIBLE = -9999.0  # what OpenAI writes for a probability of zero; JSON has no infinity


class TokenText:
    """Writes tokens one by one, special ones included."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, tokens: Sequence[int]) -> str:
        """Several tokens as one text."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def chat(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`."""
        return {"content": [self._chat_token(one) for one in logprobs], "refusal": None}

    def completion(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
        """Parallel lists `tokens`, `token_logprobs`, `top_logprobs`, `text_offset`."""
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
        found: dict[str, float] = {}
        # Likeliest first: of two tokens that are written alike, the first one stays.
        for token, value in (*one.top, (one.token, one.logprob)):
            found.setdefault(self.text([token]), _finite(value))
        return found

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
