"""Attention without copies of keys and values: the same results as transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inferaligner.models import grouped_attention as module
from inferaligner.models.grouped_attention import COPIES, NAME, grouped_attention


def model(heads: int = 6, groups: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        pad_token_id=0,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype).eval()  # type: ignore[no-untyped-call]


def answers(one: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and scores of a batch with padding on the left."""
    ids = torch.randint(1, 97, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 5, 1)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    found = one.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits).float()


def test_one_new_token_reads_keys_and_values_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every version of transformers: no key is there once for each query head."""
    one, heads = model(heads=6, groups=2), []
    own = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        heads.append((query.shape[2], key.shape[1]))
        return own(query, key, *args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(module, "scaled_dot_product_attention", watched)
    with grouped_attention(one) as able:
        assert able == COPIES
        answers(one)
    assert {groups for tokens, groups in heads if tokens < 9} == {2}
    assert len(heads) == 3 * 6


@pytest.mark.skipif(not COPIES, reason="this transformers attends without copies by itself")
def test_float32_has_the_same_bits_and_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    one = model()
    tokens, scores = answers(one)
    copied: list[int] = []
    own = module.sdpa_attention_forward

    def counted(*args: Any, **more: Any) -> Any:
        copied.append(args[1].shape[2])
        return own(*args, **more)

    monkeypatch.setattr(module, "sdpa_attention_forward", counted)
    with grouped_attention(one) as able:
        assert able and one.config._attn_implementation == NAME
        grouped = answers(one)
    assert set(copied) == {9}  # the prompts alone; every later token went without copies
    torch.testing.assert_close(grouped[0], tokens, atol=0, rtol=0)
    torch.testing.assert_close(grouped[1], scores, atol=0, rtol=0)
    assert one.config._attn_implementation == "sdpa"
    assert torch.equal(answers(one)[1], scores)


def test_half_precision_differs_in_the_last_digit_at_most() -> None:
    one = model(dtype=torch.bfloat16)
    _, scores = answers(one)
    with grouped_attention(one):
        grouped = answers(one)
    torch.testing.assert_close(grouped[1], scores, atol=2e-2, rtol=2e-2)


def test_heads_of_their_own_are_attended_by_transformers() -> None:
    one = model(heads=6, groups=6)
    _, scores = answers(one)
    with grouped_attention(one):
        assert torch.equal(answers(one)[1], scores)


def test_another_attention_is_left_alone() -> None:
    one = model()
    one.set_attn_implementation("eager")
    with grouped_attention(one) as able:
        assert not able and one.config._attn_implementation == "eager"
