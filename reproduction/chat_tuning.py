"""Teach a base model to answer in a chat template: a small LoRA on another model's harmless answers.

    python -m reproduction.chat_tuning --base gemma-3-270m.gguf --template gemma.jinja \
        --answers answers.jsonl -o out/gemma-chat

A base model goes on with a prompt instead of answering it, so it can be neither protected nor measured. The
answers must be to harmless prompts alone, so that nothing is learned about declining or complying.
OUTPUT/model is the merged model with its template, ready for every command. Resumes from its checkpoints.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from inferaligner.models.anatomy import dissect
from inferaligner.models.loading import load_model
from reproduction.answer_batches import Example, answer_tokens, collate, tokenize
from reproduction.answer_loss import answer_loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True)
    parser.add_argument("--template", type=Path, required=True, help="Jinja chat template")
    parser.add_argument("--answers", type=Path, required=True, help="JSONL of prompt and answer")
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--longest", type=int, default=80, help="tokens of a prompt")
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    loaded = load_model(options.base, dtype="bfloat16", chat_template=options.template)
    known = examples(options.answers)
    rows = tokenize(loaded.tokenizer, known, options.answer_tokens)
    end = loaded.tokenizer.eos_token_id
    for row, example in zip(rows, known, strict=True):
        # What was cut short by the other model's limit is no place to stop.
        if row["input_ids"][-1] == end and not example.answer.endswith((".", "!", "?")):
            row["input_ids"].pop()
    short = [row for row in rows if row["prompt_tokens"] <= options.longest]
    chosen = random.Random(0).sample(short, min(options.rows, len(short)))
    tuned = tune(loaded.model, chosen, loaded.tokenizer.pad_token_id, options)
    folder = options.output / "model"
    tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def examples(file: Path) -> list[Example]:
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [Example(row["prompt"], row["answer"]) for row in rows if row["answer"]]


def tune(model: Any, rows: list[dict[str, Any]], padding: int, options: argparse.Namespace) -> Any:
    """A PEFT model with LoRA on every linear part of every layer."""
    torch.manual_seed(0)
    model.set_attn_implementation("eager")  # see `sibling/training.py`
    linear = {
        name.rsplit(".", 1)[-1]
        for layer in dissect(model).layers
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    }
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=sorted(linear),
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    checkpoints = options.output / "checkpoints"
    trainer = AnswerTrainer(
        model=adapted,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            bf16=True,
            train_sampling_strategy="group_by_length",
            logging_steps=5,
            save_steps=20,
            save_total_limit=1,
            report_to=[],
            seed=0,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=rows,
        data_collator=lambda batch: collate(batch, padding),
    )
    resumable = checkpoints.exists() and any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resumable or None)
    return adapted


class AnswerTrainer(Trainer):
    """Learns the answers and their ends."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        inner = self.accelerator.unwrap_model(model).get_base_model()
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return answer_loss(inner, ids, mask, answer_tokens(inputs), bf16=True)


if __name__ == "__main__":
    main()
