"""The policy of the gate, and that every way to set it obeys the same checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferaligner.aligner import Aligner
from inferaligner.cli.open_options import OpenGateOptions
from inferaligner.errors import InferAlignerError, InputError, SteeringError
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.server.settings import ServerSettings
from inferaligner.steering.gate_choices import ARGUMENTS, FLAGS, REFUSAL
from inferaligner.steering.gate_policy import GatePolicy
from inferaligner.steering.plan import GatePlan
from inferaligner.vllm.settings import EngineSettings, settings_for
from tests.support.tiny_aligner import eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()


def aligners() -> dict[str, Aligner]:
    plain = tiny_aligner(MODEL, TOKENIZER)
    alone = replace(
        plain.artifact,
        steering=SteeringSettings(layers=(), strength=0.0),
        provenance=plain.artifact.provenance.model_copy(update={"aligned": None}),
    )
    return {
        "plain": plain,
        "watching": tiny_aligner(MODEL, TOKENIZER, monitor=eager_monitor()),
        "gate alone": Aligner(alone),
    }


@pytest.fixture(scope="module", name="aligners")
def all_aligners() -> dict[str, Aligner]:
    return aligners()


def flags_policy(aligner: Aligner, *, shadow: bool = False, **choices: Any) -> GatePolicy:
    return OpenGateOptions(**choices).policy(aligner.artifact, shadow=shadow)


ENTRANCES: dict[str, Callable[[Aligner, Path, dict[str, Any]], object]] = {
    "apply": lambda aligner, folder, choices: aligner.apply(
        MODEL,
        TOKENIZER,
        mode="never" if choices.get("shadow") else "gate",
        **{name: value for name, value in choices.items() if name != "shadow"},
    ),
    "command line": lambda aligner, folder, choices: flags_policy(aligner, **choices),
    "embedded server": lambda aligner, folder, choices: aligner.plan_for(ServerSettings(**choices)),
    "vllm": lambda aligner, folder, choices: settings_for(aligner.save_pretrained(folder), **choices),
}

CASES: list[tuple[str, dict[str, Any], type[InferAlignerError] | None]] = [
    ("plain", {}, None),
    ("plain", {"on_open": "refuse"}, None),
    ("plain", {"on_open": "refuse", "refusal": "Not that."}, None),
    ("plain", {"on_open": "refuse", "refusal": "  "}, InputError),
    ("plain", {"refusal": "Not that."}, InputError),
    ("plain", {"shadow": True}, None),
    ("watching", {}, None),
    ("watching", {"on_open": "refuse"}, InputError),
    ("watching", {"on_open": "refuse", "monitor": False}, None),
    ("gate alone", {}, SteeringError),
    ("gate alone", {"shadow": True}, None),
    ("gate alone", {"on_open": "refuse"}, None),
]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("kind", "choices", "error"), CASES)
def test_every_entrance_checks_alike(
    aligners: dict[str, Aligner],
    entrance: str,
    kind: str,
    choices: dict[str, Any],
    error: type[InferAlignerError] | None,
    tmp_path: Path,
) -> None:
    enter = ENTRANCES[entrance]
    if error is None:
        enter(aligners[kind], tmp_path / "aligner", choices)
        return
    with pytest.raises(error):
        enter(aligners[kind], tmp_path / "aligner", choices)


def test_both_servers_have_the_same_defaults() -> None:
    for name, field in GatePolicy.model_fields.items():
        assert ServerSettings.model_fields[name].default == field.default
        assert EngineSettings.model_fields[name].default == field.default
    assert GatePolicy().prompts == "chat"


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({}, None),
        ({"on_open": "refuse"}, REFUSAL),
        ({"on_open": "refuse", "refusal": " Not that. "}, "Not that."),
    ],
)
def test_the_text_of_a_refusal_on_every_engine(choices: dict[str, Any], text: str | None) -> None:
    assert GatePolicy(**choices).refusal_text == text
    assert ServerSettings(**choices).refusal_text == text
    assert EngineSettings(aligner="a", sha256="b", **choices).refusal_text == text


def test_errors_name_arguments_or_flags(aligners: dict[str, Aligner]) -> None:
    policy, artifact = GatePolicy(on_open="refuse"), aligners["watching"].artifact
    with pytest.raises(InputError, match="monitor=False"):
        policy.check(artifact, ARGUMENTS)
    with pytest.raises(InputError, match="--no-monitor"):
        policy.check(artifact, FLAGS)


@pytest.mark.parametrize("choices", [{"on_open": "shrug"}, {"prompts": "some"}, {"strict": True}])
def test_choices_that_do_not_exist(choices: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(choices))):
        GatePolicy.from_choices(**choices)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [("plain", {"on_open": "refuse"}), ("gate alone", {"shadow": True})],
)
def test_without_steering_the_plan_is_the_gate(
    aligners: dict[str, Aligner], kind: str, choices: dict[str, Any]
) -> None:
    assert isinstance(aligners[kind].plan_for(GatePolicy(**choices)), GatePlan)
    assert not isinstance(aligners["plain"].plan_for(GatePolicy()), GatePlan)
