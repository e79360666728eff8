"""Training: the rows, the domain model, the baselines, and an aligned sibling if the family has none."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from inferaligner.errors import InferAlignerError, InputError
from inferaligner.storage.atomic_io import replace_file
from reproduction.fine_tuning import Job, train
from reproduction.recipe import HERE, from_environment
from reproduction.run_context import RunContext
from reproduction.safety_rows import safety_rows
from reproduction.stage_store import OutOfTime, console
from reproduction.training_rows import BENIGN, TRAIN, mix, read_rows, write_rows

_SIBLING = "aligned-sibling"


def rows(run: RunContext) -> dict[str, Any]:
    """Writes the training rows, without near-duplicates of test prompts."""
    folder = run.store.folder / "rows"

    def work() -> dict[str, Any]:
        return mix(
            run.rows,
            run.tests(),
            folder,
            data=run.place.data,
            benign=run.scale.benign_rows,
            seed=run.scale.seed,
            examples=run.place.examples,
        )

    settings = {
        "rows": dict(run.rows),
        "tests": {**run.scale.safety_suites, **run.utility},
        "seed": run.scale.seed,
        "benign": run.scale.benign_rows,
    }
    found: dict[str, Any] = run.store.stage("rows", settings, work, [folder / TRAIN, folder / BENIGN])
    return found


def domain(run: RunContext) -> None:
    """Trains the domain model."""
    file = run.store.folder / "rows" / TRAIN
    _train(run, "train", answering(run), None, file, run.training())


def safety_sft(run: RunContext) -> None:
    """Trains the paper's baseline: a hundred safety samples in the fine-tuning data."""
    settings, folder = run.scale.safety_sft, run.store.folder
    file = folder / "safety-sft" / TRAIN
    training = run.training(settings.training)
    on_top = settings.start == "domain"

    def work() -> dict[str, Any]:
        ours, separation = safety_rows(settings.samples, run.tests(), run.scale.seed)
        trained = read_rows(folder / "rows" / TRAIN)
        draw = random.Random(run.scale.seed)
        others = draw.sample(trained, min(settings.replay, len(trained))) if on_top else trained
        mixed = [*ours, *others]
        draw.shuffle(mixed)
        write_rows(file, mixed)
        return {"separation": separation.described(), "rows": len(mixed)}

    run.store.stage("safety-rows", settings.model_dump(), work, [file])
    if on_top and training.rank is None:
        _train(run, "safety-sft", str(run.domain_model), None, file, training)
    else:
        adapter = str(run.domain_model) if on_top else None
        _train(run, "safety-sft", answering(run), adapter, file, training)


def domain_chat(run: RunContext) -> None:
    """Trains the paper's other baseline: the aligned sibling, fine-tuned on the same rows."""
    _train(run, "domain-chat", sibling(run), None, run.store.folder / "rows" / TRAIN, run.training())


def sibling(run: RunContext) -> str:
    """The spec of the aligned model, which all domains share; trained first if the family has none."""
    if run.family.aligned is not None:
        return from_environment(run.family.aligned)
    store = run.store.of(_SIBLING)
    target, folder = answering(run), store.folder / "train"
    how = run.scale.sibling

    def work() -> None:
        words = ["-m", "reproduction.sibling", "--target", target, "-o", str(folder), *how.options]
        if target == run.target and run.family.template is not None:
            words += ["--chat-template", run.family.template]
        _run([sys.executable, *words])

    store.stage("train", {"target": target, **how.model_dump()}, work, [folder / "adapter"])
    return str(folder / "adapter")


def answering(run: RunContext) -> str:
    """The spec of the model from which training starts: the target, or the target trained to answer in chats.

    The paper mixes ten thousand dialogues into its domain data, from which a base model learns to answer. At
    the scale `small` there is no time for that in every domain, so the dialogues are trained once, before all
    domains.
    """
    chat, store = run.family.chat, run.store.of(_SIBLING)
    if not chat:
        return run.target
    if run.family.template is None:
        raise InputError(f"The family {run.family_name} has `chat` and no chat_template; it needs both.")
    folder = store.folder / "chat"
    file = folder / TRAIN

    def work() -> None:
        mix(chat, {}, folder, data=run.place.data, benign=0, seed=0, examples=run.place.examples)
        words = ["-m", "reproduction.chat_tuning", "--base", run.target, "--template", run.family.template]
        _run([sys.executable, *map(str, words), "--answers", str(file), "-o", str(folder)])

    settings = {"target": run.target, "rows": dict(chat)}
    store.stage("chat", settings, work, [folder / "model"])
    return str(folder / "model")


def _train(run: RunContext, name: str, model: str, adapter: str | None, file: Path, training: Any) -> None:
    output = run.store.folder / name
    job = Job(
        model=model,
        adapter=adapter,
        chat_template=run.family.template,
        trust_remote_code=run.family.trust_remote_code,
        rows=str(file),
        output=str(output),
        training=training,
    )

    def work() -> None:
        launched = job.model_copy(update={"minutes": run.store.clock.left})
        if run.scale.launcher is None:
            finished = train(launched)
        else:
            finished = _launch(launched, run.scale.launcher, output)
        if not finished:
            raise OutOfTime(
                f"The time is over in the stage {name}; a checkpoint is written. Run the same command again."
            )

    settings = job.model_dump(exclude={"minutes", "rows", "output"})
    run.store.stage(name, settings, work, [job.result])


def _launch(job: Job, configuration: str, output: Path) -> bool:
    """Runs the job on all GPUs of this machine, through accelerate."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "job.json"
    replace_file(file, (job.model_dump_json(indent=1) + "\n").encode())
    places = HERE / "accelerate" / configuration
    words = ["-m", "accelerate.commands.launch", "--config_file", str(places)]
    code = _run([sys.executable, *words, "-m", "reproduction.fine_tuning", str(file)], (0, 3))
    return code == 0


def _run(words: list[str], expected: tuple[int, ...] = (0,)) -> int:
    console.print("$ " + " ".join(words), style="dim", soft_wrap=True, highlight=False)
    code = subprocess.run(words, check=False).returncode
    if code not in expected:
        raise InferAlignerError(f"`{' '.join(words[1:4])}` ended with code {code}; its message is above.")
    return code
