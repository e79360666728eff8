"""The gate of begun answers and raw text, on synthetic activations with a known harmful direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.fit.gate.end_gate import FOLDS, fit_end_gate
from inferaligner.fit.samples import Sample
from inferaligner.method.activations import Activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.prompts.begun_answers import (
    OPENERS,
    TEST_OPENERS,
    TEST_TURNS,
    TURNS,
    encode_ends,
    opener_of,
)
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import tiny_tokenizer

WIDTH = 12
GATE = GuidanceGate("test", (GateRead(1, 0), GateRead(2, 3)), torch.ones(2, WIDTH), 0.0)


def samples(count: int, name: str, *, ordinary: bool = True) -> list[Sample]:
    return [
        Sample(
            f"{name} {'harmful' if harmful else 'harmless'} {number}",
            harmful,
            f"{name}/{number}",
            "pairs" if harmful or not ordinary else "everyday",
        )
        for number in range(count)
        for harmful in (True, False)
    ]


class World:
    """Activations in which a harmful last content moves along one direction, and every end along another."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()
        self.draw = torch.Generator().manual_seed(0)
        self.recorded: list[str] = []

    def record(self, ids: list[list[int]], what: str) -> Activations:
        rows = []
        for tokens in ids:
            text = self.tokenizer.decode(tokens)
            self.recorded.append(text)
            _, _, end = text.rpartition("<|im_start|>assistant\n")
            row = 0.4 * torch.randn(2, WIDTH, generator=self.draw)
            row[:, 0] += 2.0 if "harmful" in end else 0.0
            row[:, 1] += 5.0 if "<|im_start|>" not in text else len(end) % 3
            rows.append(row)
        return Activations(torch.stack(rows)[:, :, None], GATE.layers, (0,))

    def fit(self, fitting: list[Sample], test: list[Sample], **options: Any) -> Any:
        return fit_end_gate(
            GATE,
            self.tokenizer,
            fitting,
            test,
            self.record,
            **{"max_false_open": 0.05, "system": None, "limit": None, **options},
        )


def test_openers_of_the_test_part_are_others() -> None:
    assert not set(OPENERS) & set(TEST_OPENERS) and not set(TURNS) & set(TEST_TURNS)
    by_fold = [{opener_of(number, fold, FOLDS) for number in range(50)} for fold in range(FOLDS)]
    assert set().union(*by_fold) == set(OPENERS)
    assert sum(map(len, by_fold)) == len(OPENERS)  # an opener is of one fold only


def test_what_is_encoded_is_what_a_server_gets() -> None:
    tokenizer = tiny_tokenizer()
    forms = {
        form: tokenizer.decode(encode_ends(tokenizer, ["A map!"], ["{"], ["Hello"], form)[0])
        for form in ("opener", "content", "opened content", "raw")
    }
    turn = tokenizer.decode(encode_chats(tokenizer, ["A map!"])[0])
    hello = tokenizer.decode(encode_chats(tokenizer, ["Hello"])[0])
    assert forms == {
        "opener": turn + "{",
        "content": hello + "A map!",
        "opened content": hello + "{ A map!",
        "raw": "A map!",
    }


@pytest.mark.parametrize("ordinary", [True, False])
def test_contents_open_it_and_openers_do_not(ordinary: bool) -> None:
    """Also where no prompt is labelled as ordinary: then all harmless ones are traffic."""
    world = World()
    made, figures = world.fit(samples(60, "fit", ordinary=ordinary), samples(40, "test", ordinary=ordinary))
    assert made.calibrated and made.gate.reads == (GateRead(1), GateRead(2))
    held_out = figures["held_out"]["open"]
    for form in ("content", "opened content", "raw"):
        assert held_out[f"{form}, harmful"]["value"] > 0.9
        assert held_out[f"{form}, ordinary"]["value"] < 0.15
        assert figures["held_out"]["auroc"][form] > 0.97
    assert held_out["opener, ordinary"]["value"] < 0.15
    assert "opener, harmful" not in held_out  # the guidance gate's business
    assert made.raw != made.begun
    # No opener or turn of the test part took part in the fit, and none of the fit's in the figures.
    fitted = [text for text in world.recorded if "fit har" in text]
    tested = [text for text in world.recorded if "test har" in text]
    assert not any("To summarize," in text for text in fitted) and any("To summarize," in t for t in tested)
    assert not any("As requested," in text for text in tested) and any("As requested," in t for t in fitted)


def test_the_limit_holds_in_every_form_for_the_prompts_in_hand() -> None:
    for limit in (0.02, 0.2):
        made, figures = World().fit(samples(100, "fit"), samples(100, "test"), max_false_open=limit)
        for name, share in figures["held_out"]["open"].items():
            if name.endswith("ordinary"):
                assert share["low"] <= limit, (name, share)
        assert made is not None


def test_too_few_prompts_make_none() -> None:
    fitting = [sample for sample in samples(8, "fit") if sample.harmful]
    assert World().fit(fitting, []) == (None, {})


def test_prompts_beyond_the_models_length_are_left_out() -> None:
    world = World()
    _, figures = world.fit(samples(60, "fit"), [], limit=44)
    assert 0 < figures["prompts"] < 60 * 7  # seven forms of a pair
    assert all(len(world.tokenizer(text)["input_ids"]) <= 44 for text in world.recorded)
