"""An aligner for a vision-language model: fitted, kept, applied, with text alone and with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError, MismatchError
from inferaligner.fit.picture_samples import with_pictures
from inferaligner.fit.samples import samples_from_contrast, samples_from_lists
from inferaligner.models.generation import generate_answers
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import ImagePrompt, pictures_of
from tests.support.tiny_aligner import HARMFUL, HARMLESS
from tests.support.tiny_vision import VISION_FAMILIES, backbone_of, picture, prompts, tiny_vision

# (family, class of a text-only model with the same decoder)
_BACKBONES = [
    ("llava", "LlamaForCausalLM"),
    ("llava_next", "MistralForCausalLM"),
    ("smolvlm", "LlamaForCausalLM"),
    ("internvl", "Qwen2ForCausalLM"),
    ("gemma3", "Gemma3ForCausalLM"),
]
_BACKBONES = [each for each in _BACKBONES if each[0] in VISION_FAMILIES]


def fit(family: str, aligned: Any, **options: Any) -> Aligner:
    loaded = tiny_vision(family)
    settings = {"harmful": HARMFUL, "harmless": HARMLESS, "paper": True, **options}
    return Aligner.fit(
        loaded.model, loaded.reader, aligned=aligned, aligned_tokenizer=loaded.tokenizer, **settings
    )


@pytest.mark.parametrize(("family", "name"), _BACKBONES)
def test_vectors_of_a_text_only_model_of_the_same_backbone(family: str, name: str) -> None:
    """With the same weights inside, its SSV on text are the target's SRV: layers and tokens are the same."""
    found = fit(family, backbone_of(family, name)).artifact
    torch.testing.assert_close(found.srv, found.ssv, atol=1e-5, rtol=1e-4)
    assert found.provenance.target.model.architecture != found.provenance.aligned.model.architecture


def test_labelled_pictures_move_the_targets_vectors_alone() -> None:
    aligned = backbone_of("llava", "LlamaForCausalLM")
    shown = {
        "harmful": [ImagePrompt(text, (picture(number),)) for number, text in enumerate(HARMFUL)],
        "harmless": [ImagePrompt(text, (picture(number),)) for number, text in enumerate(HARMLESS)],
    }
    text, seen = fit("llava", aligned).artifact, fit("llava", aligned, **shown).artifact
    assert not torch.allclose(text.srv, seen.srv)
    # The aligned model reads text alone: it is asked the texts, which are held out in another draw.
    assert seen.ssv.shape == text.ssv.shape and torch.isfinite(seen.ssv).all()


def test_an_engine_that_serves_the_target_records_no_pictures() -> None:
    shown = [ImagePrompt(text, (picture(number),)) for number, text in enumerate(HARMFUL)]

    def recorder(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("it would have read image tokens without their image")

    with pytest.raises(InputError, match="without pictures"):
        fit("llava", None, harmful=shown, harmless=HARMLESS, recorder=recorder)


def test_it_is_kept_and_applied_through_the_processor(tmp_path: Path) -> None:
    fitted = fit("llava", backbone_of("llava", "LlamaForCausalLM"))
    loaded = tiny_vision("llava")
    kept = Aligner.from_pretrained(fitted.save_pretrained(tmp_path / "aligner"))
    decisions = kept.score(loaded.model, loaded.reader, prompts())
    assert len(decisions) == len(prompts())
    bare = sorted(
        generate_answers(loaded.model, loaded.reader, prompts(), max_new_tokens=4), key=lambda a: a.row
    )
    with kept.apply(loaded.model, loaded.reader) as guard:
        answers = sorted(
            generate_answers(
                loaded.model, loaded.reader, prompts(), max_new_tokens=4, decisions=lambda: guard.decisions
            ),
            key=lambda a: a.row,
        )
    for answer, plain, decision in zip(answers, bare, decisions, strict=True):
        assert answer.decision is not None
        assert answer.decision.open == decision.open
        assert answer.decision.score == pytest.approx(decision.score, abs=1e-3)
        if not decision.open:
            assert answer.tokens == plain.tokens


def test_another_template_in_the_processor_is_a_mismatch() -> None:
    fitted = fit("llava", backbone_of("llava", "LlamaForCausalLM"))
    loaded = tiny_vision("llava")
    template = loaded.processor.chat_template
    try:
        loaded.processor.chat_template = template.replace("assistant", "helper")
        with pytest.raises(MismatchError, match="chat template is another one"):
            fitted.apply(loaded.model, loaded.processor)
    finally:
        loaded.processor.chat_template = template


def test_pictures_of_the_contrast_set_come_in_pairs_and_leave_the_text_alone() -> None:
    plain = samples_from_contrast(load_contrast_set())
    seen = with_pictures(plain)
    assert seen.fitting[: len(plain.fitting)] == plain.fitting
    more = seen.fitting[len(plain.fitting) :]
    assert len(more) > 500 and all(len(pictures_of(sample.prompt)) == 1 for sample in more)
    harmful = {sample.content for sample in more if sample.harmful}
    twins = {sample.content for sample in more if sample.sort == "twin"}
    assert harmful == twins
    drawn = [row for row in seen.for_vectors()[0] if seen.fitting[row].shown is not None]
    assert 0 < len(drawn) < 200
    assert seen.described["digest"] != plain.described["digest"] == seen.described["text digest"]


def test_pictures_in_lists_are_told_apart_by_what_they_show() -> None:
    harmful = [ImagePrompt("Do what is written.", (picture(number),)) for number in range(10)]
    harmless = [ImagePrompt("Do what is written.", (picture(number),)) for number in range(10, 20)]
    found = samples_from_lists(harmful, harmless, ("a", "b"))
    assert len(found.fitting) + len(found.test) == 20
    assert {sample.text for sample in found.fitting} == {"Do what is written."}
    assert len({sample.content for sample in found.fitting}) == len(found.fitting)
