"""`generation_config.json`: the same answers as of transformers' `generate`, or no start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inferaligner.errors import InputError
from inferaligner.vllm.compatibility import check_generation
from tests.support.vllm_deployment import PROMPTS, Deployment, deploy, engine, generate

LENGTH = 12


def model_config(file: dict[str, Any], *, source: str = "auto", **override: Any) -> Any:
    """A `ModelConfig` with these settings of `generation_config.json`."""
    return SimpleNamespace(
        generation_config=source,
        override_generation_config=override,
        try_get_generation_config=lambda: dict(file),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("suppress_tokens", [5]),
        ("num_beams", 4),
        ("typical_p", 0.9),
        ("min_length", 4),
    ],
)
def test_what_vllm_ignores_does_not_start(name: str, value: Any) -> None:
    for config in (model_config({name: value}), model_config({}, **{name: value})):
        with pytest.raises(InputError, match=f"{name} = .*--generation-config vllm"):
            check_generation(config)
    check_generation(model_config({name: value}, source="vllm"))
    check_generation(model_config({name: value}, **{name: None}))


def test_what_vllm_heeds_starts() -> None:
    file = {"repetition_penalty": 1.3, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1}
    check_generation(model_config({**file, "max_new_tokens": 9, "eos_token_id": [1, 2], "do_sample": True}))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
    deployed = deploy(tmp_path_factory.mktemp("generation"))
    deployed.model.generation_config.repetition_penalty = 1.3
    deployed.model.generation_config.save_pretrained(deployed.target)
    return deployed


def test_the_same_answers_as_transformers(deployment: Deployment) -> None:
    tokens = deployment.tokens()
    with engine(deployment) as llm:
        defaults = llm.get_default_sampling_params()
        assert defaults.repetition_penalty == 1.3
        outputs = generate(llm, tokens, LENGTH, repetition_penalty=defaults.repetition_penalty)
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    assert answers == [deployment.expected(prompt, LENGTH)[1] for prompt in tokens]
    plain = deploy(Path(deployment.target).parent / "plain")
    assert answers != [plain.expected(prompt, LENGTH)[1] for prompt in plain.tokens(PROMPTS)]
