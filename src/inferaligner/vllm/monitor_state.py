"""The scheduler's state of answers that a monitor reads (`inferaligner.method.monitor`).

In each step a worker reads one generated token of a request, and keeps the latest `window` scores. The
scheduler receives and keeps all scores. So a request that was preempted continues where it stopped, and its
answer is not read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class MonitoredAnswer:
    """The monitor's state of one answer. Generated tokens are numbered from 1.

    Attributes:
        scores: of the tokens read so far, in order.
        requested: number of the latest token that a step was asked to read.
        opened_at: number of the token that opened the answer; None while it is closed.
    """

    scores: list[float] = field(default_factory=list)
    requested: int = 0
    opened_at: int | None = None

    def resume(self, tokens: int) -> None:
        """The request begins or resumes with `tokens` generated tokens: forgets what was read behind them.

        vLLM drops tokens that were sampled after it had sent a request back to the queue.
        """
        del self.scores[tokens:]
        self.requested = len(self.scores)
        if self.opened_at is not None and self.opened_at > tokens:
            self.opened_at = None

    def record(self, number: int, score: float, opens: bool) -> bool:
        """Records a token's score if the token is the next one; returns whether it opens the answer."""
        if self.opened_at is not None or number != len(self.scores) + 1:
            return False
        self.scores.append(score)
        if opens:
            self.opened_at = number
        return opens
