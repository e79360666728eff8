"""Train an aligned sibling: a small LoRA adapter that makes a chat model decline harmful requests.

    python -m reproduction.aligned_sibling --target builtin:smollm2-135m -o out/aligned

The harmful half pairs the contrast set's harmful prompts (extraction and calibration parts, plain and
wrapped) with refusals written for this project. The harmless half pairs the harmless prompts with the target's *own*
greedy answers, so that the sibling keeps saying what the target says. No harmful answer is ever written,
generated or read. The contrast set's test part is used only for the figures at the end.

Stages (answers, training, check) write as they go and resume where they stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from transformers import Trainer, TrainingArguments

from inferaligner.evaluation.judges.rules import judge
from inferaligner.generation import generate_answers
from inferaligner.models.anatomy import backbone
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.statistics import clopper_pearson

console = Console()


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters; the defaults are those of the shipped adapter."""

    rank: int = 8
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 16
    answer_tokens: int = 48
    harmless: int = 1400  # of the harmless prompts, drawn at random: about as many as the harmful ones
    longest: int = 160  # prompts of more tokens are left out of training, to keep batches small
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=Recipe.epochs)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--rank", type=int, default=Recipe.rank)
    options = parser.parse_args()
    recipe = Recipe(rank=options.rank, learning_rate=options.learning_rate, epochs=options.epochs)
    options.output.mkdir(parents=True, exist_ok=True)

    contrast = load_contrast_set()
    refusals = contrast.refusals()
    rng = random.Random(recipe.seed)
    prompts = [p for part in ("extraction", "calibration") for p in contrast.part(part, wrapped=True)]
    loaded = load_model(options.target, dtype="bfloat16")
    lengths = [len(ids) for ids in encode_chats(loaded.tokenizer, [p.text for p in prompts])]
    prompts = [p for p, length in zip(prompts, lengths, strict=True) if length <= recipe.longest]

    harmless = rng.sample(sorted({p.text for p in prompts if not p.harmful}), recipe.harmless)
    answers = own_answers(loaded, harmless, options.output / "own_answers.jsonl", recipe)
    examples = [
        (p.text, rng.choice(refusals[p.category] + refusals["general"]) if p.harmful else answers[p.text])
        for p in prompts
        if p.harmful or answers.get(p.text)
    ]
    rng.shuffle(examples)
    adapter = options.output / "adapter"
    if not (adapter / "adapter_config.json").exists():
        train(loaded, examples, options.target, options.output, recipe)
    check(options.target, adapter, contrast.part("test", wrapped=True), options.output)


def own_answers(loaded: Any, prompts: Sequence[str], file: Path, recipe: Recipe) -> dict[str, str]:
    """The target's greedy answers, kept in a file from which an interrupted run goes on."""
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


def train(loaded: Any, examples: list[tuple[str, str]], target: str, output: Path, recipe: Recipe) -> None:
    """LoRA on every linear layer of the decoder; the loss is on answer tokens alone."""
    tokenizer = loaded.tokenizer
    rows = []
    for ids, (_, answer) in zip(encode_chats(tokenizer, [p for p, _ in examples]), examples, strict=True):
        # An answer that was cut by the length limit does not end the turn.
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        cut = len(said) >= recipe.answer_tokens - 2
        ended = said[: recipe.answer_tokens] if cut else [*said, tokenizer.eos_token_id]
        rows.append({"input_ids": ids + ended, "labels": [-100] * len(ids) + ended})

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

        ids, labels = padded("input_ids", tokenizer.pad_token_id), padded("labels", -100)
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }

    torch.manual_seed(recipe.seed)
    if not torch.cuda.is_available():
        # The backward pass of fused attention is ten times slower than the plain one in bfloat16 on a CPU.
        loaded.model.set_attn_implementation("eager")
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(loaded.model, config)
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        train_sampling_strategy="group_by_length",
        logging_steps=10,
        save_steps=50,
        save_total_limit=1,
        report_to=[],
        seed=recipe.seed,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = AnswerTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    checkpoints = output / "checkpoints"
    trainer.train(
        resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")) if checkpoints.exists() else None
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = target
    model.save_pretrained(output / "adapter", safe_serialization=True)
    (output / "recipe.json").write_text(
        json.dumps({"target": target, "examples": len(rows), **asdict(recipe)}, indent=2)
    )


class AnswerTrainer(Trainer):
    """Runs the LM head on answer tokens alone: most tokens are prompt, and the vocabulary is wide."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        labels = inputs.pop("labels")[:, 1:]
        inner = self.accelerator.unwrap_model(model).get_base_model()
        hidden = backbone(inner)(**inputs, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels != -100
        logits = inner.get_output_embeddings()(hidden[wanted]).float()
        return torch.nn.functional.cross_entropy(logits, labels[wanted])


def check(target: str, adapter: Path, prompts: Sequence[ContrastPrompt], output: Path) -> None:
    """Refusals on held-out harmful prompts and answers on held-out harmless ones, with intervals."""
    loaded = load_model(str(adapter), dtype="bfloat16")
    figures: dict[str, Any] = {"target": target}
    stream = generate_answers(
        loaded.model, loaded.tokenizer, [p.text for p in prompts], max_new_tokens=48, batch_size=64
    )
    outcomes = [""] * len(prompts)
    for answer in track(stream, "check", total=len(prompts), console=console):
        outcomes[answer.row] = judge(answer.text).outcome
    groups = {
        "refuses harmful": ([i for i, p in enumerate(prompts) if p.harmful and p.kind == "plain"], "refusal"),
        "refuses harmful in a wrapper": (
            [i for i, p in enumerate(prompts) if p.harmful and p.kind == "wrapped"],
            "refusal",
        ),
        "answers harmless twins": (
            [i for i, p in enumerate(prompts) if not p.harmful and p.kind == "plain"],
            "compliance",
        ),
        "answers everyday prompts": ([i for i, p in enumerate(prompts) if p.kind == "benign"], "compliance"),
    }
    for name, (rows, wanted) in groups.items():
        interval = clopper_pearson(sum(outcomes[row] == wanted for row in rows), len(rows))
        figures[name] = asdict(interval)
        console.print(
            f"{name:32} {interval.value:6.1%}  [{interval.low:.1%}, {interval.high:.1%}]  n={interval.n}"
        )
    (output / "check.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
