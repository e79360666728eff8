"""From logits to the next token of a row, with the row's own sampling settings and random numbers.

A row draws one number per token from its own seeded generator, so its answer does not depend on the other
rows of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

_HEAD = 1024
"""Number of likeliest tokens that `top_p` tries before it sorts the whole vocabulary."""


@dataclass(frozen=True)
class Sampling:
    """The sampling settings of one request. Temperature 0 is greedy decoding, top_k 0 is no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    @property
    def plain(self) -> bool:
        """Whether `adjusted` changes nothing."""
        return not (self.logit_bias or self.presence_penalty or self.frequency_penalty)

    def generator(self, choice: int) -> Random:
        """Random numbers of one of a job's `n` answers; a seed gives the same numbers in every process."""
        return Random() if self.seed is None else Random(f"{self.seed}:{choice}")


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a token; `top` has `(token id, log probability)` of the likeliest ones."""

    token: int
    logprob: float | None  # None for a prompt's first token
    top: tuple[tuple[int, float], ...] = ()


def adjusted(logits: Tensor, sampling: Sampling, generated: Counter[int]) -> Tensor:
    """One row's logits `[vocabulary]` with logit bias and with the penalties of its `generated` tokens."""
    if sampling.plain:
        return logits
    logits = logits.clone()
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens = torch.tensor(list(generated), device=logits.device)
        counts = torch.tensor(list(generated.values()), dtype=logits.dtype, device=logits.device)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def draw(logits: Tensor, sampling: Sampling, number: float) -> int:
    """Draws one token from one row's logits.

    Args:
        logits: `[vocabulary]`, already divided by the temperature.
        sampling: settings of the request (`top_k` and `top_p` are used).
        number: random number in [0, 1): the token is the one at this quantile of the distribution.

    Returns:
        The token id.
    """
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.top_k:
        kept = probabilities.topk(min(sampling.top_k, probabilities.numel()))
        return _pick(kept.values / kept.values.sum(), kept.indices, sampling.top_p, number)
    if sampling.top_p < 1:
        values, indices = probabilities.topk(min(_HEAD, probabilities.numel()))
        if float(values.sum()) < sampling.top_p:
            values, indices = probabilities.sort(descending=True)
        return _pick(values, indices, sampling.top_p, number)
    return int(_place(probabilities.double().cumsum(0), number))


def _pick(ordered: Tensor, tokens: Tensor, top_p: float, number: float) -> int:
    """Draws from the smallest set of the likeliest tokens that together reach `top_p`."""
    cumulative = ordered.double().cumsum(0)
    if top_p < 1:
        # The token that crosses the limit is kept, so with top_p = 0 the likeliest token remains.
        cumulative = cumulative[: int((cumulative < top_p).sum()) + 1]
    return int(tokens[_place(cumulative, number)])


def _place(cumulative: Tensor, number: float) -> int:
    at = int(torch.searchsorted(cumulative, cumulative[-1] * number, right=True))
    return min(at, cumulative.numel() - 1)


def logprobs_of(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Log probabilities under the model's own logits.

    Args:
        logits: `[rows, vocabulary]`, before any sampling setting.
        tokens: one token id per row.
        top: number of likeliest tokens to return beside it.

    Returns:
        One entry per row.
    """
    scores = torch.log_softmax(logits.float(), dim=-1)
    chosen = scores.gather(1, torch.tensor(list(tokens), device=scores.device)[:, None])[:, 0].tolist()
    if not top:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen, strict=True)]
    best = scores.topk(min(top, scores.shape[1]), dim=-1)
    return [
        TokenLogprob(token, value, tuple(zip(ids, values, strict=True)))
        for token, value, ids, values in zip(
            tokens, chosen, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
