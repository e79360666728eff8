from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from inferaligner.cli import environment
from inferaligner.cli.compatibility import self_test
from inferaligner.method.gate import GuidanceGate
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts import contrast
from inferaligner.prompts.contrast import ContrastSet
from inferaligner.steering.hooks import SteerHook
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


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
    assert set(states(told["compatibility"])) == {
        "model", "width", "depth", "tokenizer", "chat template", "number format", "weights",
    }  # fmt: skip
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
        "number format": "ok",
    }
    assert "gate self-test" not in told


def test_another_chat_template(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>")
    outcome = run("doctor", target, "-a", aligner, "--chat-template", template, "--json")
    assert outcome.code == 2
    found = states(outcome.json()["compatibility"])
    assert {name for name, state in found.items() if state == "differs"} == {"chat template"}


def test_weights_that_were_trained_on_are_told_and_no_error(run: Run, target: Path, tmp_path: Path) -> None:
    other = tiny_aligner(tiny_model(seed=1), tiny_tokenizer()).save_pretrained(tmp_path / "other")
    outcome = run("doctor", target, "-a", other, "--json")
    assert outcome.code == 0, outcome.err
    found = states(outcome.json()["compatibility"])
    assert {name for name, state in found.items() if state != "ok"} == {"weights"}
    assert found["weights"] == "doubtful"


def test_one_of_the_two_is_not_enough(run: Run, target: Path, aligner: Path) -> None:
    refused(run("doctor", target), "belongs together")
    refused(run("doctor", "--aligner", aligner), "belongs together")


def test_the_self_test_notices_steering_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    fitted, loaded = tiny_aligner(model, tokenizer), LoadedModel(model, tokenizer, "tiny")
    assert [finding.state for finding in self_test(fitted, loaded)] == ["ok", "ok"]
    original = SteerHook.__call__

    def idle(self: SteerHook, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SteerHook, "__call__", idle)
    assert [finding.state for finding in self_test(fitted, loaded)] == ["differs", "ok"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> ContrastSet:
    """A thirtieth of the shipped contrast set, in its place."""
    shipped = contrast.load_contrast_set()
    part = ContrastSet(shipped.pairs[::30], shipped.benign[::30], shipped.wrappers, shipped.refusal_texts)
    for place in ("inferaligner.aligner", "inferaligner.prompts.contrast"):
        monkeypatch.setattr(f"{place}.load_contrast_set", lambda: part)
    return part


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target with room for long prompts."""
    folder = tmp_path_factory.mktemp("doctor") / "patient"
    tiny_model("llama", max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# -- another precision ---------------------------------------------------------------------------------------


def test_another_precision_is_told_and_no_error(
    run: Run, target: Path, aligner: Path, tmp_path: Path
) -> None:
    outcome = run("doctor", target, "-a", aligner, "--dtype", "bfloat16", "--json")
    assert outcome.code == 0, outcome.err
    assert states(outcome.json()["compatibility"])["number format"] == "doubtful"
    prompts = tmp_path / "p.txt"
    prompts.write_text("Which flour?\n")
    for command in (
        ("score", target, "-a", aligner, "-i", prompts),
        ("generate", target, "-a", aligner, "-p", "a"),
    ):
        extra = ("--max-new-tokens", 2) if command[0] == "generate" else ()
        told = run(*command, *extra, "--dtype", "bfloat16")
        assert told.code == 0 and "Warning: The aligner was fitted on the model in float32" in told.err
        assert "Warning" not in run(*command, *extra).err


def test_scored_again(
    run: Run, patient: Path, few: ContrastSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = tmp_path / "gate"
    assert run("fit", patient, "-o", fitted, "--gate-layer", 1).code == 0
    same = run("doctor", patient, "-a", fitted, "--rescore", "--json")
    assert same.code == 0, same.err
    shifts = {one["group"]: one for one in same.json()["rescored"]}
    assert set(shifts) == {"harmful", "ordinary traffic"}
    for one in shifts.values():
        assert one["changed"] == 0 and one["largest"] < 1e-3 and one["holds"] and one["before"] == one["now"]
    # The model moved: the scores follow, and that is no longer the aligner's operating point.
    original = GuidanceGate.scores
    monkeypatch.setattr(GuidanceGate, "scores", lambda self, *args: original(self, *args) + 1e6)
    moved = run("doctor", patient, "-a", fitted, "--rescore", "--prompts", 5, "--json")
    assert moved.code == 2
    told = {one["group"]: one for one in moved.json()["rescored"]}
    assert all(one["now"]["value"] == 1.0 and one["now"]["n"] == 5 for one in told.values())
    assert not told["ordinary traffic"]["holds"]
    assert "moved" in run("doctor", patient, "-a", fitted, "--rescore").out


def test_own_prompts_cannot_be_scored_again(run: Run, target: Path, aligner: Path) -> None:
    refused(run("doctor", target, "-a", aligner, "--rescore"), "prompts of your own")
    refused(run("doctor", target, "--aligned", target, "--rescore"), "--rescore", "--aligner DIR")


# -- before a fit --------------------------------------------------------------------------------------------


def test_a_pair_of_siblings(
    run: Run, patient: Path, few: ContrastSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = tmp_path / "sibling"
    model = tiny_model("llama", max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight += 0.02 * torch.randn(layer.mlp.down_proj.weight.shape)
    model.save_pretrained(sibling)
    tiny_tokenizer().save_pretrained(sibling)
    outcome = run("doctor", patient, "--aligned", sibling, "--json", "--prompts", 20)
    assert outcome.code == 2  # a random model declines nothing
    told = outcome.json()["diagnosis"]
    assert told["quality"] == "poor" and told["aligned_declines"]["value"] == 0.0
    assert {one["what"]: one["same"] for one in told["relations"]} == {
        "tokenizer": True, "chat template": True, "architecture": True, "width": True, "depth": True,
    }  # fmt: skip
    assert told["distances"]["mlp.down_proj"] > 0 == told["distances"]["self_attn.q_proj"]
    assert len(told["layers"]) == 4 and told["explained"] is None
    assert told["layers"][0]["cosine"] > 0.9
    shown = run("doctor", patient, "--aligned", sibling, "--prompts", 20)
    assert "Expected quality: poor" in shown.out and "docs/transfer.md" in shown.out
    assert "mlp.down_proj" in shown.out


def test_a_pair_of_two_families(run: Run, patient: Path, few: ContrastSet, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    tiny_model("llama", hidden_size=16, max_position_embeddings=4096).save_pretrained(narrow)
    tiny_tokenizer().save_pretrained(narrow)
    outcome = run("doctor", patient, "--aligned", narrow, "--json", "--prompts", 20)
    assert outcome.code == 2
    told = outcome.json()["diagnosis"]
    assert told["distances"] == {} and told["explained"] is not None
    assert all(layer["explained"] is not None for layer in told["layers"])
    assert [one["what"] for one in told["relations"] if not one["same"]] == ["width"]


def test_what_belongs_together(run: Run, target: Path, aligner: Path) -> None:
    refused(run("doctor", "--aligned", target), "belongs together")
    refused(run("doctor", target, "--aligned", target, "--aligner", aligner), "give one of them")
