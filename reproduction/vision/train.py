"""Train the LLaVA: its tower first, by itself, and then LLaVA's two stages.

    python -m reproduction.vision.train tower -o out/vision
    python -m reproduction.vision.train projector -o out/vision
    python -m reproduction.vision.train adapter -o out/vision

Every stage goes on where it was left: `--minutes` ends one early, to be continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from reproduction.vision.model import build
from reproduction.vision.tower_training import TowerLesson, teach


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of the results in docs/vision.md."""

    tower_steps: int = 1800
    tower_batch: int = 24
    tower_rate: float = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("tower",))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=1e6)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe()
    finished = tower(options.output, recipe, options.minutes * 60)
    sys.exit(0 if finished else 3)


def tower(output: Path, recipe: Recipe, seconds: float) -> bool:
    """Stage 0; True when it is done."""
    loaded = build()
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


if __name__ == "__main__":
    main()
