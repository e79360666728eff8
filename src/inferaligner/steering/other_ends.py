"""Rows of a batch that do not end as the chat template ends a prompt, and the end gate's scores of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inferaligner.method.decision import opens
from inferaligner.method.end_gate import EndGate
from inferaligner.steering.prompt_spans import PromptSpans


@dataclass
class OtherEnds:
    """The scores of the end gate while the prompts of a batch pass through the model.

    Attributes:
        begun: `[rows]` bool (CPU): an answer has begun behind the template's end.
        raw: `[rows]` bool (CPU): the prompt has no template's end at all.
        bias: `[rows]` float32 (CPU), the end gate's bias for the row's kind of end.
        scores: `[rows]` float32 on the device of the gate's layers; None before the first read.
    """

    begun: Tensor
    raw: Tensor
    bias: Tensor
    scores: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, spans: PromptSpans, gate: EndGate) -> OtherEnds | None:
        """The rows of `spans` with other ends; None if every row ends as the template ends a prompt."""
        kinds = spans.kinds or ()
        if all(kind == "template" for kind in kinds):
            return None
        return cls(
            torch.tensor([kind == "begun" for kind in kinds]),
            torch.tensor([kind == "raw" for kind in kinds]),
            torch.tensor([gate.raw if kind == "raw" else gate.begun for kind in kinds]),
        )

    def repeated(self, times: int) -> OtherEnds:
        """A copy with every row repeated in place, as beams need it; called before the first read."""
        return replace(
            self,
            begun=self.begun.repeat_interleave(times),
            raw=self.raw.repeat_interleave(times),
            bias=self.bias.repeat_interleave(times),
        )

    def add(self, part: Tensor) -> None:
        """Adds the dot products `[rows]` of one read to the scores."""
        if self.scores is None:
            self.scores = part + self.bias.to(part.device)
        else:
            self.scores = self.scores + part.to(self.scores.device)

    def opened(self, by_turn: Tensor, here: Tensor) -> Tensor:
        """Returns the rows that open in this pass, `[rows]` bool.

        Args:
            by_turn: `[rows]` bool, the rows that the guidance gate opens.
            here: `[rows]` bool, the rows whose last prompt token is in this pass.
        """
        scores = self._scores(by_turn.device)
        at_end = (self.begun | self.raw).to(by_turn.device) & here
        # Raw text has no turn that the guidance gate could read.
        return (by_turn & ~self.raw.to(by_turn.device)) | (at_end & opens(scores))

    def reported(self, by_turn: Tensor) -> Tensor:
        """Returns the scores `[rows]` to report, given the guidance gate's scores `by_turn` `[rows]`.

        Raw text, and begun answers that only the end gate opened, have the end gate's score.
        """
        scores = self._scores(by_turn.device)
        alone = self.begun.to(by_turn.device) & ~opens(by_turn) & opens(scores)
        return torch.where(self.raw.to(by_turn.device) | alone, scores, by_turn)

    def _scores(self, device: torch.device) -> Tensor:
        if self.scores is None:  # NaN opens: a hook that did not run must not close a row
            return torch.full(self.begun.shape, torch.nan, device=device)
        return self.scores.to(device)
