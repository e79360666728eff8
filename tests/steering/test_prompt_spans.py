from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from inferaligner.errors import SteeringError
from inferaligner.steering.prompt_spans import (
    PromptSpans,
    cached_tokens,
    generate_setting,
    refuse_packed,
    spans_from_lengths,
    spans_of_forward,
    spans_of_generate,
)

IDS = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8], [5, 0, 6, 7], [7, 8, 0, 0]])
MASK = (IDS != 0).long()
DEFAULTS = GenerationConfig(pad_token_id=0, eos_token_id=2)


def told(spans: PromptSpans) -> tuple[list[int], list[int]]:
    return spans.begins.tolist(), spans.ends.tolist()


@pytest.mark.parametrize(
    "arguments",
    [
        {"inputs": IDS, "attention_mask": MASK},
        {"input_ids": IDS, "attention_mask": MASK.bool()},
        {"inputs_embeds": torch.zeros(4, 4, 8), "attention_mask": MASK},
        {"inputs": IDS},
        {"inputs": IDS, "generation_config": GenerationConfig(max_length=9)},
    ],
)
def test_padding_on_either_side(arguments: dict[str, Any]) -> None:
    """A hole in the middle (a masked token) is neither."""
    assert told(spans_of_generate(arguments, DEFAULTS)) == ([2, 0, 0, 0], [3, 3, 3, 1])


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [
        ({"inputs": IDS, "pad_token_id": 2}, DEFAULTS),  # end of text and padding are one token: no telling
        ({"inputs": IDS}, GenerationConfig(pad_token_id=0, eos_token_id=[2, 0])),
        ({"inputs": IDS}, GenerationConfig(pad_token_id=None, eos_token_id=2)),
        ({"inputs": IDS, "pad_token_id": 9}, DEFAULTS),
        ({"inputs_embeds": torch.zeros(4, 4, 8)}, DEFAULTS),
        ({"inputs_embeds": torch.zeros(4, 4, 8), "attention_mask": torch.ones(4, 1, 4, 4)}, DEFAULTS),
    ],
)
def test_without_a_mask_every_token_counts(arguments: dict[str, Any], defaults: GenerationConfig) -> None:
    assert told(spans_of_generate(arguments, defaults)) == ([0] * 4, [3] * 4)


def test_a_call_without_a_prompt() -> None:
    assert told(spans_of_generate({}, DEFAULTS)) == ([0], [0])


def test_settings_in_order_of_precedence() -> None:
    given = {"generation_config": GenerationConfig(pad_token_id=7)}
    assert generate_setting({**given, "pad_token_id": 9}, DEFAULTS, "pad_token_id") == 9
    assert generate_setting(given, DEFAULTS, "pad_token_id") == 7
    assert generate_setting(given, DEFAULTS, "eos_token_id") == 2
    assert generate_setting({}, DEFAULTS, "no_such_setting") is None


def test_direct_calls_count_cached_tokens() -> None:
    new = IDS[:, 2:]
    assert told(spans_of_forward(new, {}, 0)) == ([0] * 4, [1] * 4)
    assert told(spans_of_forward(new, {}, 2)) == ([0] * 4, [3] * 4)
    assert told(spans_of_forward(new, {"attention_mask": MASK}, 2)) == ([2, 0, 0, 0], [3, 3, 3, 1])


def test_lengths() -> None:
    spans = spans_from_lengths([1, 3, 2, 2], IDS, {"attention_mask": MASK}, 0)
    assert told(spans) == ([2, 0, 0, 0], [2, 2, 1, 1])
    assert told(spans_from_lengths([4, 1, 1, 2], IDS, {}, 0)) == ([0] * 4, [3, 0, 0, 1])
    for wrong in ([1, 3, 2], [3, 3, 2, 2], [0, 3, 2, 2], [1, 3, 2, 3]):
        with pytest.raises(SteeringError, match="rompt lengths"):
            spans_from_lengths(wrong, IDS, {"attention_mask": MASK}, 0)


def test_repeated_in_place() -> None:
    spans = PromptSpans(torch.tensor([0, 1]), torch.tensor([5, 6])).repeated(3)
    assert told(spans) == ([0, 0, 0, 1, 1, 1], [5, 5, 5, 6, 6, 6])


def test_cached_tokens() -> None:
    cache = DynamicCache()
    assert cached_tokens(None) == cached_tokens(cache) == 0
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    assert cached_tokens(cache) == 5
    with pytest.raises(SteeringError, match="Unknown KV cache dict"):
        cached_tokens({})


def test_static_caches_count_what_is_written(tiny_config: Any) -> None:
    cache = StaticCache(config=tiny_config, max_cache_len=16)
    assert cached_tokens(cache) == 0
    cache.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), 0)
    assert cached_tokens(cache) == 5


@pytest.fixture
def tiny_config() -> Any:
    from tests.support.tiny_models import tiny_model

    return tiny_model().config


def test_packed_rows() -> None:
    restarting = torch.tensor([[0, 1, 2, 0, 1]])
    for packed in (
        {"cu_seq_lens_q": torch.tensor([0, 3])},
        {"block_table": torch.zeros(1)},
        {"position_ids": restarting},
    ):
        with pytest.raises(SteeringError, match="packed into one row"):
            refuse_packed(packed)
    # Left padding makes positions restart as well; then there is a mask.
    refuse_packed({"position_ids": restarting, "attention_mask": torch.ones(1, 5)})
    refuse_packed({"position_ids": torch.tensor([[3, 4, 5]])})
    refuse_packed({"position_ids": restarting.expand(3, 1, 5)})
    refuse_packed({"cu_seq_lens_q": None})
