"""The scheduler's book about answers that a monitor reads (`inferaligner.method.monitor`).

Workers read one generated token of a request per step, and keep the scores of the last `window` of them. They
send each score back; the scheduler keeps them all, so that a request which was thrown out of the memory goes
on where it was, without its answer being read again.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ReadAnswer:
    """What is known of one answer. Generated tokens are numbered from 1.

    Attributes:
        scores: of the tokens read so far, in order.
        sent: number of the latest token that a step was sent out to read.
        opened_at: number of the token that opened the answer.
    """

    scores: list[float] = field(default_factory=list)
    sent: int = 0
    opened_at: int | None = None

    def begin(self, tokens: int) -> None:
        """The request begins or resumes with `tokens` generated tokens; what was read of others is void.

        vLLM throws tokens away that were sampled after a request was sent back to the queue.
        """
        del self.scores[tokens:]
        self.sent = len(self.scores)
        if self.opened_at is not None and self.opened_at > tokens:
            self.opened_at = None

    def hear(self, number: int, score: float, over: bool) -> bool:
        """Notes the score of the next token; returns whether this one opens the answer."""
        if self.opened_at is not None or number != len(self.scores) + 1:
            return False
        self.scores.append(score)
        if over:
            self.opened_at = number
        return over

    def latest(self, window: int) -> tuple[float, ...]:
        """The scores that the next mean is taken over with."""
        return tuple(self.scores[-window:])
