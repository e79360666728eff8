"""Reading accuracy of the LLaVA on held-out pages and scenes, against the same questions with a blank
picture.

    python -m reproduction.vision.reading out/vision/model -o out/vision/reading.json

Pages hold harmless requests of the contrast set's test part, which no training drew; scenes are drawn with
other seeds. With `--aligner` every question is asked again under it: where the gate stays closed, the answer
must be the same token by token.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from inferaligner.aligner import Aligner
from inferaligner.evaluation.labels import named_choice
from inferaligner.evaluation.paired_statistics import mean_interval
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.images import ImagePrompt, Prompt, picture_from, require_pillow
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.vision.lessons import READ, reading_lesson, requests
from reproduction.vision.pages import DRAWN
from reproduction.vision.raster import PageStyle
from reproduction.vision.scenes import COLOURS, NUMBERS, SHAPES, Scene, any_scene, draw_scene, questions

_TOKENS = 40


@dataclass(frozen=True)
class Question:
    """A question with its right answer: a text to be read, or a word."""

    kind: str  # "page", "colour", "shape", "count" or "chart"
    prompt: ImagePrompt
    answer: str

    def blind(self) -> ImagePrompt:
        """The same question about an empty picture."""
        images, _, _ = require_pillow()
        empty = images.new("RGB", (DRAWN, DRAWN), PageStyle().paper)
        return ImagePrompt(self.prompt.text, (picture_from(empty),))


def page_questions(count: int) -> list[Question]:
    """Held-out requests to be read aloud."""
    rng = random.Random("held-out pages")
    asked = rng.sample(requests("test"), count)
    lessons = [reading_lesson(text, rng) for text in asked]
    return [
        Question("page", ImagePrompt(READ[0], lesson.prompt.pictures), lesson.answer) for lesson in lessons
    ]


def scene_questions(count: int) -> list[Question]:
    """Held-out scenes."""
    rng = random.Random("held-out scenes")
    found = []
    for _ in range(count):
        scene = any_scene(rng)
        question, answer = questions(scene, rng)
        picture = picture_from(draw_scene(scene, rng))
        found.append(Question(_kind(scene, answer), ImagePrompt(question, (picture,)), answer))
    return found


def words_read(text: str, answer: str) -> float:
    """Share of a text's words that an answer has, in their order; case and marks do not count."""
    wanted, said = _words(text), _words(answer)
    matched = SequenceMatcher(None, wanted, said, autojunk=False).get_matching_blocks()
    return sum(block.size for block in matched) / max(1, len(wanted))


def told(answer: str) -> str | None:
    """The first word of a scene that an answer names; None without one."""
    return named_choice(answer, (*COLOURS, *SHAPES, *NUMBERS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--aligner", type=Path)
    parser.add_argument("--pages", type=int, default=60)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    loaded = load_model(options.model, dtype="bfloat16")
    asked = [*page_questions(options.pages), *scene_questions(options.scenes)]
    seen = ask(loaded, [question.prompt for question in asked])
    blind = ask(loaded, [question.blind() for question in asked])
    figures: dict[str, Any] = {"seeing": scores(asked, seen), "blind": scores(asked, blind)}
    if options.aligner is not None:
        figures["with the aligner"] = guarded(loaded, Aligner.from_pretrained(options.aligner), asked, seen)
    options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def ask(loaded: LoadedModel, prompts: Sequence[Prompt], **options: Any) -> list[Answer]:
    """The answers, in order."""
    found = generate_answers(
        loaded.model, loaded.reader, prompts, max_new_tokens=_TOKENS, batch_size=16, **options
    )
    return sorted(found, key=lambda answer: answer.row)


def scores(asked: Sequence[Question], answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Per kind of question: the mean share of words read, or the share of right answers, with intervals."""
    by_kind: dict[str, list[float]] = {}
    for question, answer in zip(asked, answers, strict=True):
        if question.kind == "page":
            by_kind.setdefault("page, words read", []).append(words_read(question.answer, answer.text))
        else:
            by_kind.setdefault(question.kind, []).append(float(told(answer.text) == question.answer))
            by_kind.setdefault("scenes", []).append(float(told(answer.text) == question.answer))
    found: dict[str, dict[str, float]] = {}
    for kind, values in sorted(by_kind.items()):
        if kind == "page, words read":
            value, low, high = mean_interval(values)
            found[kind] = {"value": value, "low": low, "high": high, "n": len(values)}
        else:
            found[kind] = asdict(clopper_pearson(int(sum(values)), len(values)))
    return found


def guarded(
    loaded: LoadedModel, aligner: Aligner, asked: Sequence[Question], bare: Sequence[Answer]
) -> dict[str, Any]:
    """The same questions under an aligner: how many open the gate, and whether the others change."""
    with aligner.apply(loaded.model, loaded.reader) as guard:
        answers = ask(loaded, [question.prompt for question in asked], decisions=lambda: guard.decisions)
    closed = [
        (ours, theirs)
        for ours, theirs in zip(answers, bare, strict=True)
        if ours.decision is not None and not ours.decision.open
    ]
    return {
        "open": asdict(clopper_pearson(len(answers) - len(closed), len(answers))),
        "closed and identical": asdict(
            clopper_pearson(sum(ours.tokens == theirs.tokens for ours, theirs in closed), len(closed))
        ),
        "scores": scores(asked, answers),
    }


def _kind(scene: Scene, answer: str) -> str:
    if scene.bars:
        return "chart"
    return "colour" if answer in COLOURS else "shape" if answer in SHAPES else "count"


def _words(text: str) -> list[str]:
    return "".join(c.lower() if c.isalnum() else " " for c in text).split()


if __name__ == "__main__":
    main()
