"""The reading accuracy of the tower alone: the token that begins in each patch of held-out pages.

    python -m reproduction.vision.tower_reading -o out/vision

No language model takes part: a patch counts as read if the output of tower and projector is nearest, by
cosine, to the embedding of the token that begins there. The blind figure is the same with an empty page.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from inferaligner.statistics.intervals import clopper_pearson
from reproduction.vision.lessons import requests
from reproduction.vision.model import build
from reproduction.vision.pages import Page, any_style, text_page
from reproduction.vision.raster import PageStyle
from reproduction.vision.tower_training import TowerLesson


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    loaded = build()
    body = loaded.model.model
    state = torch.load(options.output / "tower.pt", weights_only=True, map_location="cpu")
    body.vision_tower.load_state_dict(state["tower"])
    body.multi_modal_projector.load_state_dict(state["projector"])
    lesson = TowerLesson(
        body.vision_tower,
        body.multi_modal_projector,
        body.language_model.get_input_embeddings().weight.detach(),
        loaded.tokenizer,
    )
    rng = random.Random("held-out pages")
    asked = rng.sample(requests("test"), options.pages)
    pages = [text_page(text, any_style(rng), loaded.tokenizer) for text in asked]
    empty = text_page(".", PageStyle(), loaded.tokenizer).pixels
    blind = [Page(empty, page.tokens) for page in pages]
    found = {
        "steps": state["done"],
        "tokens read": read(lesson, pages),
        "tokens read, blind": read(lesson, blind),
    }
    (options.output / "tower_reading.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


@torch.no_grad()
def read(lesson: TowerLesson, pages: list[Page]) -> dict[str, float]:
    """Share of tokens that are the nearest of the whole vocabulary in their patch."""
    right, total = 0, 0
    for start in range(0, len(pages), 20):
        some = pages[start : start + 20]
        told = F.normalize(lesson.projector(lesson.features(some)), dim=-1)
        for page, patches in zip(some, told, strict=True):
            places = torch.tensor([patch for patch, _ in page.tokens])
            nearest = (patches[places] @ lesson.directions.T).argmax(-1).tolist()
            right += sum(n == token for n, (_, token) in zip(nearest, page.tokens, strict=True))
            total += len(page.tokens)
    rate = clopper_pearson(right, total)
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


if __name__ == "__main__":
    main()
