"""An open row's answer is the given text, however it is decoded; closed rows keep their bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError, SteeringError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.prompts.chat import encode_chats
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import GatePlan, SteeringPlan
from inferaligner.steering.refusal import CannedRefusal
from tests.support.tiny_aligner import PROMPTS, eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

TEXT = "No, I do not help with the bread."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def batch(tokenizer: Any, prompts: list[str] = PROMPTS, side: str = "left") -> Any:
    ids = encode_chats(tokenizer, prompts)
    return tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")


def texts(tokenizer: Any, output: torch.Tensor, inputs: Any) -> list[str]:
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def refusing(model: Any, tokenizer: Any, **options: Any) -> Guard:
    return tiny_aligner(model, tokenizer).apply(model, tokenizer, on_open="refuse", refusal=TEXT, **options)


def test_open_rows_get_the_text_and_closed_rows_the_bare_answer(model: Any, tokenizer: Any) -> None:
    inputs = batch(tokenizer)
    settings = {**inputs, "max_new_tokens": 48, "do_sample": False}
    bare = model.generate(**settings)
    with refusing(model, tokenizer) as guard:
        guarded = model.generate(**settings)
    opened = [decision.open for decision in guard.decisions]
    assert 0 < sum(opened) < len(opened)
    told, before = texts(tokenizer, guarded, inputs), texts(tokenizer, bare, inputs)
    assert [text == TEXT for text in told] == opened
    assert [t for t, o in zip(told, opened, strict=True) if not o] == [
        t for t, o in zip(before, opened, strict=True) if not o
    ]
    after = model.generate(**settings)
    assert torch.equal(after, bare)


def test_closed_rows_keep_their_logits_bit_for_bit(tokenizer: Any) -> None:
    model = tiny_model()
    settings = {
        **batch(tokenizer), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    bare = model.generate(**settings)
    with refusing(model, tokenizer) as guard:
        guarded = model.generate(**settings)
    closed = torch.tensor([not decision.open for decision in guard.decisions])
    assert closed.any()
    for ours, theirs in zip(guarded.logits, bare.logits, strict=True):
        assert torch.equal(ours[closed], theirs[closed])


@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": True, "temperature": 1.5, "top_p": 0.9},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
        {"do_sample": False, "min_new_tokens": 40},
        {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    ],
    ids=lambda way: next(reversed(way)),
)
def test_every_way_of_decoding_says_the_text(tokenizer: Any, way: dict[str, Any]) -> None:
    model = tiny_model()
    inputs = batch(tokenizer)
    with refusing(model, tokenizer) as guard:
        output = model.generate(**inputs, max_new_tokens=48, **way)
    told = texts(tokenizer, output, inputs)
    opened = [decision.open for decision in guard.decisions]
    if way.get("num_beams"):
        opened = opened[:: way["num_beams"]]
    assert sum(opened) > 0 and len(opened) == len(told)
    assert [text == TEXT for text in told] == opened


def test_drafts_cannot_change_the_text(tokenizer: Any) -> None:
    model, assistant = tiny_model(), tiny_model(seed=5)
    for ways in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant}):
        inputs = batch(tokenizer, PROMPTS[:1])
        with refusing(model, tokenizer, mode="always"):
            output = model.generate(**inputs, max_new_tokens=48, do_sample=False, **ways)
        assert texts(tokenizer, output, inputs) == [TEXT]


def test_the_users_own_processors_stay(tokenizer: Any) -> None:
    from transformers import LogitsProcessor, LogitsProcessorList

    class Count(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return scores

    model, count = tiny_model(), Count()
    inputs = batch(tokenizer)
    with refusing(model, tokenizer, mode="always"):
        output = model.generate(
            inputs["input_ids"], None, LogitsProcessorList([count]),
            attention_mask=inputs["attention_mask"], max_new_tokens=48, do_sample=False,
        )  # fmt: skip
    assert count.calls > 1
    assert set(texts(tokenizer, output, inputs)) == {TEXT}


def test_shadow_mode_refuses_nobody(tokenizer: Any) -> None:
    model = tiny_model()
    inputs = batch(tokenizer)
    settings = {**inputs, "max_new_tokens": 8, "do_sample": False}
    bare = model.generate(**settings)
    with refusing(model, tokenizer, mode="never"):
        assert torch.equal(model.generate(**settings), bare)


def test_a_forward_call_has_no_answer_to_replace(tokenizer: Any) -> None:
    model = tiny_model()
    with refusing(model, tokenizer), pytest.raises(SteeringError, match="generate"):
        model(**batch(tokenizer))


def test_a_refusal_needs_an_end(tokenizer: Any) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    with refusing(model, tokenizer), pytest.raises(SteeringError, match="end-of-text"):
        model.generate(**batch(tokenizer), max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("text", ["", "  ", "No<|im_end|>"])
def test_texts_that_cannot_be_said(tokenizer: Any, text: str) -> None:
    with pytest.raises(InputError):
        CannedRefusal.of(text, tokenizer)


def test_a_refusal_goes_with_on_open_and_a_tokenizer(tokenizer: Any) -> None:
    model = tiny_model()
    aligner = tiny_aligner(model, tokenizer)
    with pytest.raises(InputError, match="tokenizer"):
        aligner.apply(model, on_open="refuse")
    with pytest.raises(InputError, match="on_open"):
        aligner.apply(model, tokenizer, refusal=TEXT)


def test_a_monitor_is_not_left_out_unasked(tokenizer: Any) -> None:
    model = tiny_model()
    watching = tiny_aligner(model, tokenizer, monitor=eager_monitor())
    with pytest.raises(InputError, match="monitor=False"):
        watching.apply(model, tokenizer, on_open="refuse")
    with watching.apply(model, tokenizer, on_open="refuse", refusal=TEXT, monitor=False) as guard:
        model.generate(**batch(tokenizer), max_new_tokens=3, do_sample=False)
    assert {decision.opened_at for decision in guard.decisions} == {"prompt", None}


def test_a_gate_alone_cannot_steer(tokenizer: Any) -> None:
    model = tiny_model()
    gate = GuidanceGate("test", (GateRead(1),), torch.ones(1, 32), 0.0)
    with pytest.raises(SteeringError, match="refusal"):
        Guard(model, GatePlan(gate))
    with pytest.raises(SteeringError, match="takes none"):
        Guard(model, SteeringPlan(gate, {2: torch.ones(32)}), "gate", CannedRefusal.of(TEXT, tokenizer))
    with pytest.raises(SteeringError, match="adds nothing"):
        GatePlan(gate, {1: torch.ones(32)})
    with pytest.raises(SteeringError, match="monitor"):
        GatePlan(gate, monitor=eager_monitor())
    with pytest.raises(InputError, match="monitor"):
        Aligner.fit(model, tokenizer, monitor=True)
