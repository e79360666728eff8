"""Teaches a LoRA adapter to decline in whole answers, and to answer everything else as its base does.

Where the prompt is harmful, the loss is the cross-entropy of a written refusal with its end token. Where it
is not, it is the divergence from the base's own distribution at every token of the base's own answer: the
whole distribution says more than the one token that was chosen, so that the sibling stays closer to its base
than by copying. Both are means over a row's tokens, the first of which decides between declining and
answering and counts more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from inferaligner.models.anatomy import backbone, dissect
from reproduction.sibling.recipe import Recipe
from reproduction.sibling.rows import Row, collate


def train(model: Any, rows: Sequence[Row], recipe: Recipe, *, padding: int, checkpoints: Path) -> Any:
    """A PEFT model with LoRA on every linear part of the recipe's layers; resumes from `checkpoints`."""
    torch.manual_seed(recipe.seed)
    cpu = not torch.cuda.is_available()
    if cpu:
        # The backward pass of fused attention is ten times slower than the plain one in bfloat16 on a CPU.
        model.set_attn_implementation("eager")
    adapted = get_peft_model(model, lora(model, recipe))
    for part in adapted.modules():
        if isinstance(part, BaseTunerLayer):
            # Autocast computes in bfloat16 either way: a cast to the adapter's float32 before costs a fifth.
            part.cast_input_dtype_enabled = False  # type: ignore[assignment]
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        train_sampling_strategy="group_by_length",
        logging_steps=5,
        save_steps=50,
        save_total_limit=1,
        report_to=[],
        seed=recipe.seed,
        remove_unused_columns=False,
        use_cpu=cpu,
        dataloader_pin_memory=not cpu,
    )
    trainer = SiblingTrainer(
        model=adapted,
        args=arguments,
        train_dataset=[{"input_ids": row.asked + row.answer, "row": row} for row in rows],
        data_collator=lambda batch: collate([one["row"] for one in batch], padding),
        recipe=recipe,
    )
    resumable = checkpoints.exists() and any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resumable or None)
    return adapted


def lora(model: Any, recipe: Recipe) -> LoraConfig:
    """On every linear part of the layers between the recipe's shares of the depth."""
    stack = dissect(model).layers
    layers = range(round(recipe.first_layer * len(stack)), round(recipe.last_layer * len(stack)))
    linear = {name for name, part in stack[0].named_modules() if isinstance(part, nn.Linear)}
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=sorted(linear),
        layers_to_transform=list(layers),
        task_type="CAUSAL_LM",
    )


class SiblingTrainer(Trainer):
    """The trainer of transformers with the loss of this module."""

    def __init__(self, *args: Any, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recipe = recipe

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        adapted = self.accelerator.unwrap_model(model)
        said = inputs["answer"][:, 1:]  # each position predicts the next token
        logits = self._logits(adapted, inputs, said)
        targets, harmful = inputs["input_ids"][:, 1:][said], inputs["harmful"]
        declines = harmful[:, None].expand_as(said)[said]  # [answer tokens]
        losses = torch.zeros(len(targets), device=logits.device)
        if harmful.any():
            losses[declines] = nn.functional.cross_entropy(
                logits[declines], targets[declines], reduction="none"
            )
        if not harmful.all():
            own = {name: value[~harmful] for name, value in inputs.items()}
            with torch.no_grad(), adapted.disable_adapter():
                base = self._logits(adapted, own, own["answer"][:, 1:])
            losses[~declines] = self._recipe.harmless_weight * divergence(base, logits[~declines])
        weights = token_weights(said, self._recipe.first_weight)
        return (losses * weights[said]).sum() / len(said)

    def _logits(self, adapted: Any, inputs: dict[str, Tensor], said: Tensor) -> Tensor:
        """`[answer tokens, vocabulary]` float32, where answer tokens are predicted, row by row."""
        inner = adapted.get_base_model()
        # The trainer's own autocast surrounds the model's forward, which is not called here.
        with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16):
            hidden = backbone(inner)(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state[:, :-1][said]
            logits: Tensor = inner.get_output_embeddings()(hidden)
        return logits.float()


def divergence(base: Tensor, sibling: Tensor) -> Tensor:
    """KL(base ‖ sibling) in nats, `[tokens]`, of two `[tokens, vocabulary]` logits."""
    known, learned = base.log_softmax(-1), sibling.log_softmax(-1)
    return (known.exp() * (known - learned)).sum(-1)


def token_weights(said: Tensor, first: float) -> Tensor:
    """`[rows, tokens]`: weights of the answer tokens marked in `said`, of sum 1 a row; the first of an answer
    counts `first` times as much as another."""
    opening = said & (said.cumsum(1) == 1)
    weights = torch.where(opening, first, 1.0) * said
    return weights / weights.sum(1, keepdim=True).clamp(min=1.0)
