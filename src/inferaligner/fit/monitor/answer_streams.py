"""Activations of generated tokens, without the text.

The answers to harmful prompts may be harmful themselves. Here they are never decoded into text and never
leave this module; what a caller gets is the residual stream at each generated token, batch by batch, in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inferaligner.models.anatomy import dissect, residual
from inferaligner.models.generation import end_tokens, generate_batches
from inferaligner.prompts.encoding import Reader
from inferaligner.prompts.images import Prompt


@dataclass(frozen=True)
class AnswerStreams:
    """One batch: `values[answers, tokens, layers, width]` (CPU, the model's dtype) of answers' beginnings.

    Of row r only the first `lengths[r]` tokens count: the end-of-text token is none of them. `rows` are the
    prompts' indices in the caller's list.
    """

    rows: tuple[int, ...]
    values: Tensor
    lengths: Tensor


def answer_streams(
    model: PreTrainedModel,
    tokenizer: Reader,
    prompts: Sequence[Prompt],
    *,
    layers: Sequence[int],
    tokens: int,
    batch_size: int = 32,
    system: str | None = None,
) -> Iterator[AnswerStreams]:
    """Answers greedily and yields the residual stream after `layers` at up to `tokens` generated tokens.

    Raises `PromptTooLongError` before any work is done.
    """
    recorder = _Recorder(model, layers)
    try:
        # The last token of an answer never enters the model, so one more is generated than is read.
        # All rows stay in their batch, because the recorder stacks its steps.
        batches = generate_batches(
            model,
            tokenizer,
            prompts,
            max_new_tokens=tokens + 1,
            batch_size=batch_size,
            system=system,
            shrink=False,
        )
        ends = torch.tensor(end_tokens(model))
        for batch in batches:
            values = recorder.collect()
            answer = batch.tokens[:, : values.shape[1]].cpu()
            ended = torch.isin(answer, ends).cummax(dim=1).values
            yield AnswerStreams(batch.rows, values, (~ended).sum(1))
    finally:
        recorder.remove()


class _Recorder:
    """Forward hooks that keep, of every decoding step, the one token of each row."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        anatomy = dissect(model)
        self._steps: list[list[Tensor]] = [[] for _ in layers]
        self._handles = [
            anatomy.layers[layer].register_forward_hook(self._hook(steps))
            for layer, steps in zip(layers, self._steps, strict=True)
        ]

    @staticmethod
    def _hook(steps: list[Tensor]) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            steps.append(residual(output)[:, -1])

        return record

    def collect(self) -> Tensor:
        """`[rows, tokens, layers, width]` of the generate() call that just ended, without its prompts."""
        kept = [torch.stack([step.cpu() for step in steps], dim=1)[:, 1:] for steps in self._steps]
        for steps in self._steps:
            steps.clear()
        return torch.stack(kept, dim=2)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
