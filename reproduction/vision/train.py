"""Train the LLaVA: its tower first, by itself, and then LLaVA's two stages.

    python -m reproduction.vision.train tower -o out/vision
    python -m reproduction.vision.train answers -o out/vision
    python -m reproduction.vision.train projector -o out/vision
    python -m reproduction.vision.train adapter -o out/vision

`--minutes` ends a stage early; the same command continues it.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from inferaligner.models.loading import LoadedModel, load_model
from reproduction.vision.lessons import Lessons, own_answers, requests
from reproduction.vision.llava_training import train
from reproduction.vision.model import TARGET, build, on_device, save
from reproduction.vision.tower_training import TowerLesson, teach


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters; the defaults take about ninety minutes of one core in all."""

    tower_steps: int = 5000
    tower_batch: int = 24
    tower_rate: float = 1e-3
    requests: int = 256  # that it learns to answer out of a picture
    projector_steps: int = 20
    adapter_steps: int = 700
    batch: int = 8
    projector_rate: float = 2e-4
    adapter_rate: float = 4e-4
    rank: int = 16


RECIPES = {
    "small": Recipe(),
    # Minutes of a data-centre GPU: twice the pages, eleven times the lessons.
    "gpu": Recipe(
        tower_steps=3500,
        tower_batch=64,
        tower_rate=8e-4,
        requests=2000,
        projector_steps=100,
        adapter_steps=2000,
        batch=32,
        adapter_rate=3e-4,
        rank=32,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("tower", "answers", "projector", "adapter"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="small")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--steps", type=int, help="of this stage, instead of the recipe's")
    parser.add_argument("--batch", type=int, help="of this stage, instead of the recipe's")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    stages = {"tower": tower, "answers": answers, "projector": projector, "adapter": adapter}
    recipe = RECIPES[options.recipe]
    if options.steps is not None and options.stage != "answers":
        recipe = replace(recipe, **{f"{options.stage}_steps": options.steps})
    if options.batch is not None:
        recipe = replace(recipe, **{"tower_batch" if options.stage == "tower" else "batch": options.batch})
    finished = stages[options.stage](options.output, recipe, options.minutes * 60)
    # 3: the time is over before the end of the stage; the same command continues it.
    sys.exit(0 if finished else 3)


def tower(output: Path, recipe: Recipe, seconds: float) -> bool:
    """Stage 0; True when it is done."""
    loaded = on_device(build())
    body = loaded.model.model
    lesson = TowerLesson(
        body.vision_tower,
        body.multi_modal_projector,
        body.language_model.get_input_embeddings().weight.detach(),
        loaded.tokenizer,
    )
    return teach(
        lesson,
        output / "tower.pt",
        seconds=seconds,
        steps=recipe.tower_steps,
        batch=recipe.tower_batch,
        rate=recipe.tower_rate,
    )


def answers(output: Path, recipe: Recipe, seconds: float) -> bool:
    """Generates the language model's own answers for the later stages."""
    _answers(output, recipe)
    return True


def projector(output: Path, recipe: Recipe, seconds: float) -> bool:
    """LLaVA's first stage."""
    return _stage(output, recipe, seconds, "projector")


def adapter(output: Path, recipe: Recipe, seconds: float) -> bool:
    """LLaVA's second stage; when it is done, the model is in the folder `model`."""
    return _stage(output, recipe, seconds, "adapter")


def _answers(output: Path, recipe: Recipe) -> dict[str, str]:
    known = requests("training")
    asked = random.Random(0).sample(known, min(recipe.requests, len(known)))
    file = output / "own_answers.jsonl"
    language = LoadedModel(None, None, "") if file.exists() else load_model(TARGET, dtype="bfloat16")
    return own_answers(language, asked, file)


def _stage(output: Path, recipe: Recipe, seconds: float, stage: str) -> bool:
    told = _answers(output, recipe)
    loaded = on_device(build())
    body = loaded.model.model
    state = torch.load(output / "tower.pt", weights_only=True, map_location=loaded.model.device)
    body.vision_tower.load_state_dict(state["tower"])
    body.multi_modal_projector.load_state_dict(state["projector"])
    if stage == "adapter":
        before = torch.load(output / "projector.pt", weights_only=True, map_location="cpu")["trained"]
        prefix = "model.multi_modal_projector."
        body.multi_modal_projector.load_state_dict(
            {name.removeprefix(prefix): value for name, value in before.items()}
        )
    finished = train(
        loaded,
        Lessons(told),
        output / f"{stage}.pt",
        adapter_rank=recipe.rank if stage == "adapter" else 0,
        seconds=seconds,
        steps=recipe.adapter_steps if stage == "adapter" else recipe.projector_steps,
        batch=recipe.batch,
        rate=recipe.adapter_rate if stage == "adapter" else recipe.projector_rate,
    )
    if finished and stage == "adapter":
        save(loaded, output / "model")
    return finished


if __name__ == "__main__":
    main()
