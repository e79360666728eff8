"""The model's generation configuration: the server answers as the model's own `generate` does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from inferaligner.errors import InputError
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import encode_chats
from inferaligner.server.engine.sampling import Sampling
from inferaligner.server.generation_defaults import GenerationDefaults
from tests.support.running_server import Serve
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

LENGTH = 16


def configured(**settings: Any) -> Any:
    model = tiny_model()
    model.generation_config.eos_token_id = 2
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def said(model: Any) -> list[str]:
    """The library's answers, each prompt alone."""
    return [
        next(iter(generate_answers(model, tiny_tokenizer(), [prompt], max_new_tokens=LENGTH))).text
        for prompt in PROMPTS
    ]


PLAIN = said(configured())
(FIRST,) = encode_chats(tiny_tokenizer(), PROMPTS[:1])
with torch.no_grad():
    USUAL = [int(token) for token in tiny_model()(torch.tensor([FIRST])).logits[0, -1].topk(3).indices]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"encoder_repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"encoder_no_repeat_ngram_size": 1},
        {"bad_words_ids": [[token] for token in USUAL]},
        {"suppress_tokens": USUAL},
        {"begin_suppress_tokens": USUAL},
        {"sequence_bias": [[[USUAL[0]], -10.0]]},
        {"forced_eos_token_id": 2},
        {"eos_token_id": [2, *USUAL], "min_new_tokens": 5},
        {"eos_token_id": [2, *USUAL], "min_length": 60},
        {"exponential_decay_length_penalty": (2, 3.0)},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_server_answers_as_the_library(serve: Serve, settings: dict[str, Any]) -> None:
    expected = said(configured(**settings))
    assert expected != PLAIN, "the setting changes nothing here; the test shows nothing"
    model = configured(**settings)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    running = serve(loaded=loaded, aligner=tiny_aligner(model, loaded.tokenizer), settings={"shadow": True})
    answers = [running.chat(prompt, max_tokens=LENGTH).json() for prompt in PROMPTS]
    assert [answer["choices"][0]["message"]["content"].strip() for answer in answers] == expected


def test_every_token_that_ends_answers_ends_them(serve: Serve) -> None:
    model = configured(eos_token_id=[2, *USUAL])
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    aligner = tiny_aligner(model, loaded.tokenizer)
    running = serve(loaded=loaded, aligner=aligner, settings={"shadow": True})
    body = running.chat(PROMPTS[0], max_tokens=LENGTH).json()
    assert body["usage"]["completion_tokens"] == 1 and body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"penalty_alpha": 0.6},
        {"guidance_scale": 1.5},
        {"stop_strings": ["x"]},
        {"max_time": 1.0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_what_it_cannot_do_ends_the_start(serve: Serve, settings: dict[str, Any]) -> None:
    model = configured(**settings)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    with pytest.raises(InputError, match=next(iter(settings))):
        serve(loaded=loaded, aligner=tiny_aligner(tiny_model(), loaded.tokenizer))


def test_sampling_settings_are_defaults_that_requests_may_change(serve: Serve) -> None:
    """As vLLM takes them: a request that says nothing is answered with the model's own."""
    model = configured(temperature=1e-6, top_k=20, top_p=0.9, max_new_tokens=5, do_sample=True)
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    aligner = tiny_aligner(tiny_model(), loaded.tokenizer)
    running = serve(loaded=loaded, aligner=aligner, settings={"shadow": True})
    for prompt, text in zip(PROMPTS, PLAIN, strict=True):
        own = running.chat(prompt, temperature=None, max_tokens=None).json()
        assert own["usage"]["completion_tokens"] <= 5
        assert text.startswith(own["choices"][0]["message"]["content"].strip().rstrip("\ufffd"))
    hot = [running.chat(PROMPTS[0], temperature=2, top_k=0, top_p=1, seed=seed).text for seed in range(4)]
    assert len(set(hot)) > 1


@pytest.mark.parametrize(
    "settings",
    [{"min_p": 0.2}, {"typical_p": 0.5}, {"epsilon_cutoff": 0.005}, {"eta_cutoff": 0.05}, {"top_h": 0.4}],
    ids=lambda settings: " ".join(settings),
)
def test_the_same_tokens_may_be_drawn_as_in_generate(settings: dict[str, Any]) -> None:
    """After the temperature, the warpers leave what those of `generate` leave, with the same scores."""
    model = configured(**settings)
    logits = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    defaults = GenerationDefaults(model)
    row = defaults.row(FIRST, LENGTH, Sampling(temperature=0.8, min_p=defaults.min_p))
    assert row is not None
    ours = row.after(row.before(logits, []) / 0.8, [])
    config = GenerationConfig(do_sample=True, temperature=0.8, top_k=0, top_p=1.0, **settings)
    theirs = model._get_logits_processor(config, len(FIRST), torch.tensor([FIRST]), device="cpu")(
        torch.tensor([FIRST]), logits[None].clone()
    )[0]
    assert torch.isinf(theirs).any(), "nothing is left out; the test shows nothing"
    assert torch.equal(ours, theirs)


def test_requests_may_ask_for_a_repetition_penalty(serve: Serve) -> None:
    model = configured()
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    aligner = tiny_aligner(model, loaded.tokenizer)
    running = serve(loaded=loaded, aligner=aligner, settings={"shadow": True})
    found = [
        running.chat(prompt, max_tokens=LENGTH, repetition_penalty=1.3).json()["choices"][0]["message"][
            "content"
        ]
        for prompt in PROMPTS
    ]
    assert [text.strip() for text in found] == said(configured(repetition_penalty=1.3))
    kept = running.chat(PROMPTS[0], temperature=2.0, min_p=1.0, max_tokens=LENGTH).json()
    assert kept["choices"][0]["message"]["content"].strip() == PLAIN[0]
