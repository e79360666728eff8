"""Train: the rows, the domain model, the Safety SFT baseline, and an aligned sibling where there is none."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from inferaligner.errors import InferAlignerError, InputError
from inferaligner.storage.atomic_io import replace_file
from reproduction.fine_tuning import Job, train
from reproduction.mixture import BENIGN, TRAIN, mix, read_rows, write_rows
from reproduction.recipe import HERE, from_environment
from reproduction.run_context import RunContext
from reproduction.safety_rows import safety_rows
from reproduction.stage_store import OutOfTime, console

_SIBLING = "aligned-sibling"


def rows(cell: RunContext) -> dict[str, Any]:
    """Writes the rows, kept apart from every test prompt."""
    folder = cell.workplace.folder / "rows"

    def work() -> dict[str, Any]:
        return mix(
            cell.rows,
            cell.tests(),
            folder,
            data=cell.place.data,
            benign=cell.scale.benign_rows,
            seed=cell.scale.seed,
            examples=cell.place.examples,
        )

    settings = {
        "rows": dict(cell.rows),
        "tests": {**cell.scale.safety_suites, **cell.utility},
        "seed": cell.scale.seed,
        "benign": cell.scale.benign_rows,
    }
    found: dict[str, Any] = cell.workplace.stage("rows", settings, work, [folder / TRAIN, folder / BENIGN])
    return found


def domain(cell: RunContext) -> None:
    """The domain model."""
    file = cell.workplace.folder / "rows" / TRAIN
    _train(cell, "train", answering(cell), None, file, cell.training())


def safety_sft(cell: RunContext) -> None:
    """The paper's baseline: a hundred safety samples in the fine-tuning data."""
    settings, folder = cell.scale.safety_sft, cell.workplace.folder
    file = folder / "safety-sft" / TRAIN
    training = cell.training(settings.training)
    on_top = settings.start == "domain"

    def work() -> dict[str, Any]:
        ours, separation = safety_rows(settings.samples, cell.tests(), cell.scale.seed)
        trained = read_rows(folder / "rows" / TRAIN)
        draw = random.Random(cell.scale.seed)
        others = draw.sample(trained, min(settings.replay, len(trained))) if on_top else trained
        mixed = [*ours, *others]
        draw.shuffle(mixed)
        write_rows(file, mixed)
        return {"separation": separation.described(), "rows": len(mixed)}

    cell.workplace.stage("safety-rows", settings.model_dump(), work, [file])
    if on_top and training.rank is None:
        _train(cell, "safety-sft", str(cell.domain_model), None, file, training)
    else:
        adapter = str(cell.domain_model) if on_top else None
        _train(cell, "safety-sft", answering(cell), adapter, file, training)


def domain_chat(cell: RunContext) -> None:
    """The paper's other baseline: the aligned sibling, fine-tuned on the very same rows."""
    _train(cell, "domain-chat", sibling(cell), None, cell.workplace.folder / "rows" / TRAIN, cell.training())


def sibling(cell: RunContext) -> str:
    """The spec of the aligned model; trained first, if the family has none. Every domain shares it."""
    if cell.family.aligned is not None:
        return from_environment(cell.family.aligned)
    workplace = cell.workplace.of(_SIBLING)
    target, folder = answering(cell), workplace.folder / "train"
    how = cell.scale.sibling

    def work() -> None:
        name = "quick_sibling" if how.quick else "aligned_sibling"
        words = ["-m", f"reproduction.{name}", "--target", target, "-o", str(folder), *how.options]
        if not how.quick:
            if target == cell.target and cell.family.template is not None:
                words += ["--chat-template", cell.family.template]
            if cell.place.data is not None:
                words += ["--data", str(cell.place.data)]
        _run([sys.executable, *words])

    workplace.stage("train", {"target": target, **how.model_dump()}, work, [folder / "adapter"])
    return str(folder / "adapter")


def answering(cell: RunContext) -> str:
    """The model that everything starts from: the target, or what it is once it has learned to answer.

    The paper mixes ten thousand dialogues into its domain data, and a base model learns to answer from those.
    When small there is no time for that in every domain, so the dialogues come first, once for all.
    """
    chat, workplace = cell.family.chat, cell.workplace.of(_SIBLING)
    if not chat:
        return cell.target
    if cell.family.template is None:
        raise InputError(f"The family {cell.family_name} states `chat` and no chat_template; it needs both.")
    folder = workplace.folder / "chat"
    file = folder / TRAIN

    def work() -> None:
        mix(chat, {}, folder, data=cell.place.data, benign=0, seed=0, examples=cell.place.examples)
        words = ["-m", "reproduction.chat_tuning", "--base", cell.target, "--template", cell.family.template]
        _run([sys.executable, *map(str, words), "--answers", str(file), "-o", str(folder)])

    settings = {"target": cell.target, "rows": dict(chat)}
    workplace.stage("chat", settings, work, [folder / "model"])
    return str(folder / "model")


def _train(cell: RunContext, name: str, model: str, adapter: str | None, file: Path, training: Any) -> None:
    output = cell.workplace.folder / name
    job = Job(
        model=model,
        adapter=adapter,
        chat_template=cell.family.template,
        trust_remote_code=cell.family.trust_remote_code,
        rows=str(file),
        output=str(output),
        training=training,
    )

    def work() -> None:
        launched = job.model_copy(update={"minutes": cell.workplace.clock.left})
        if cell.scale.launcher is None:
            finished = train(launched)
        else:
            finished = _launch(launched, cell.scale.launcher, output)
        if not finished:
            raise OutOfTime(
                f"The time is over in the stage {name}; a checkpoint is written. Run the same command again."
            )

    settings = job.model_dump(exclude={"minutes", "rows", "output"})
    cell.workplace.stage(name, settings, work, [job.result])


def _launch(job: Job, configuration: str, output: Path) -> bool:
    """The same job on all GPUs of this machine, through accelerate."""
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
