"""LLaVA's two stages, after the tower has learned to read: the projector, then projector and adapter.

The tower stays as it is. The language model's own weights do too; in the second stage a LoRA adapter in all
of its projections learns to take what stands in a picture for what the user wrote, and is merged at the end.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import encode_chats
from reproduction.vision.checkpoints import Checkpoints
from reproduction.vision.lessons import Lesson, Lessons
from reproduction.vision.prefetching import prefetched

_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_adapter(loaded: LoadedModel, rank: int) -> Any:
    """LoRA in the language model, none in the tower; returns the wrapped model."""
    import peft

    names = "|".join(_PROJECTIONS)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=rf".*language_model.*\.({names})", lora_dropout=0.0
    )
    return peft.get_peft_model(loaded.model, settings)


def batch_of(loaded: LoadedModel, lessons: list[Lesson]) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs, padded on the right, and labels `[rows, tokens]`: the answer's tokens, -100 elsewhere."""
    tokenizer: Any = loaded.tokenizer
    starts = encode_chats(loaded.reader, [lesson.prompt for lesson in lessons])
    ends = [
        [*tokenizer(lesson.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for lesson in lessons
    ]
    longest = max(len(s) + len(e) for s, e in zip(starts, ends, strict=True))
    ids = torch.full((len(lessons), longest), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        length = len(start) + len(end)
        ids[row, :length] = torch.tensor([*start, *end])
        labels[row, len(start) : length] = torch.tensor(end)
        mask[row, :length] = 1
    images = [picture.pixels() for lesson in lessons for picture in lesson.prompt.pictures]
    pixels = loaded.processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, labels


def loss_of(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens; the LM head runs nowhere else."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast(labels.device.type, torch.bfloat16):
        hidden = inner.model(**inputs, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = inner.lm_head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), labels[:, 1:][wanted])


def train(
    loaded: LoadedModel,
    lessons: Lessons,
    place: Path,
    *,
    adapter_rank: int,
    seconds: float,
    steps: int,
    batch: int,
    rate: float,
) -> bool:
    """One stage, with an adapter where its rank is positive; True when it is done: the model then holds it.

    Goes on from where `place` left off.
    """
    device = loaded.model.device
    model: Any = add_adapter(loaded, adapter_rank) if adapter_rank else loaded.model
    projector = loaded.model.model.multi_modal_projector
    trained: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "multi_modal_projector" in name)
        if parameter.requires_grad:
            trained[name] = parameter
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in trained.items() if "lora_" in n], "lr": rate, "base": rate},
            {"params": list(projector.parameters()), "lr": rate / 2, "base": rate / 2},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    done = 0
    if place.exists():
        state = torch.load(place, weights_only=True, map_location=device)
        done = state["done"]
        optimizer.load_state_dict(state["optimizer"])
        for name, value in state["trained"].items():
            trained[name].data.copy_(value)
    model.train()

    def draw(step: int) -> tuple[dict[str, Tensor], Tensor]:
        rng = random.Random(f"{place.stem} {step}")
        return batch_of(loaded, [lessons.draw(rng) for _ in range(batch)])

    def state_now() -> dict[str, Any]:
        return {
            "done": done,
            "trained": {name: parameter.detach() for name, parameter in trained.items()},
            "optimizer": optimizer.state_dict(),
        }

    checkpoints = Checkpoints(place, state_now)
    drawn = prefetched(draw, done, steps, device)
    began = shown = time.monotonic()
    lately = math.nan
    while done < steps and time.monotonic() - began < seconds:
        warm, cool = min(1.0, (done + 1) / 15), 0.5 + 0.5 * math.cos(math.pi * done / steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * warm * cool
        inputs, labels = next(drawn)
        moved = {name: value.to(device) for name, value in inputs.items()}
        loss = loss_of(model, moved, labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        done += 1
        lately = loss.item() if math.isnan(lately) else lately + (loss.item() - lately) * 0.1
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            print(f"{place.stem} {done}/{steps}: loss {lately:.3f}", flush=True)
        checkpoints.now_and_then()
    checkpoints.now()
    if done >= steps and adapter_rank:
        model.merge_and_unload()  # in place: `loaded.model` is the bare model again
    return done >= steps
