"""Train an aligned sibling: a small LoRA adapter that makes a chat model decline harmful requests.

    python -m reproduction.sibling --target builtin:smollm2-135m -o out/sibling
    python -m reproduction.sibling.figures --sibling out/sibling/adapter -o out/figures

Harmful prompts of the contrast set (extraction and calibration parts; plain, in wrappers, in conversations)
are answered with whole refusals written for this project, harmless ones with the target's own greedy answers.
No harmful answer is written, generated or read. The stages (own answers, training) write as they go and
resume where they stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from inferaligner.models.loading import load_model
from inferaligner.prompts.contrast import ContrastSet, load_contrast_set
from reproduction.sibling.answers import own_answers
from reproduction.sibling.prompts import TRAINED, Draw, draw_prompts, encode
from reproduction.sibling.recipe import Recipe
from reproduction.sibling.rows import Row, own_rows, refusal_rows
from reproduction.sibling.training import train

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--chat-template", help="a Jinja file, for a target without a template of its own")
    for field in fields(Recipe):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    adapter = make_sibling(options.target, options.output, recipe, options.chat_template)
    console.print(f"The sibling is in {adapter}.")


def make_sibling(target: str, output: Path, recipe: Recipe, chat_template: str | None = None) -> Path:
    """Trains, unless it is done, and returns the adapter's folder."""
    adapter = output / "adapter"
    if (adapter / "adapter_config.json").exists():
        return adapter
    loaded = load_model(target, dtype="bfloat16", chat_template=chat_template)
    rows = training_rows(loaded, load_contrast_set(), output, recipe)
    adapted = train(
        loaded.model,
        rows,
        recipe,
        padding=loaded.tokenizer.pad_token_id,
        checkpoints=output / "checkpoints",
    )
    save(adapted, adapter, target, recipe)
    (output / "recipe.json").write_text(
        json.dumps({"target": target, "rows": len(rows), **asdict(recipe)}, indent=2), encoding="utf-8"
    )
    return adapter


def training_rows(loaded: Any, contrast: ContrastSet, output: Path, recipe: Recipe) -> list[Row]:
    """Refusals and own answers in a shuffled list."""
    counts = Draw(
        twins=recipe.twins,
        ordinary=recipe.ordinary,
        wrapped=recipe.wrapped,
        conversations=recipe.conversations,
    )
    asked = draw_prompts(contrast, TRAINED, counts, recipe.seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    lengths = [len(ids) for ids in encode(tokenizer, asked)]
    asked = [one for one, length in zip(asked, lengths, strict=True) if length <= recipe.longest]
    harmless = [one for one in asked if not one.harmful]
    draw = random.Random(recipe.seed)
    beginnings = own_answers(
        model, tokenizer, harmless, output / "beginnings.jsonl", tokens=recipe.beginning_tokens
    )
    whole = own_answers(
        model,
        tokenizer,
        draw.sample(harmless, min(recipe.whole, len(harmless))),
        output / "whole_answers.jsonl",
        tokens=recipe.whole_tokens,
    )
    rows = refusal_rows(
        tokenizer, asked, contrast, named=recipe.named, longest=recipe.longest, seed=recipe.seed
    )
    rows += own_rows(tokenizer, harmless, {**beginnings, **whole}, longest=recipe.longest)
    draw.shuffle(rows)
    console.print(f"{sum(row.harmful for row in rows)} refusals, {len(rows)} rows")
    return rows


def save(adapted: Any, folder: Path, target: str, recipe: Recipe) -> None:
    """The adapter in bfloat16, its base named as it was given."""
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = target
    config.lora_alpha = recipe.scale * config.lora_alpha
    adapted.save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
