"""Cross-entropy of answers where the head is run on their tokens alone, piece by piece.

On a CPU, TRL runs the head on every position, prompts included. With a vocabulary of 262,144 that is four
fifths of a training step whose answers are short.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inferaligner.models.anatomy import backbone

_PIECE = 512  # positions whose logits are held at a time: 0.5 GB with gemma's vocabulary
_RESHAPED = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def head_says_all(model: Any) -> bool:
    """Whether the head's product is the logits; some families cap or scale them."""
    config = model.config.get_text_config()
    return not any(getattr(config, name, None) for name in _RESHAPED)


def answer_loss(
    model: Any, ids: Tensor, mask: Tensor, said: Tensor, *, bf16: bool, count: Any = None
) -> Tensor:
    """The mean over the tokens of `said`, or their sum divided by `count`; in autocast where `bf16`.

    `ids`, `mask` (attention) and `said` (bool: is part of an answer) are `[rows, tokens]`; `model` is what an
    adapter is on, not its wrapper.
    """
    # A trainer's own autocast surrounds the model's forward, which is not called here.
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
        hidden = backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        predicting = said[:, 1:]  # each position predicts the next token
        hidden, targets = hidden[:, :-1][predicting], ids[:, 1:][predicting]
        head = model.get_output_embeddings()
        pieces = [
            checkpoint(_piece, head, part, target, use_reentrant=False)
            for part, target in zip(hidden.split(_PIECE), targets.split(_PIECE), strict=True)
        ]
    total = torch.stack(pieces).sum()
    loss: Tensor = total / (len(targets) if count is None else count)
    return loss


def on_answers_alone(trainer: Any) -> Any:
    """TRL's trainer with this loss in place of its own."""

    class AnswersAlone(trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            inner = self.accelerator.unwrap_model(model)
            inner = inner.get_base_model() if hasattr(inner, "peft_config") else inner
            said = inputs["labels"] != -100
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            loss = answer_loss(inner, ids, mask, said, bf16=self.args.bf16, count=num_items_in_batch)
            return (loss, {}) if return_outputs else loss

    return AnswersAlone


def _piece(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
