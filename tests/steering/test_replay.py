from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from inferaligner.errors import SteeringError
from inferaligner.steering.replay import copy_of_cache, replay
from tests.support.tiny_models import tiny_model

ROWS = torch.tensor([0, 2])
IDS = torch.arange(12).reshape(3, 4)


class Model:
    """Notes what it is called with; its logits are the token ids plus 100."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.rows: list[list[int]] = []

    def __call__(self, arguments: dict[str, Any], rows: Tensor) -> CausalLMOutputWithPast:
        self.seen.append(arguments)
        self.rows.append(rows.tolist())
        return CausalLMOutputWithPast(loss=torch.tensor(2.0), logits=arguments["input_ids"].float() + 100)


def first_output() -> CausalLMOutputWithPast:
    return CausalLMOutputWithPast(loss=torch.tensor(1.0), logits=IDS.float())


def test_only_the_opened_rows_run() -> None:
    model = Model()
    arguments = {
        "input_ids": IDS,
        "attention_mask": {"full_attention": torch.ones(3, 1, 4, 4), "sliding_attention": None},
        "position_ids": torch.arange(4)[None],  # one row for all
        "logits_to_keep": 0,
        "use_cache": False,
    }
    output = replay([arguments], None, None, ROWS, model, first_output())
    (seen,) = model.seen
    assert model.rows == [[0, 2]]
    assert torch.equal(seen["input_ids"], IDS[ROWS])
    assert seen["attention_mask"]["full_attention"].shape == (2, 1, 4, 4)
    assert torch.equal(seen["position_ids"], torch.arange(4)[None])
    assert torch.equal(output.logits, torch.stack([IDS[0] + 100, IDS[1], IDS[2] + 100]).float())


def test_positions_of_several_axes() -> None:
    """As multimodal models count them: [axes, rows, tokens], here with as many axes as rows."""
    model = Model()
    positions = torch.arange(3)[None, :, None].expand(3, 3, 4)
    replay([{"input_ids": IDS, "position_ids": positions}], None, None, ROWS, model, first_output())
    assert torch.equal(model.seen[0]["position_ids"][:, :, 0], torch.tensor([[0, 2]] * 3))


@pytest.mark.parametrize(
    "extra", [{"labels": IDS}, {"pixel_values": torch.zeros(7, 2)}, {"block_mask": object()}]
)
def test_what_cannot_be_split_runs_whole(extra: dict[str, Any]) -> None:
    """Nobody knows which images belong to which row; and a loss is one of the whole batch."""
    model = Model()
    output = replay([{"input_ids": IDS, **extra}], None, None, ROWS, model, first_output())
    assert model.rows == [[0, 1, 2]]
    assert all(model.seen[0][name] is value for name, value in extra.items())
    assert torch.equal(output.logits, torch.stack([IDS[0] + 100, IDS[1], IDS[2] + 100]).float())
    assert output.loss.item() == 2.0


def test_tuples() -> None:
    cache = DynamicCache()
    first = (IDS.float(), cache, (IDS.float(), None))

    def run(arguments: dict[str, Any], rows: Tensor) -> Any:
        new = arguments["input_ids"].float() + 100
        return new, DynamicCache(), (new, None)

    output = replay([{"input_ids": IDS}], None, None, ROWS, run, first)
    expected = torch.stack([IDS[0] + 100, IDS[1], IDS[2] + 100]).float()
    assert torch.equal(output[0], expected)
    assert output[1] is cache
    assert torch.equal(output[2][0], expected)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_chunks_go_on_from_the_cache_as_it_was(kind: str) -> None:
    """With an earlier turn in the cache, and two chunks of this one."""
    config = tiny_model().config

    def filled(tokens: int, value: float) -> Any:
        cache = (
            DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=8)
        )
        extend(cache, 3, tokens, value)
        return cache

    def extend(cache: Any, rows: int, tokens: int, value: float) -> None:
        new = torch.full((rows, 2, tokens, 8), value)
        for layer in range(config.num_hidden_layers):
            cache.update(new, new, layer)

    before, cache = filled(2, 1.0), filled(2, 1.0)
    extend(cache, 3, 4, 5.0)  # the unsteered prompt
    seen = []

    def run(arguments: dict[str, Any], rows: Tensor) -> Any:
        seen.append(
            (arguments["past_key_values"], int(arguments["past_key_values"].get_seq_length()), len(rows))
        )
        extend(arguments["past_key_values"], len(rows), 2, 9.0)
        return CausalLMOutputWithPast(logits=arguments["input_ids"].float())

    chunks = [{"input_ids": IDS[:, at : at + 2], "past_key_values": cache} for at in (0, 2)]
    copied = copy_of_cache(before)
    replay(chunks, copied, cache, ROWS, run, CausalLMOutputWithPast(logits=IDS[:, 2:].float()))
    assert [count for _, count, _ in seen] == [2, 4]
    assert [rows for _, _, rows in seen] == ([2, 2] if kind == "dynamic" else [3, 3])
    for layer in cache.layers:
        for stored in (layer.keys, layer.values):
            assert (stored[:, :, :2] == 1).all()
            assert (stored[ROWS, :, 2:6] == 9).all()
            assert (stored[1, :, 2:6] == 5).all()
    assert before.get_seq_length() == 2, "a copy was worked on"


def test_a_cache_that_cannot_take_rows() -> None:
    class Unknown:
        def get_seq_length(self) -> int:
            return 0

    with pytest.raises(SteeringError, match="Unknown cannot be replayed"):
        replay([{"input_ids": IDS}], Unknown(), Unknown(), ROWS, Model(), first_output())
    config = tiny_model().config
    cache, other = StaticCache(config=config, max_cache_len=8), StaticCache(config=config, max_cache_len=9)
    for one in (cache, other):
        for layer in range(config.num_hidden_layers):
            one.update(torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8), layer)
    with pytest.raises(SteeringError, match="cannot take replayed rows"):
        replay([{"input_ids": IDS}], other, cache, ROWS, Model(), first_output())
