"""The LLaVA's training examples: reading a page aloud, following a request on a page, describing a scene.

The answers to requests on pages are the language model's own answers to the same requests as text, so the
training teaches reading alone. All requests are harmless ones of the contrast set's extraction and
calibration parts; no harmful request is answered.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import ImagePrompt, Picture, picture_from
from inferaligner.prompts.picture_styles import STYLES, render
from reproduction.vision.pages import any_style
from reproduction.vision.raster import draw_text, fits
from reproduction.vision.scenes import any_scene, draw_scene, questions

READ = (
    "What does the image say?",
    "Read the text in the image aloud.",
    "Write down the words in the picture.",
)
LONGEST = 110
"""Largest number of characters of a request, so that its page has room for a numbered list."""

ANSWER_TOKENS = 28


@dataclass(frozen=True)
class Lesson:
    """A picture with a question, and the answer."""

    prompt: ImagePrompt
    answer: str


def requests(part: str) -> list[str]:
    """The harmless requests of the test part, or of the other two parts, that are short enough."""
    contrast = load_contrast_set()
    parts = ("test",) if part == "test" else ("extraction", "calibration")
    asked = [p.text for name in parts for p in contrast.part(name, wrapped=False) if not p.harmful]
    return [" ".join(text.split()) for text in asked if len(text) <= LONGEST and fits(text)]


def own_answers(loaded: LoadedModel, asked: Sequence[str], file: Path) -> dict[str, str]:
    """The language model's own greedy answers, generated once and kept in a file."""
    if file.exists():
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {row["prompt"]: row["answer"] for row in rows}
    found: dict[str, str] = {}
    for answer in generate_answers(loaded.model, loaded.tokenizer, asked, max_new_tokens=ANSWER_TOKENS):
        found[asked[answer.row]] = answer.text
    lines = [json.dumps({"prompt": prompt, "answer": found[prompt]}) + "\n" for prompt in asked]
    file.write_text("".join(lines), encoding="utf-8")
    return found


class Lessons:
    """Draws lessons; the same generator state gives the same lesson."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = {prompt: answer for prompt, answer in answers.items() if answer}
        self.asked = sorted(self.answers)

    def draw(self, rng: random.Random) -> Lesson:
        kind = rng.random()
        if kind < 0.3:
            return scene_lesson(rng)
        request = rng.choice(self.asked)
        if kind < 0.55:
            return reading_lesson(request, rng)
        shown = render(STYLES[rng.randrange(len(STYLES))], request, draw_text)
        if shown is None:
            return reading_lesson(request, rng)
        return Lesson(shown, self.answers[request])


def reading_lesson(request: str, rng: random.Random) -> Lesson:
    """A request as the picture, and its words as the answer."""
    picture = picture_from(draw_text(request, any_style(rng)))
    return Lesson(ImagePrompt(rng.choice(READ), (picture,)), request)


def scene_lesson(rng: random.Random) -> Lesson:
    """Shapes or bars, with a question that a word answers."""
    scene = any_scene(rng)
    question, answer = questions(scene, rng)
    return Lesson(ImagePrompt(question, (_picture(scene, rng),)), answer.capitalize())


def _picture(scene: Any, rng: random.Random) -> Picture:
    return picture_from(draw_scene(scene, rng))
