from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from inferaligner.models.kv_cache import cache_argument, cache_in
from tests.support.tiny_models import FAMILIES, tiny_model

IDS = torch.ones(1, 3, dtype=torch.long)
LOGITS = torch.zeros(1)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params", "memory"])
def test_a_cache_is_found_by_its_class_under_any_name(name: str) -> None:
    config = tiny_model("llama").config
    dynamic = DynamicCache()
    for cache in (
        dynamic,
        StaticCache(config=config, max_cache_len=4),
        EncoderDecoderCache(dynamic, dynamic),
    ):
        assert cache_in({"input_ids": IDS, "use_cache": True, name: cache}) is cache
        assert cache_in({"past_key_values": None, name: cache}) is cache
        assert cache_in(SimpleNamespace(logits=LOGITS, **{name: cache})) is cache


def test_a_cache_is_found_in_outputs() -> None:
    cache = DynamicCache()
    output = CausalLMOutputWithPast(logits=LOGITS)
    output[next(name for name in ("cache", "past_key_values") if hasattr(output, name))] = cache
    assert cache_in(output) is cache
    assert cache_in(output.to_tuple()) is cache


def test_what_older_code_uses_is_found_by_its_name() -> None:
    tensors = ((LOGITS, LOGITS),)
    assert cache_in({"input_ids": IDS, "past_key_values": tensors}) is tensors
    assert cache_in(SimpleNamespace(state=[LOGITS])) == [LOGITS]
    assert cache_in({"memory": tensors}) is None


@pytest.mark.parametrize(
    "without", [{}, {"past_key_values": None}, CausalLMOutputWithPast(logits=LOGITS), (LOGITS,), LOGITS]
)
def test_no_cache(without: Any) -> None:
    assert cache_in(without) is None


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.startswith("odd")])
def test_the_argument_is_taken_by_every_family(family: str) -> None:
    """A warning that the name is deprecated is an error here."""
    model = tiny_model(family)
    name = cache_argument(model)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", _fail)
        output = model(IDS, use_cache=True, **{name: cache})
    assert cache_in(output) is cache
    assert cache.get_seq_length() == IDS.shape[1]


def test_the_argument_of_a_forward_that_names_nothing() -> None:
    class Anything(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert cache_argument(Anything()) == cache_argument(tiny_model("llama"))


def _fail(message: object, *_: object, **__: object) -> None:
    raise AssertionError(message)
