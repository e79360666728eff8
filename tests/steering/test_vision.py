"""Golden, for every vision-language family: what holds for text holds with pictures in the batch."""

from __future__ import annotations

import pytest
import torch
from transformers.processing_utils import ProcessorMixin

from inferaligner.errors import SteeringError
from inferaligner.method.activations import record_activations
from inferaligner.models.anatomy import dissect
from inferaligner.prompts.chat import encode_chats, template_suffix
from inferaligner.prompts.encoding import image_tokens
from inferaligner.prompts.images import ImagePrompt
from inferaligner.steering.plan import Positions
from tests.support.steering_cases import trace_of_hooks
from tests.support.tiny_vision import VISION_FAMILIES, picture, prompts, tiny_vision
from tests.support.vision_cases import OPENS, make_vision_case

DECODERS = {"idefics3": "model.text_model.layers", "smolvlm": "model.text_model.layers"}


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_the_language_models_layers_are_found(family: str) -> None:
    """Every vision tower here has as many layers as the decoder."""
    loaded = tiny_vision(family)
    anatomy = dissect(loaded.model)
    assert anatomy.path == DECODERS.get(family, "model.language_model.layers")
    assert anatomy.depth == loaded.model.config.get_text_config().num_hidden_layers
    assert isinstance(loaded.processor, ProcessorMixin)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_image_tokens_are_counted_and_never_read(family: str) -> None:
    loaded = tiny_vision(family)
    suffix = template_suffix(loaded.reader)
    encoded = encode_chats(loaded.reader, prompts())
    places = image_tokens(loaded.model.config)
    counts = [sum(token in places for token in ids) for ids in encoded]
    assert counts[0] == counts[3] == 0
    assert 0 < counts[1] < counts[2]  # two pictures take more than one
    inputs = make_vision_case(family).inputs()
    features = loaded.model(**inputs).logits.shape
    assert features[:2] == inputs["input_ids"].shape
    for ids in encoded:
        assert ids[-len(suffix) :] == suffix
        assert not set(suffix) & set(places)


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_closed_rows_keep_their_bits(family: str, positions: Positions) -> None:
    case = make_vision_case(family, positions=positions)
    before = trace_of_hooks(case.loaded.model)
    bare = case.logits()
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == list(OPENS)
        scores = [decision.score for decision in guard.decisions]
        assert scores == pytest.approx([1 if is_open else -1 for is_open in OPENS], abs=0.02)
    for row, is_open in enumerate(OPENS):
        if is_open:
            assert not torch.allclose(steered[row, 0], bare[row, 0], atol=1e-2)
        else:
            assert torch.equal(steered[row], bare[row]), f"row {row} is closed"
    assert trace_of_hooks(case.loaded.model) == before
    assert torch.equal(case.logits(), bare)


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_row_in_a_batch_is_the_row_alone(family: str, positions: Positions) -> None:
    case = make_vision_case(family, positions=positions)
    with case.guard() as guard:
        together = case.logits()
        for row, is_open in enumerate(OPENS):
            alone = case.logits([row])
            assert [decision.open for decision in guard.decisions] == [is_open]
            torch.testing.assert_close(alone[0], together[row], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_all_closed_is_the_bare_model(family: str) -> None:
    case = make_vision_case(family, opens=(False,) * 5)
    bare = case.logits()
    with case.guard():
        assert torch.equal(case.logits(), bare)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_steering_below_the_gate(family: str) -> None:
    """Open rows run their prompt again, pictures and all."""
    case = make_vision_case(family, gate_layer=3, steered=(0, 2))
    bare = case.logits()
    with case.guard():
        steered = case.logits()
    with case.guard("always"):
        always = case.logits()
    for row, is_open in enumerate(OPENS):
        if is_open:
            torch.testing.assert_close(steered[row], always[row], atol=2e-4, rtol=2e-4)
        else:
            assert torch.equal(steered[row], bare[row])


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_activations_of_a_batch_are_those_alone(family: str) -> None:
    loaded = tiny_vision(family)
    encoded = encode_chats(loaded.reader, prompts())
    together = record_activations(loaded.model, encoded, offsets=(0, 2)).values
    for row, ids in enumerate(encoded):
        alone = record_activations(loaded.model, [ids], offsets=(0, 2)).values
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_what_a_picture_shows_reaches_the_last_token(family: str) -> None:
    loaded = tiny_vision(family)
    asked = [ImagePrompt("Which flour should I choose?", (picture(number),)) for number in (1, 2)]
    first, second = record_activations(loaded.model, encode_chats(loaded.reader, asked)).at(0)
    assert not torch.equal(first[-1], second[-1])


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_an_image_before_changes_nothing_about_text(family: str) -> None:
    """The Qwen families keep the positions of their last images on the model."""
    loaded = tiny_vision(family)
    text = encode_chats(loaded.reader, ["Why is the sky blue?", "Why is the sky red?"])
    fresh = record_activations(loaded.model, text, share_prefixes=True).values
    record_activations(loaded.model, encode_chats(loaded.reader, prompts()))
    again = record_activations(loaded.model, text, share_prefixes=True).values
    torch.testing.assert_close(again, fresh, atol=1e-6, rtol=1e-5)


def test_a_prompt_that_ends_in_an_image_is_refused() -> None:
    case = make_vision_case("llava")
    inputs = case.inputs([2])
    place = int((inputs["input_ids"][0] == case.loaded.model.config.image_token_id).nonzero()[-1])
    cut = {**inputs, "input_ids": inputs["input_ids"][:, : place + 1]}
    cut["attention_mask"] = inputs["attention_mask"][:, : place + 1]
    with case.guard(), pytest.raises(SteeringError, match="token of an image"):
        case.loaded.model.generate(**cut, max_new_tokens=2)
