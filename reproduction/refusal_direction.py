"""The direction in a model's residual stream that makes it decline.

One vector, added after one decoder layer from the last prompt token onward, found by gradient descent so
that the frozen model says the refusals. Nothing of the model changes. Where in the depth it is added decides
how much of the model can still read it: a little above the middle is the earliest place at which intent is
told well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from inferaligner.models.anatomy import backbone, dissect, residual, with_residual
from reproduction.answer_batches import answer_tokens, collate, deciding_tokens
from reproduction.answer_loss import answer_loss

console = Console()

LEARNING_RATE = 0.24
"""The shipped sibling was made with 0.35 in SmolLM2-135M, where the unit is about 1.45."""


def refusal_direction(
    model: Any,
    rows: Sequence[dict[str, Any]],
    *,
    layer: int,
    padding: int,
    steps: int = 100,
    batch_size: int = 16,
    learning_rate: float = LEARNING_RATE,
) -> Tensor:
    """The vector `[width]` float32 for one layer, from tokenized refusals to harmful prompts.

    `learning_rate` is in units of how far prompts differ in a component of the stream, eight times as far in
    gemma-3-270m as in SmolLM2-135M: Adam moves each component by about that much a step.
    """
    model.requires_grad_(False)
    unit = _spread(model, rows[:batch_size], layer, padding)
    learning_rate *= unit
    start = unit * torch.randn(dissect(model).width, generator=torch.manual_seed(0)) / 5
    direction = nn.Parameter(start.to(model.device))
    optimizer = torch.optim.Adam([direction], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    steered: dict[str, Tensor] = {}

    def add(module: nn.Module, inputs: object, output: object) -> object:
        stream = residual(output)
        return with_residual(output, stream + (steered["tokens"][..., None] * direction).to(stream.dtype))

    handle = dissect(model).layers[layer].register_forward_hook(add)
    try:
        for step in range(steps):
            drawn = [rows[(step * batch_size + k) % len(rows)] for k in range(batch_size)]
            batch = _on(model, collate(drawn, padding))
            steered["tokens"] = deciding_tokens(batch)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            loss = answer_loss(model, ids, mask, answer_tokens(batch), bf16=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0 or step == steps - 1:
                console.print(f"refusal direction, step {step}: loss {loss.item():.3f}")
    finally:
        handle.remove()
    return direction.detach().cpu()


def _on(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


@torch.no_grad()
def _spread(model: Any, rows: Sequence[dict[str, Any]], layer: int, padding: int) -> float:
    """The median component's standard deviation between the ends of prompts, after one layer."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        seen.append(residual(output))

    batch = _on(model, collate(list(rows), padding))
    handle = dissect(model).layers[layer].register_forward_hook(look)
    try:
        backbone(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        handle.remove()
    ends = seen[0][torch.arange(len(rows), device=model.device), batch["prompt_tokens"] - 1].float()
    return float(ends.std(0).median())
