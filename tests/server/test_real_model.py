"""The server on SmolLM2: answers of a busy server are those of the library's guard, one prompt at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from tests.support.running_server import Serve
from tests.support.tiny_aligner import tiny_aligner

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOKENS = 12


def test_busy_answers_are_those_computed_alone(serve: Serve) -> None:
    loaded = load_model("builtin:smollm2-135m", dtype="float32", device="cpu")
    harmless = [
        prompt.text for prompt in load_contrast_set().part("test", wrapped=False) if not prompt.harmful
    ]
    prompts = harmless[:: len(harmless) // 12][:12]
    aligner = tiny_aligner(loaded.model, loaded.tokenizer, prompts=prompts, layers=range(18, 22))
    alone: list[tuple[str, bool, float]] = []
    with aligner.apply(loaded.model, loaded.tokenizer) as guard:
        for ids in encode_chats(loaded.tokenizer, prompts):
            output: Any = loaded.model.generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=TOKENS,
                output_scores=True,
                return_dict_in_generate=True,
            )
            best = torch.stack(output.scores).topk(2, dim=-1).values[:, 0]
            (decision,) = guard.decisions
            text = str(loaded.tokenizer.decode(output.sequences[0, len(ids) :], skip_special_tokens=True))
            alone.append((text, decision.open, float((best[:, 0] - best[:, 1]).min())))
    server = serve(loaded=loaded, aligner=aligner, settings={"max_rows": 6})
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda prompt: server.chat(prompt, max_tokens=TOKENS).json(), prompts))
    assert {is_open for _, is_open, _ in alone} == {True, False}
    for answer, (text, is_open, lead) in zip(answers, alone, strict=True):
        assert answer["inferaligner"]["open"] is is_open
        if lead > 1e-3:  # rounding cannot turn the choice
            assert answer["choices"][0]["message"]["content"] == text
    assert sum(lead > 1e-3 for _, _, lead in alone) >= 10
