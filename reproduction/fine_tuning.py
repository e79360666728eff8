"""Supervised fine-tuning with TRL: LoRA by PEFT, or all weights. One job, from one JSON file.

    python -m reproduction.fine_tuning JOB.json
    accelerate launch --config_file CONFIGURATION.yaml -m reproduction.fine_tuning JOB.json

The loss is on answers alone. The job writes checkpoints as it goes, resumes from the last, and stops at its
time limit with one; what it has taken is in `training.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from inferaligner.errors import InferAlignerError, InputError, MissingExtraError
from inferaligner.models.loading import load_model
from inferaligner.storage.atomic_io import replace_file
from reproduction.answer_loss import head_says_all, on_answers_alone
from reproduction.chat_rows import token_rows
from reproduction.corpora.corpus import Row
from reproduction.training_settings import Training

TIMES = "training.json"


class Job(BaseModel):
    """A training job: model, rows, settings and output folder.

    Attributes:
        model: spec of the model to start from.
        adapter: a LoRA adapter of it to go on from, instead of a fresh one.
        rows: JSON lines with prompt and answer.
        output: folder; the result is in `output/model`.
        minutes: stop after so many, with a checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    adapter: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    rows: str
    output: str
    training: Training
    minutes: float | None = None

    @property
    def result(self) -> Path:
        """Where the trained model or adapter is, once it is finished."""
        return Path(self.output) / "model"

    @property
    def finished(self) -> bool:
        """Whether it is there."""
        return (self.result / "finished.json").is_file()


def train(job: Job) -> bool:
    """Trains, or continues training; returns whether it is finished.

    Raises:
        InputError: no usable rows.
        MissingExtraError: TRL is not installed.
    """
    if job.finished:
        return True
    try:
        import datasets
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        raise MissingExtraError('Training needs TRL: pip install "inferaligner[reproduction]".') from None
    settings, output = job.training, Path(job.output)
    cpu = not torch.cuda.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    loaded = load_model(
        job.model,
        dtype=settings.load_dtype,
        device="cpu" if several or cpu else "auto",
        chat_template=job.chat_template,
        trust_remote_code=job.trust_remote_code,
    )
    given = _read(Path(job.rows))
    rows = token_rows(loaded.tokenizer, given, settings.max_length)
    if not rows:
        raise InputError(
            f"No row of {job.rows} fits into {settings.max_length} tokens; expected rows with prompt and "
            "answer."
        )
    too_long = len(given) - len(rows)
    if too_long:
        print(
            f"{too_long} of {len(given)} rows are left out: their prompts alone fill the "
            f"{settings.max_length} tokens of max_length.",
            file=sys.stderr,
        )
    model = loaded.model
    if cpu:
        # The backward pass of fused attention is ten times slower than the plain one in bfloat16 on a CPU.
        model.set_attn_implementation("eager")
    model, adapter = _adapted(model, job)
    per_step = settings.micro_batch * int(os.environ.get("WORLD_SIZE", "1"))
    arguments = SFTConfig(
        output_dir=str(output / "checkpoints"),
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=max(1, settings.batch_size // per_step),
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        completion_only_loss=True,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        use_cpu=cpu,
        train_sampling_strategy="group_by_length",
        logging_steps=max(1, settings.save_steps // 5),
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to=[],
        seed=settings.seed,
        dataloader_pin_memory=not cpu,
        disable_tqdm=not sys.stderr.isatty(),
    )
    limit = _watch(job.minutes)
    trainer_class: Any = SFTTrainer
    if cpu and not several and head_says_all(loaded.model):
        trainer_class = on_answers_alone(SFTTrainer)
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        peft_config=adapter,
        callbacks=[limit],
    )
    checkpoints = Path(arguments.output_dir)
    resumable = checkpoints.is_dir() and any(checkpoints.glob("checkpoint-*"))
    before = trainer.state.global_step
    begun = time.monotonic()
    trainer.train(resume_from_checkpoint=resumable or None)
    _write_times(trainer, output, rows, too_long, time.monotonic() - begun, limit.steps or before)
    if trainer.state.global_step < trainer.state.max_steps:
        return False
    _save(trainer, loaded, job)
    return True


def _adapted(model: Any, job: Job) -> tuple[Any, Any]:
    """The model, and the configuration of a fresh adapter if it is to get one."""
    settings = job.training
    if job.adapter is not None:
        import peft

        return peft.PeftModel.from_pretrained(model, job.adapter, is_trainable=True), None
    if settings.rank is None:
        return model, None
    import peft

    return model, peft.LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _save(trainer: Any, loaded: Any, job: Job) -> None:
    """Writes the model without training state; the marker last, because the process may be killed before."""
    job.result.mkdir(parents=True, exist_ok=True)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if job.training.rank is not None or job.adapter is not None:
        # A path is looked for from wherever the adapter is used, so it must not depend on where we are.
        base = Path(job.model)
        trained.peft_config["default"].base_model_name_or_path = (
            str(base.resolve()) if base.exists() else job.model
        )
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    trainer.save_model(str(job.result))
    if trainer.is_world_process_zero():
        if job.training.rank is None and job.adapter is None:
            loaded.tokenizer.save_pretrained(job.result)
        else:
            # The base's tokenizer is the adapter's too; a copy would be larger than the adapter.
            for pattern in ("tokenizer*", "chat_template*", "special_tokens*", "vocab*", "merges*", "*.bin"):
                for file in job.result.glob(pattern):
                    file.unlink()
        replace_file(job.result / "finished.json", (job.model_dump_json(indent=2) + "\n").encode())


def _watch(minutes: float | None) -> Any:
    """A callback that ends training with a checkpoint when the time is up, and counts steps of this slice."""
    from transformers import TrainerCallback

    class TimeLimit(TrainerCallback):
        def __init__(self) -> None:
            self.steps = 0
            self._end = None if minutes is None else time.monotonic() + 60 * minutes

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> Any:
            self.steps += 1
            if self._end is not None and time.monotonic() > self._end:
                control.should_save = control.should_training_stop = True
            return control

    return TimeLimit()


def _write_times(
    trainer: Any, output: Path, rows: list[Any], too_long: int, seconds: float, steps: int
) -> None:
    """Adds the times of this slice to the earlier ones."""
    if not trainer.is_world_process_zero():
        return
    file = output / TIMES
    known: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {"slices": []}
    known["slices"].append({"steps": steps, "seconds": round(seconds, 1), "processes": _processes()})
    known |= {
        "rows": len(rows),
        "rows too long": too_long,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "answer tokens": sum(sum(row["completion_mask"]) for row in rows),
        "steps": trainer.state.global_step,
        "of": trainer.state.max_steps,
        "seconds": round(sum(part["seconds"] for part in known["slices"]), 1),
        "trained parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "loss": [
            {"step": entry["step"], "loss": round(float(entry["loss"]), 4)}
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
    }
    replace_file(file, (json.dumps(known, indent=1) + "\n").encode())


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _read(file: Path) -> list[Row]:
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    return [Row(row["prompt"], row["answer"], "") for row in found]


def main(arguments: list[str]) -> int:
    """Runs the job of a file: 0 finished, 3 out of time, 2 something to mend."""
    if len(arguments) != 1:
        print("Expected one JSON file with a job.", file=sys.stderr)
        return 2
    try:
        job = Job.model_validate_json(Path(arguments[0]).read_text("utf-8"))
        return 0 if train(job) else 3
    except (OSError, ValueError, InferAlignerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
