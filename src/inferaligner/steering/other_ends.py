"""The rows of a batch that do not end as the chat template ends a prompt, and what is read at their ends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inferaligner.method.decision import opens
from inferaligner.method.end_gate import EndGate
from inferaligner.steering.prompt_spans import PromptSpans


@dataclass
class OtherEnds:
    """Scores of the end gate while the prompts of a batch pass.

    Attributes:
        begun, raw: `[rows]` bool (CPU): an answer has begun behind the template's end; there is no such end.
        bias: `[rows]` float32 (CPU), of the end gate.
        scores: `[rows]` float32 on the device of the gate's layers, None before the first read.
    """

    begun: Tensor
    raw: Tensor
    bias: Tensor
    scores: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, spans: PromptSpans, gate: EndGate) -> OtherEnds | None:
        """None where every row ends as the template ends one."""
        kinds = spans.kinds or ()
        if all(kind == "template" for kind in kinds):
            return None
        return cls(
            torch.tensor([kind == "begun" for kind in kinds]),
            torch.tensor([kind == "raw" for kind in kinds]),
            torch.tensor([gate.raw if kind == "raw" else gate.begun for kind in kinds]),
        )

    def repeated(self, times: int) -> OtherEnds:
        """The same with every row repeated in place, before anything was read."""
        return replace(
            self,
            begun=self.begun.repeat_interleave(times),
            raw=self.raw.repeat_interleave(times),
            bias=self.bias.repeat_interleave(times),
        )

    def add(self, part: Tensor) -> None:
        """Adds one read's dot products `[rows]`."""
        if self.scores is None:
            self.scores = part + self.bias.to(part.device)
        else:
            self.scores = self.scores + part.to(self.scores.device)

    def opened(self, by_turn: Tensor, here: Tensor) -> Tensor:
        """Rows `[rows]` that open in this pass. `by_turn`: those that the guidance gate opens; `here`: those
        whose last prompt token is in this pass."""
        scores = self._scores(by_turn.device)
        at_end = (self.begun | self.raw).to(by_turn.device) & here
        # Raw text has no turn that the guidance gate could read. NaN opens.
        return (by_turn & ~self.raw.to(by_turn.device)) | (at_end & opens(scores))

    def told(self, by_turn: Tensor) -> Tensor:
        """The scores `[rows]` that are reported: the guidance gate's, but the end gate's of raw text, and of
        begun answers that it alone opened."""
        scores = self._scores(by_turn.device)
        alone = self.begun.to(by_turn.device) & ~opens(by_turn) & opens(scores)
        return torch.where(self.raw.to(by_turn.device) | alone, scores, by_turn)

    def _scores(self, device: torch.device) -> Tensor:
        if self.scores is None:  # a hook that did not run must not close a row
            return torch.full(self.begun.shape, torch.nan, device=device)
        return self.scores.to(device)
