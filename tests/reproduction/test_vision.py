"""The LLaVA's recipe: pages with what stands in them, lessons with answers, and a step of each stage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.evaluation.suites.contrast import pictures
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import picture_from, pictures_of
from inferaligner.prompts.typography import PageStyle, draw_text, lay_out
from tests.support.tiny_models import tiny_tokenizer
from tests.support.tiny_vision import tiny_vision

pytest.importorskip("PIL")

from reproduction.vision import checkpoints, llava_training
from reproduction.vision.drawing import drawn_ahead
from reproduction.vision.lessons import Lesson, Lessons, reading_lesson, requests, scene_lesson
from reproduction.vision.model import build
from reproduction.vision.pages import CELLS_PER_STOP, CHARACTERS, GRID, SIDE, Texts, any_style, text_page
from reproduction.vision.perfect_reading import pages_of_the_suites, perfect_reading
from reproduction.vision.reading import page_questions, scene_questions, scores, told, words_read
from reproduction.vision.scenes import Figure, Scene, questions, scene_page


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_a_page_tells_what_stands_in_its_patches(tokenizer: Any) -> None:
    text = "Bake the bread today"
    page = text_page(text, PageStyle(2 * SIDE), tokenizer)
    assert page.pixels.shape == (SIDE, SIDE, 3)
    # Words begin at tab stops: "Bake" fills two of them, and the next word is in the third.
    spelt = sorted(page.characters)
    first = [CHARACTERS[index // CELLS_PER_STOP] for patch, index in spelt if patch == 0]
    assert sorted(first) == sorted("Bak")
    assert [CHARACTERS[index // CELLS_PER_STOP] for patch, index in spelt if patch == 1] == ["e"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    named = [token for _, token in page.tokens]
    # A blank before a word may be a token of its own, and stands nowhere.
    blank = tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert [token for token in ids if [token] != blank] == named
    assert [patch for patch, _ in page.tokens] == sorted(patch for patch, _ in page.tokens)


def test_what_does_not_fit_is_left_out(tokenizer: Any) -> None:
    page = text_page("x" * 40 + " word" * 100, PageStyle(2 * SIDE), tokenizer)
    assert page.tokens and max(patch for patch, _ in page.tokens) < GRID * GRID


def test_texts_and_lessons_are_the_same_every_time_and_never_of_the_test_part(tokenizer: Any) -> None:
    texts = Texts(tokenizer)
    assert texts.draw(random.Random(3)) == texts.draw(random.Random(3)) != texts.draw(random.Random(4))
    assert any_style(random.Random(3)) == any_style(random.Random(3))
    held_out = {" ".join(p.text.split()) for p in load_contrast_set().part("test", wrapped=False)}
    harmful = {
        p.text for name in ("extraction", "calibration") for p in load_contrast_set().part(name) if p.harmful
    }
    assert not held_out & set(requests("training")) and not harmful & set(requests("training"))
    lessons = Lessons({text: "Mix and wait." for text in requests("training")[:40]})
    drawn = [lessons.draw(random.Random(number)) for number in range(40)]
    assert drawn == [lessons.draw(random.Random(number)) for number in range(40)]
    assert {lesson.answer for lesson in drawn} > {"Mix and wait."}


def test_scenes_have_one_right_answer(tokenizer: Any) -> None:
    scene = Scene(
        (Figure("red", "circle", 0, 0), Figure("blue", "star", 1, 2), Figure("blue", "circle", 3, 3))
    )
    asked = {questions(scene, random.Random(number)) for number in range(60)}
    assert ("What shape is red? Answer with a word.", "circle") in asked
    assert ("What colour is the star? Answer with a word.", "blue") in asked
    assert ("How many shapes are in the picture? Answer with a word.", "three") in asked
    assert not any("colour is the circle" in question or "is blue" in question for question, _ in asked)
    bars = Scene(bars=(("red", 2), ("blue", 6), ("green", 4)))
    assert {answer for _, answer in (questions(bars, random.Random(n)) for n in range(20))} == {"blue", "red"}
    page = scene_page(bars, random.Random(0), tokenizer)
    assert {patch // GRID for patch, _ in page.tokens} == {GRID - 2, GRID - 6, GRID - 4}


def test_reading_is_told_in_words() -> None:
    assert words_read("How do I bake bread?", "how do i bake bread") == 1.0
    assert words_read("How do I bake bread?", "How bread.") == pytest.approx(2 / 5)
    assert words_read("How do I bake bread?", "") == 0.0
    assert told("It is a red circle.") == "red" and told("No idea") is None
    asked = [*page_questions(3), *scene_questions(5)]
    assert all(question.blind().text == question.prompt.text for question in asked)
    assert asked[0].blind() != asked[0].prompt
    answers: Any = [type("A", (), {"text": question.answer})() for question in asked]
    found = scores(asked, answers)
    assert found["page, words read"]["value"] == 1.0 and found["scenes"]["value"] == 1.0


def test_a_stage_learns_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """On the tiny LLaVA, whose pictures say little: what is tested is the training, not what is learned."""
    whole = tiny_vision("llava")

    class Same:
        """One lesson, over and over."""

        def draw(self, rng: random.Random) -> Lesson:
            return reading_lesson("Bake bread", random.Random(0))

    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    settings = {"seconds": 60.0, "batch": 2, "rate": 1e-2}
    place = tmp_path / "adapter.pt"
    inputs = llava_training.batch_of(whole, [Same().draw(random.Random(0))])
    with torch.no_grad():
        first = float(llava_training.loss_of(whole.model, *inputs))
    lessons: Any = Same()
    assert not llava_training.train(
        whole, lessons, place, adapter_rank=2, steps=12, **{**settings, "seconds": 0.0}
    )
    tiny_vision.cache_clear()
    whole = tiny_vision("llava")
    assert llava_training.train(whole, lessons, place, adapter_rank=2, steps=12, **settings)
    with torch.no_grad():
        last = float(llava_training.loss_of(whole.model, *inputs))
    assert last < first - 0.05
    after = whole.model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in moved) and any("projector" in name for name in moved)
    assert not any("vision_tower" in name or "embed" in name for name in moved)
    tiny_vision.cache_clear()


def test_scene_lessons_are_answered_in_a_word() -> None:
    lesson = scene_lesson(random.Random(1))
    assert told(lesson.answer) is not None and len(lesson.answer.split()) == 1


def test_batches_are_the_same_whoever_draws_them() -> None:
    """On a GPU by other processes, on a CPU by this one; also after an interruption."""

    def draw(step: int) -> tuple[int, float]:
        return step, random.Random(step).random()

    here = list(drawn_ahead(draw, 0, 12, torch.device("cpu")))
    assert here == [draw(step) for step in range(12)]
    assert list(drawn_ahead(draw, 0, 12, torch.device("cuda"))) == here
    assert list(drawn_ahead(draw, 7, 12, torch.device("cpu"))) == here[7:]


@pytest.mark.real
def test_a_perfect_tower_gives_the_embeddings_of_what_is_written() -> None:
    loaded = build()
    text = "Steps to bake bread.\n1.\n2."
    page = picture_from(draw_text(text)).pixels()
    pixels = loaded.processor.image_processor([page], return_tensors="pt")["pixel_values"]

    def features() -> torch.Tensor:
        with torch.no_grad():
            (found,) = loaded.model.model.get_image_features(pixels).pooler_output
        return found

    before = features()
    with perfect_reading(loaded, {text}):
        read = features()
        with pytest.raises(KeyError):
            loaded.model.model.get_image_features(-pixels)
    assert read.shape == before.shape and torch.equal(features(), before)
    embeddings = loaded.model.get_input_embeddings().weight
    first = loaded.tokenizer("Steps to bake", add_special_tokens=False)["input_ids"]
    places = [word.cell // CELLS_PER_STOP for word in lay_out("Steps to bake")]
    assert torch.equal(read[places], embeddings[first])
    (blank,) = loaded.tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert torch.equal(read[-1], embeddings[blank])


def test_pages_of_the_suites_are_all_that_the_suites_show() -> None:
    shown = {picture for item in pictures(lambda _: True)[:30] for picture in pictures_of(item.prompt)}
    known = {picture_from(draw_text(text)) for text in sorted(pages_of_the_suites())}
    assert shown <= known


def test_checkpoints_are_written_in_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    kept = checkpoints.Checkpoints(tmp_path / "stage.pt", lambda: {"done": done})
    kept.now_and_then()
    assert not list(tmp_path.iterdir())
    done = 3
    monkeypatch.setattr(checkpoints, "_EVERY", -1.0)
    kept.now_and_then()
    done = 5
    assert torch.load(tmp_path / "stage.pt", weights_only=True) == {"done": 3}
    kept.now()
    assert torch.load(tmp_path / "stage.pt", weights_only=True) == {"done": 5}
    assert [file.name for file in tmp_path.iterdir()] == ["stage.pt"]
