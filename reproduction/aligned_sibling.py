"""Train an aligned sibling: a small LoRA adapter that makes a chat model decline harmful requests.

    python -m reproduction.aligned_sibling --target builtin:smollm2-135m -o out/aligned

The harmful half pairs the contrast set's harmful prompts (extraction and calibration parts) with refusals
written for this project. The harmless half pairs their twins and ordinary prompts with the beginning of the
target's *own* greedy answers, so that the sibling keeps saying what the target says. No harmful answer is
ever written, generated or read. The contrast set's test part is used only for the figures at the end.

Stages (answers, training, check) write as they go and resume where they stopped.
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
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from transformers import Trainer, TrainingArguments

from inferaligner.evaluation.judges.rules import judge
from inferaligner.generation import generate_answers
from inferaligner.models.anatomy import backbone, dissect
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import ContrastPrompt, ContrastSet, load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics import clopper_pearson
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample

console = Console()

SHIPPED_OPENING = "I'm sorry, but I can't help with"
"""How every refusal of the contrast set begins."""


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters; the defaults are those of the shipped adapter."""

    rank: int = 12
    learning_rate: float = 1e-3
    epochs: float = 3.0
    batch_size: int = 16
    answer_tokens: int = 24  # of the target's own answers; what follows them follows by itself
    benign: int = 750  # ordinary prompts, beside every twin
    longest: int = 192  # prompts of more tokens are left out of training, to keep batches small
    # The refusals are made to open as the target opens its own rare ones. What steering carries over is
    # the turn at the first words; how a refusal goes on is then already the target's habit.
    opening: str = "I'm sorry, but as a chatbot, I'm not equipped to help with"
    # Whether an answer is a refusal is settled by its first words; the rest follows.
    decisive_tokens: int = 8
    decisive_weight: float = 4.0
    # Shares of the depth between which layers are trained. The upper layers stay the target's own: a refusal
    # must then be written into the residual stream in a form that the target itself can read, which is
    # what makes the sibling's vectors work in the target. Trained all the way up, a sibling declines as
    # reliably, and its vectors steer hardly at all.
    first_layer: float = 0.1
    last_layer: float = 0.6
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
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
    loaded = load_model(options.target, dtype="bfloat16")
    prompts = training_prompts(contrast, loaded.tokenizer, recipe, rng)
    harmless = sorted({p.text for p in prompts if not p.harmful})
    answers = own_answers(loaded, harmless, options.output / "own_answers.jsonl", recipe)
    examples = [
        (p.text, rng.choice(refusals[p.category] + refusals["general"]) if p.harmful else answers[p.text])
        for p in prompts
        if p.harmful or answers[p.text]
    ]
    rng.shuffle(examples)
    adapter = options.output / "adapter"
    if not (adapter / "adapter_config.json").exists():
        train(loaded, examples, options.target, options.output, recipe)
    check(options.target, adapter, held_out(contrast, options.data), options.output)


def training_prompts(
    contrast: ContrastSet, tokenizer: Any, recipe: Recipe, rng: random.Random
) -> list[ContrastPrompt]:
    """Every pair of the extraction and calibration parts, and a draw of the benign prompts."""
    known = [p for part in ("extraction", "calibration") for p in contrast.part(part, wrapped=False)]
    lengths = [len(ids) for ids in encode_chats(tokenizer, [p.text for p in known])]
    short = [p for p, length in zip(known, lengths, strict=True) if length <= recipe.longest]
    benign = [p for p in short if p.kind == "benign"]
    return [p for p in short if p.kind == "plain"] + rng.sample(benign, min(recipe.benign, len(benign)))


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
    rows: list[dict[str, list[Any]]] = []
    for ids, (_, answer) in zip(encode_chats(tokenizer, [p for p, _ in examples]), examples, strict=True):
        # An answer that was cut by the length limit does not end the turn.
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        cut = len(said) >= recipe.answer_tokens - 2
        ended = said[: recipe.answer_tokens] if cut else [*said, tokenizer.eos_token_id]
        weights = [recipe.decisive_weight] * recipe.decisive_tokens + [1.0] * len(ended)
        rows.append(
            {
                "input_ids": ids + ended,
                "labels": [-100] * len(ids) + ended,
                "weights": [0.0] * len(ids) + weights[: len(ended)],
            }
        )

    def collate(batch: list[dict[str, list[Any]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, value: float) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        return {
            "input_ids": padded("input_ids", tokenizer.pad_token_id),
            "labels": padded("labels", -100),
            "weights": padded("weights", 0.0),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }

    torch.manual_seed(recipe.seed)
    if not torch.cuda.is_available():
        # The backward pass of fused attention is ten times slower than the plain one in bfloat16 on a CPU.
        loaded.model.set_attn_implementation("eager")
    layers = dissect(loaded.model).layers
    linear = {name for name, part in layers[0].named_modules() if isinstance(part, torch.nn.Linear)}
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=sorted(linear),
        layers_to_transform=list(
            range(round(recipe.first_layer * len(layers)), round(recipe.last_layer * len(layers)))
        ),
        task_type="CAUSAL_LM",
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
    """Runs the LM head on answer tokens alone (most tokens are prompt, and the vocabulary is wide), and
    weighs the tokens that decide between refusing and answering."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        labels, weights = inputs.pop("labels")[:, 1:], inputs.pop("weights")[:, 1:]
        inner = self.accelerator.unwrap_model(model).get_base_model()
        wanted = labels != -100
        # The trainer's own autocast surrounds the model's forward, which is not called here.
        with torch.autocast(labels.device.type, dtype=torch.bfloat16):
            hidden = backbone(inner)(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = inner.get_output_embeddings()(hidden[wanted])
        losses = torch.nn.functional.cross_entropy(logits.float(), labels[wanted], reduction="none")
        return (losses * weights[wanted]).sum() / weights[wanted].sum()


def check(target: str, adapter: Path, groups: Mapping[str, Sequence[str]], output: Path) -> None:
    """Refusals of the sibling and of its base on prompts that neither was trained on, with intervals."""
    figures: dict[str, Any] = {}
    for spec in (str(adapter), target):
        loaded = load_model(spec, dtype="bfloat16")
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
        (output / "check.json").write_text(json.dumps(figures, indent=2))


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
