"""How far a prompt's score moves with the batch that it is computed in.

Kernels choose their order of summation by the shape of a batch, and in half precision the last digit of every
activation follows. A score taken alone and one taken among others therefore differ, and a prompt whose score
lies closer to zero than that may be open in one batch and closed in another. The artifact keeps the measured
difference, and the bound on traffic allows for it (docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from inferaligner.method.gate import GuidanceGate
from inferaligner.models.anatomy import input_device
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan

PROMPTS = 32
ROWS = 16
"""Prompts that are measured, and the rows of the batches that they are computed in."""


@torch.no_grad()
def batch_shift(model: Any, prompts: Sequence[Sequence[int]], gate: GuidanceGate) -> float:
    """The largest difference between a prompt's score alone and in a batch of `ROWS`, padded on either side.

    `prompts` are token ids; the first `PROMPTS` of them are taken.
    """
    chosen = list(prompts)[:PROMPTS]
    alone = torch.cat([_scores(model, [ids], gate, "left") for ids in chosen])
    largest = 0.0
    for side in ("left", "right"):
        among = torch.cat(
            [_scores(model, chosen[at : at + ROWS], gate, side) for at in range(0, len(chosen), ROWS)]
        )
        largest = max(largest, float((among - alone).abs().max()))
    return largest


def batch_shift_figures(shift: float, scores: Sequence[float]) -> dict[str, Any]:
    """For the artifact: the shift, and how many ordinary prompts lie closer to the threshold than it.

    Args:
        scores: of the ordinary prompts, at the operating point.
    """
    return {
        "largest_shift": shift,
        "prompts": PROMPTS,
        "near_threshold": int(sum(abs(score) <= shift for score in scores)),
        "of": len(scores),
    }


def _scores(model: Any, rows: Sequence[Sequence[int]], gate: GuidanceGate, side: str) -> torch.Tensor:
    """Scores `[rows]` of one padded batch; the model runs with the guard on, as in service."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        begin = width - len(tokens) if side == "left" else 0
        ids[row, begin : begin + len(tokens)] = torch.tensor(tokens)
        mask[row, begin : begin + len(tokens)] = 1
    device = input_device(model)
    with Guard(model, GatePlan(gate), "never") as guard:
        model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        return torch.tensor([decision.score for decision in guard.decisions])
