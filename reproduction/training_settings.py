"""Hyper-parameters of supervised fine-tuning, as a scale's file has them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Training(BaseModel):
    """Settings of fine-tuning. `rank` None trains all weights; `batch_size` counts all processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int | None = Field(default=None, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    max_length: int = Field(ge=16)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0)  # a share of the steps, or a number of them
    weight_decay: float = Field(default=0.0, ge=0)
    load_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    bf16: bool = True
    gradient_checkpointing: bool = False
    save_steps: int = Field(default=50, ge=1)
    seed: int = 0
