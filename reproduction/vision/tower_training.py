"""The tower learns to read before it meets the language model.

For every patch, tower and projector shall give the language model's own embedding of the token that begins
there, and that of a blank where none does. That is cheap: the language model itself never runs.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduction.vision.checkpoints import Checkpoints
from reproduction.vision.pages import GRID, SPELLINGS, Page, Texts, any_style, text_page
from reproduction.vision.prefetching import prefetched
from reproduction.vision.scenes import any_scene, scene_page

PATCHES = GRID * GRID
_BLANK_WEIGHT = 0.5
_TEMPERATURE = 0.05
_NEGATIVES = 1500


def pixel_values(pages: list[Page]) -> Tensor:
    """`[pages, 3, side, side]`, from -1 to 1."""
    import numpy as np

    stacked = torch.from_numpy(np.stack([page.pixels for page in pages]))
    return stacked.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


class TowerLesson:
    """The training of a LLaVA's tower and projector; `step` is one batch."""

    def __init__(self, tower: nn.Module, projector: nn.Module, embeddings: Tensor, tokenizer: Any) -> None:
        self.tower, self.projector = tower, projector
        self.embeddings = embeddings.float()
        self.directions = F.normalize(self.embeddings, dim=-1)
        self.scale = float(self.embeddings.norm(dim=-1).mean())
        self.blank = int(tokenizer(" ", add_special_tokens=False)["input_ids"][0])
        self.device = embeddings.device
        self.spelling = nn.Linear(self._width(), SPELLINGS).to(self.device)
        self.tokenizer = tokenizer
        self.texts = Texts(tokenizer)

    def _width(self) -> int:
        return int(self.projector.linear_1.in_features)  # type: ignore[union-attr,arg-type]

    def parameters(self) -> list[nn.Parameter]:
        return [p for m in (self.tower, self.projector, self.spelling) for p in m.parameters()]

    def pages(self, count: int, rng: random.Random) -> list[Page]:
        return [
            scene_page(any_scene(rng), rng, self.tokenizer)
            if rng.random() < 0.1
            else text_page(self.texts.draw(rng), any_style(rng), self.tokenizer)
            for _ in range(count)
        ]

    def features(self, pages: list[Page]) -> Tensor:
        """`[pages, patches, width of the tower]`."""
        pixels = pixel_values(pages).to(self.device)
        found: Tensor = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        return found[:, -PATCHES:]

    def loss(self, pages: list[Page], rng: torch.Generator) -> tuple[Tensor, float]:
        """The loss, and the share of tokens that are read right among the batch's candidates."""
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.features(pages)
            told = self.projector(features)
            spelt = self.spelling(features)
        features, told, spelt = features.float(), told.float(), spelt.float()
        drawn = torch.zeros(len(pages) * PATCHES, SPELLINGS)
        places: list[int] = []
        named: list[int] = []
        for number, page in enumerate(pages):
            for patch, index in page.characters:
                drawn[number * PATCHES + patch, index] = 1.0
            places += [number * PATCHES + patch for patch, _ in page.tokens]
            named += [token for _, token in page.tokens]
        characters, tokens = drawn.to(self.device), torch.tensor(named, device=self.device)
        spelling = F.binary_cross_entropy_with_logits(spelt.flatten(0, 1), characters, reduction="sum")
        spelling = spelling / max(1, len(tokens)) / 4
        flat = told.flatten(0, 1)
        blank = torch.ones(len(flat), dtype=torch.bool, device=self.device)
        blank[places] = False
        more = torch.randint(len(self.embeddings), (_NEGATIVES,), generator=rng).to(self.device)
        candidates, target = torch.unique(
            torch.cat([tokens, tokens.new_tensor([self.blank]), more]), return_inverse=True
        )
        wanted = target[: len(tokens)]
        directions = self.directions[candidates]
        read = flat[places]
        logits = F.normalize(read, dim=-1) @ directions.T / _TEMPERATURE
        # Two tokens may begin in one patch: then each is half of the target.
        naming = F.cross_entropy(logits, wanted)
        # A blank is one thing: how far it is off is enough to learn it, without telling it from all others.
        empty = (flat[blank] - self.embeddings[self.blank]).pow(2).sum(-1).mean()
        near = (read - self.embeddings[tokens]).pow(2).sum(-1).mean() + _BLANK_WEIGHT * empty
        right = float((logits.argmax(-1) == wanted).float().mean())
        return naming + 0.3 * near / self.scale**2 + spelling, right


def teach(lesson: TowerLesson, place: Path, *, seconds: float, steps: int, batch: int, rate: float) -> bool:
    """Trains until `steps` are done (True) or `seconds` are over; continues from a checkpoint in `place`."""
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    done = 0
    if place.exists():
        state = torch.load(place, weights_only=True, map_location=lesson.device)
        done = state["done"]
        lesson.tower.load_state_dict(state["tower"])
        lesson.projector.load_state_dict(state["projector"])
        lesson.spelling.load_state_dict(state["spelling"])
        optimizer.load_state_dict(state["optimizer"])

    def state_now() -> dict[str, Any]:
        return {
            "done": done,
            "tower": lesson.tower.state_dict(),
            "projector": lesson.projector.state_dict(),
            "spelling": lesson.spelling.state_dict(),
            "optimizer": optimizer.state_dict(),
        }

    checkpoints = Checkpoints(place, state_now)
    drawn = prefetched(lambda step: lesson.pages(batch, random.Random(step)), done, steps, lesson.device)
    began = shown = time.monotonic()
    right_lately = 0.0
    while done < steps and time.monotonic() - began < seconds:
        share = done / steps
        warm = min(1.0, (done + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1.0 - share) ** 0.7
        loss, right = lesson.loss(next(drawn), torch.Generator().manual_seed(done))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(lesson.parameters(), 1.0)
        optimizer.step()
        done += 1
        right_lately += (right - right_lately) * 0.1
        if time.monotonic() - shown > 15:
            shown = time.monotonic()
            print(f"tower {done}/{steps}: loss {loss.item():.3f}, read {right_lately:.3f}", flush=True)
        checkpoints.now_and_then()
    checkpoints.now()
    return done >= steps
