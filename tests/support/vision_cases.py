"""A tiny vision-language model, prompts with and without pictures, and a gate that opens on chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.method.activations import record_activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.anatomy import dissect
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import encode_chats, template_suffix
from inferaligner.prompts.encoding import seen_inputs
from inferaligner.prompts.images import Prompt
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Mode, Positions, SteeringPlan
from tests.support.tiny_vision import prompts, tiny_vision

OPENS = (True, True, False, False, True)
"""Of `tiny_vision.prompts`: text and pictures on either side."""

BIAS = 0.3


@dataclass
class VisionCase:
    loaded: LoadedModel
    prompts: Sequence[Prompt]
    plan: SteeringPlan
    opens: tuple[bool, ...]

    def guard(self, mode: Mode = "gate") -> Guard:
        return Guard(self.loaded.model, self.plan, mode)

    def inputs(self, rows: Sequence[int] | None = None, side: str = "left") -> dict[str, Tensor]:
        chosen = [self.prompts[row] for row in (range(len(self.prompts)) if rows is None else rows)]
        return dict(seen_inputs(self.encoded(chosen), side))

    def encoded(self, chosen: Sequence[Prompt]) -> list[list[int]]:
        # In company of a picture, so that every prompt can be an input by itself.
        return encode_chats(self.loaded.reader, [*chosen, prompts()[1]])[: len(chosen)]

    def logits(self, rows: Sequence[int] | None = None, **settings: Any) -> Tensor:
        """`[rows, new, vocabulary]` of the prefill and of every decoding step."""
        output = self.loaded.model.generate(
            **self.inputs(rows),
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )
        return torch.stack(output.logits, dim=1)


def make_vision_case(
    family: str,
    *,
    opens: Sequence[bool] = OPENS,
    positions: Positions = "from_gate",
    gate_layer: int = 1,
    steered: Sequence[int] = (1, 2, 3),
) -> VisionCase:
    """The weights are solved for a score of +1 on `opens` prompts and -1 elsewhere, at two tokens."""
    loaded = tiny_vision(family)
    asked = prompts()
    suffix = len(template_suffix(loaded.reader))
    places = (GateRead(gate_layer, 0), GateRead(gate_layer, suffix - 1))
    recorded = record_activations(
        loaded.model,
        encode_chats(loaded.reader, asked),
        layers=sorted({gate_layer, *steered}),
        offsets=(0, suffix - 1),
    )
    seen = recorded.values[:, recorded.layers.index(gate_layer)].double()
    targets = torch.tensor([1.0 if is_open else -1.0 for is_open in opens], dtype=torch.float64) - BIAS
    weights = (torch.linalg.pinv(seen.flatten(1)) @ targets).reshape(2, -1).float()
    draw, additions = torch.Generator().manual_seed(0), {}
    for layer in steered:
        length = recorded.values[:, recorded.layers.index(layer), 0].float().norm(dim=-1).mean()
        direction = torch.randn(dissect(loaded.model).width, generator=draw)
        additions[layer] = direction / direction.norm() * length
    plan = SteeringPlan(GuidanceGate("test", places, weights, BIAS), additions, positions)
    return VisionCase(loaded, asked, plan, tuple(opens))
