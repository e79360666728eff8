"""A tiny model, a batch of prompts and a plan whose gate opens on exactly the rows a test chooses.

The environment variable INFERALIGNER_TEST_DEVICE puts all of it on another device, such as cuda.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inferaligner.method.activations import record_activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.anatomy import dissect
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Mode, Positions, SteeringPlan
from tests.support.tiny_models import tiny_model

DEVICE = torch.device(os.environ.get("INFERALIGNER_TEST_DEVICE", "cpu"))
OPEN_ROWS = (True, False, True, False)
LENGTHS = (10, 7, 9, 10)
BIAS = 0.3


@dataclass
class Case:
    model: PreTrainedModel
    prompts: list[list[int]]
    plan: SteeringPlan
    opens: tuple[bool, ...]
    settings: dict[str, Any] = field(default_factory=lambda: {"max_new_tokens": 6})
    device: torch.device = DEVICE

    def guard(self, mode: Mode = "gate") -> Guard:
        return Guard(self.model, self.plan, mode)

    def batch(self, side: str = "left", rows: Sequence[int] | None = None) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of some rows, padded to the longest of them."""
        chosen = [self.prompts[row] for row in (range(len(self.prompts)) if rows is None else rows)]
        width = max(map(len, chosen))
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(chosen):
            start = width - len(tokens) if side == "left" else 0
            ids[row, start : start + len(tokens)] = torch.tensor(tokens)
            mask[row, start : start + len(tokens)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def generate(self, *, rows: Sequence[int] | None = None, **settings: Any) -> Any:
        """New tokens `[rows, new]` of the model's own generate(), greedy unless told otherwise."""
        batch: dict[str, Any] = {**self.batch(rows=rows), **self.settings, "do_sample": False, **settings}
        output = self.model.generate(**batch)  # type: ignore[operator]
        return output if settings.get("return_dict_in_generate") else output[:, batch["input_ids"].shape[1] :]

    def logits(self, **settings: Any) -> Tensor:
        """Logits `[rows, new, vocabulary]` of the prefill and of every decoding step."""
        output = self.generate(return_dict_in_generate=True, output_logits=True, **settings)
        return torch.stack(output.logits, dim=1)

    @property
    def open_rows(self) -> list[int]:
        return [row for row, is_open in enumerate(self.opens) if is_open]

    @property
    def closed_rows(self) -> list[int]:
        return [row for row, is_open in enumerate(self.opens) if not is_open]


def make_case(
    family: str = "llama",
    *,
    model: PreTrainedModel | None = None,
    reads: Sequence[tuple[int, int]] = ((1, 0),),
    steered: Sequence[int] = (1, 2, 3),
    positions: Positions = "from_gate",
    opens: Sequence[bool] = OPEN_ROWS,
    lengths: Sequence[int] = LENGTHS,
    strength: float = 1.0,
    seed: int = 0,
    device: torch.device = DEVICE,
) -> Case:
    """`reads` are (layer, offset); the weights are solved for a score of +1 on `opens` rows, -1 elsewhere."""
    model = (tiny_model(family) if model is None else model).to(device)  # type: ignore[arg-type]
    model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    model.generation_config.pad_token_id = 0  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    prompts = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    places = tuple(GateRead(layer, offset) for layer, offset in reads)
    layers = sorted({read.layer for read in places})
    offsets = sorted({read.offset for read in places})
    recorded = record_activations(model, prompts, layers=sorted({*layers, *steered}), offsets=offsets)
    seen = torch.stack(
        [recorded.values[:, recorded.layers.index(r.layer), offsets.index(r.offset)] for r in places], dim=1
    ).double()
    targets = torch.tensor([1.0 if is_open else -1.0 for is_open in opens], dtype=torch.float64) - BIAS
    weights = (torch.linalg.pinv(seen.flatten(1)) @ targets).reshape(len(places), -1).float()
    additions = {}
    for layer in steered:
        length = recorded.values[:, recorded.layers.index(layer), 0].float().norm(dim=-1).mean()
        direction = torch.randn(dissect(model).width, generator=generator)
        additions[layer] = direction / direction.norm() * length * strength
    plan = SteeringPlan(GuidanceGate("test", places, weights, BIAS), additions, positions)
    return Case(model, prompts, plan, tuple(opens), device=device)


def trace_of_hooks(model: PreTrainedModel) -> dict[str, Any]:
    """Everything on a model that applying an aligner touches."""
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    return {"hooks": hooks, "names": sorted(model.__dict__), "generate": model.__dict__.get("generate")}
