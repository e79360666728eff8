"""Train an aligned sibling: a small LoRA adapter that makes a chat model decline harmful requests.

    python -m reproduction.aligned_sibling --target builtin:smollm2-135m -o out/aligned

The harmful half pairs the contrast set's harmful prompts (extraction and calibration parts) with refusals
written for this project. The harmless half pairs their twins and ordinary prompts with the beginning of the
target's *own* greedy answers, so that the sibling keeps saying what the target says. No harmful answer is
ever written, generated or read. The contrast set's test part is used only for the figures at the end.

Two steps. First the direction that makes the target decline is found (`refusal_direction.py`), then LoRA in
the layers up to it learns to take it on harmful prompts (`direction_training.py`). Ordinary fine-tuning on
the same answers gives a sibling that declines as well, but from a different shift at every token, of which
the mean that InferAligner carries over keeps too little (docs/method.md has the figures).

Stages (answers, direction, training, check) write as they go and resume where they stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file

from inferaligner.judges.rules import judge
from inferaligner.models.anatomy import dissect
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import ContrastPrompt, ContrastSet, load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.answer_batches import Example, tokenize
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample
from reproduction.direction_training import train_sibling
from reproduction.refusal_direction import refusal_direction

console = Console()

SHIPPED_OPENING = "I'm sorry, but I can't help with"
"""How every refusal of the contrast set begins."""


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters; the defaults made the shipped adapter."""

    rank: int = 16
    learning_rate: float = 1e-3
    epochs: float = 3.0
    batch_size: int = 16
    answer_tokens: int = 24  # of the target's own answers; what follows them follows by itself
    longest: int = 400  # prompts of more tokens are left out of training, to keep batches small
    # What a row counts, a harmful one counting 1. Twins and look-alikes are rare outside of the contrast set.
    twin_weight: float = 0.4
    lookalike_weight: float = 0.6
    ordinary_weight: float = 1.2
    # The refusals are made to open as the target opens its own rare ones, so that it takes little to tip it.
    opening: str = "I'm sorry, but as a chatbot, I'm not equipped to help with"
    direction_steps: int = 100
    # Of the direction found: less than it takes to be certain is easier to learn, and enough.
    direction_share: float = 0.85
    # A squared error leaves doubtful prompts a share of the direction that is too small to tip it, and
    # yet tells them from harmless ones: the trained change, this many times over, tips them.
    sharpening: float = 1.3
    # At the last prompt token the prompt has just been read, and the answer is settled.
    prompt_weight: float = 4.0
    # Shares of the depth between which layers are trained; the direction belongs after the last of them.
    first_layer: float = 0.1
    last_layer: float = 0.57
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--chat-template", help="a Jinja file, for a target without a template of its own")
    parser.add_argument("--data", type=Path, help="folder of public benchmark prompts, for the check")
    parser.add_argument("--epochs", type=float, default=Recipe.epochs)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--rank", type=int, default=Recipe.rank)
    options = parser.parse_args()
    recipe = Recipe(rank=options.rank, learning_rate=options.learning_rate, epochs=options.epochs)
    options.output.mkdir(parents=True, exist_ok=True)

    contrast = load_contrast_set()
    refusals = {
        category: [text.replace(SHIPPED_OPENING, recipe.opening, 1) for text in texts]
        for category, texts in contrast.refusals().items()
    }
    rng = random.Random(recipe.seed)
    loaded = load_model(options.target, dtype="bfloat16", chat_template=options.chat_template)
    prompts = training_prompts(contrast, loaded.tokenizer, recipe)
    harmless = sorted({p.text for p in prompts if not p.harmful})
    answers = own_answers(loaded, harmless, options.output / "own_answers.jsonl", recipe)
    examples = [
        Example(
            p.text,
            rng.choice(refusals[p.category] + refusals["general"]) if p.harmful else answers[p.text],
            p.harmful,
            weight(p, recipe),
        )
        for p in prompts
        if p.harmful or answers[p.text]
    ]
    rng.shuffle(examples)
    adapter = options.output / "adapter"
    if not (adapter / "adapter_config.json").exists():
        train(loaded, examples, options.target, options.output, recipe)
    groups = held_out(contrast, options.data)
    check(options.target, adapter, groups, options.output, options.chat_template)


def training_prompts(contrast: ContrastSet, tokenizer: Any, recipe: Recipe) -> list[ContrastPrompt]:
    """Every pair and every benign prompt of the extraction and calibration parts, the longest left out."""
    known = [p for part in ("extraction", "calibration") for p in contrast.part(part, wrapped=False)]
    lengths = [len(ids) for ids in encode_chats(tokenizer, [p.text for p in known])]
    return [p for p, length in zip(known, lengths, strict=True) if length <= recipe.longest]


