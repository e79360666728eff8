from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from inferaligner.cli import environment
from inferaligner.cli.compatibility import self_test
from inferaligner.models.loading import LoadedModel
from inferaligner.steering.hooks import SteerHook
from tests.cli.conftest import Run, refused
from tests.models.tiny import tiny_model, tiny_tokenizer
from tests.tiny_aligner import tiny_aligner


def states(findings: list[dict[str, str]]) -> dict[str, str]:
    return {finding["name"]: finding["state"] for finding in findings}


def test_the_environment(run: Run) -> None:
    outcome = run("doctor")
    assert outcome.code == 0, outcome.out
    for words in ("python", "torch", "transformers", "device", "threads", "bfloat16", "builtin:smollm2-135m"):
        assert words in outcome.out


def test_an_unsupported_transformers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "supported_transformers", lambda: ">=9,<10")
    outcome = run("doctor", "--json")
    assert outcome.code == 2
    told = outcome.json()
    assert told["ok"] is False
    assert states(told["environment"])["transformers"] == "differs"


def test_the_supported_range_is_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2.4", "transformers>=5.16.1,<5.20", 'transformers[x]>=1; extra == "y"']
    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    assert environment.supported_transformers() == "<5.20,>=5.16.1"

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert environment.supported_transformers() is None


def test_a_missing_extra_is_told_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "peft" else original(name))
    (finding,) = [finding for finding in environment.examine() if finding.name == "peft"]
    assert finding.state == "missing" and 'pip install "inferaligner[models]"' in finding.advice


def test_a_pair_that_fits(run: Run, target: Path, aligner: Path) -> None:
    outcome = run("doctor", target, "--aligner", aligner, "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json()
    assert told["ok"] is True
    assert set(states(told["compatibility"]).values()) == {"ok"}
    assert set(states(told["compatibility"])) == {"model", "width", "depth", "tokenizer", "chat template"}
    assert states(told["gate self-test"]) == {"gate forced open": "ok", "gate forced closed": "ok"}
    shown = run("doctor", target, "--aligner", aligner)
    assert shown.code == 0 and "bit-identical" in shown.out


def test_another_width(run: Run, other_width: Path, aligner: Path) -> None:
    outcome = run("doctor", other_width, "--aligner", aligner, "--json")
    assert outcome.code == 2
    told = outcome.json()
    found = states(told["compatibility"])
    assert found == {
        "model": "differs",
        "width": "differs",
        "depth": "ok",
        "tokenizer": "ok",
        "chat template": "ok",
    }
    assert "gate self-test" not in told


def test_another_chat_template(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>")
    outcome = run("doctor", target, "-a", aligner, "--chat-template", template, "--json")
    assert outcome.code == 2
    found = states(outcome.json()["compatibility"])
    assert {name for name, state in found.items() if state == "differs"} == {"chat template"}


def test_one_of_the_two_is_not_enough(run: Run, target: Path, aligner: Path) -> None:
    refused(run("doctor", target), "belong together")
    refused(run("doctor", "--aligner", aligner), "belong together")


def test_the_self_test_notices_steering_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    fitted, loaded = tiny_aligner(model, tokenizer), LoadedModel(model, tokenizer, "tiny")
    assert [finding.state for finding in self_test(fitted, loaded)] == ["ok", "ok"]
    original = SteerHook.__call__

    def idle(self: SteerHook, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SteerHook, "__call__", idle)
    assert [finding.state for finding in self_test(fitted, loaded)] == ["differs", "ok"]
