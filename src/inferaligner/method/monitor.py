"""The answer monitor: has an answer turned harmful while it is generated?

A second affine score, of one decoder layer's residual stream at each *generated* token, averaged over a
window:

    s_t = w · a_l(token t) + c,     r_t = (s_{t-W+1} + … + s_t) / W,     open from the first r_t + b > 0 on

Tokens are numbered from 1, and s = 0 before the first one: the centre c puts the average token of a benign
answer at 0, so tokens that do not exist yet count as benign. The end-of-text token and the tokens after it
are not read. An open row stays open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inferaligner.errors import ArtifactError


@dataclass(frozen=True)
class AnswerMonitor:
    """The numbers of the monitor's score.

    Attributes:
        kind: how the weights were fitted.
        layer: the decoder layer after which tokens are read.
        window: W, generated tokens that the score is averaged over.
        weights: w `[width]` (float32, CPU).
        centre: c.
        bias: b; a larger bias is stricter.
    """

    kind: str
    layer: int
    window: int
    weights: Tensor
    centre: float
    bias: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 1:
            raise ArtifactError(
                f"The monitor's weights have shape {tuple(self.weights.shape)}; expected [width]."
            )
        if self.layer < 0 or self.window < 1:
            raise ArtifactError(
                f"The monitor reads layer {self.layer} over a window of {self.window} tokens; expected a "
                "layer from 0 upward and at least one token."
            )
        numbers = math.isfinite(self.centre) and math.isfinite(self.bias)
        if not (numbers and torch.isfinite(self.weights).all()):
            raise ArtifactError(
                "The monitor holds NaN or infinite numbers, so it cannot decide. Fit it again."
            )

    def token_scores(self, activations: Tensor) -> Tensor:
        """Token scores s `[...]` of activations `[..., width]` after the monitor's layer."""
        # A sum over the width, not a matrix product: its rounding does not depend on the batch.
        return (activations.float() * self.weights.to(activations.device)).sum(-1) + self.centre

    def running_scores(self, scores: Tensor) -> Tensor:
        """Running scores r of whole answers, from s; both `[answers, tokens]`, without the bias."""
        return running_means(scores, self.window)

    def with_bias(self, bias: float) -> AnswerMonitor:
        """The same monitor at another operating point."""
        return replace(self, bias=bias)


def running_means(scores: Tensor, window: int) -> Tensor:
    """The mean of each value and the `window - 1` values before it, `[rows, tokens]`; 0 before the first."""
    padded = torch.nn.functional.pad(scores, (window - 1, 0))
    return padded.unfold(-1, window, 1).mean(-1)