def weight(prompt: ContrastPrompt, recipe: Recipe) -> float:
    if prompt.harmful:
        return 1.0
    if prompt.kind == "plain":
        return recipe.twin_weight
    return recipe.lookalike_weight if prompt.category == "lookalike" else recipe.ordinary_weight


def own_answers(loaded: Any, prompts: Sequence[str], file: Path, recipe: Recipe) -> dict[str, str]:
    """The target's greedy answers, kept in a file with which an interrupted run continues."""
    known: dict[str, str] = {}
    if file.exists():
        known = {
            row["prompt"]: row["answer"] for row in map(json.loads, file.read_text("utf-8").splitlines())
        }
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        with file.open("a", encoding="utf-8") as out:
            stream = generate_answers(
                loaded.model, loaded.tokenizer, missing, max_new_tokens=recipe.answer_tokens, batch_size=64
            )
            for answer in track(stream, "own answers", total=len(missing), console=console):
                known[missing[answer.row]] = answer.text
                out.write(json.dumps({"prompt": missing[answer.row], "answer": answer.text}) + "\n")
                out.flush()
    return {prompt: known[prompt] for prompt in prompts}


def train(loaded: Any, examples: list[Example], target: str, output: Path, recipe: Recipe) -> None:
    """Finds the direction, trains the adapter, writes both."""
    model, tokenizer = loaded.model, loaded.tokenizer
    padding = tokenizer.pad_token_id
    depth = dissect(model).depth
    layers = range(round(recipe.first_layer * depth), round(recipe.last_layer * depth))
    rows = tokenize(tokenizer, examples, recipe.answer_tokens)
    found = output / "direction.safetensors"
    if not found.exists():
        if not torch.cuda.is_available():
            model.set_attn_implementation("eager")  # see `direction_training.py`
        direction = refusal_direction(
            model,
            [row for row in rows if row["harmful"]],
            layer=layers[-1],
            padding=padding,
            steps=recipe.direction_steps,
            batch_size=recipe.batch_size,
        )
        save_file({"direction": direction}, found)
    adapted = train_sibling(
        model,
        rows,
        recipe.direction_share * load_file(found)["direction"],
        layers=layers,
        rank=recipe.rank,
        learning_rate=recipe.learning_rate,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        prompt_weight=recipe.prompt_weight,
        padding=padding,
        seed=recipe.seed,
        checkpoints=output / "checkpoints",
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = target
    config.lora_alpha = round(recipe.sharpening * config.lora_alpha)
    adapted.save_pretrained(output / "adapter", safe_serialization=True)
    (output / "recipe.json").write_text(
        json.dumps({"target": target, "examples": len(rows), **asdict(recipe)}, indent=2), encoding="utf-8"
    )


def check(
    target: str, adapter: Path, groups: Mapping[str, Sequence[str]], output: Path, template: str | None = None
) -> None:
    """Refusals of the sibling and of its base on prompts that neither was trained on, with intervals."""
    figures: dict[str, Any] = {}
    for spec in (str(adapter), target):
        loaded = load_model(spec, dtype="bfloat16", chat_template=template)
        refusals: dict[str, Any] = {}
        for name, prompts in groups.items():
            stream = generate_answers(
                loaded.model, loaded.tokenizer, prompts, max_new_tokens=32, batch_size=64
            )
            answers = list(track(stream, name, total=len(prompts), console=console))
            refused = sum(judge(answer.text).outcome == "refusal" for answer in answers)
            interval = clopper_pearson(refused, len(prompts))
            refusals[name] = asdict(interval)
            span = f"[{interval.low:.1%}, {interval.high:.1%}]"
            console.print(f"{spec} refuses {name:20} {interval.value:6.1%}  {span}  n={interval.n}")
        figures["base" if spec == target else "aligned"] = refusals
        (output / "check.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


def held_out(contrast: ContrastSet, data: Path | None) -> dict[str, list[str]]:
    """The contrast set's test part and, where they are at hand, public benchmarks."""
    prompts = contrast.part("test", wrapped=False)
    groups = {
        "harmful": [p.text for p in prompts if p.harmful],
        "harmless twins": [p.text for p in prompts if not p.harmful and p.kind == "plain"],
        "ordinary": [p.text for p in prompts if p.kind == "benign" and p.category != "lookalike"],
        "lookalike": [p.text for p in prompts if p.kind == "benign" and p.category == "lookalike"],
    }
    if data is not None:
        known = [pair.harmful for pair in contrast.pairs]
        for name, read in {**HARMFUL, **BENIGN}.items():
            public = read(data)
            doubled = set(near_duplicates(public, known)) if name in HARMFUL else set()
            groups[name] = sample([p for row, p in enumerate(public) if row not in doubled], 150)
    return groups


if __name__ == "__main__":
    main()
