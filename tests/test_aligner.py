from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import inferaligner
from inferaligner import aligner as aligner_module
from inferaligner.aligner import Aligner
from inferaligner.errors import ArtifactError, CalibrationError, InputError, MismatchError
from inferaligner.judges import Judgement
from tests.support.tiny_aligner import HARMFUL, HARMLESS, PROMPTS, tiny_aligner
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def fitted() -> Aligner:
    return tiny_aligner(tiny_model(), tiny_tokenizer())


def fit(**options: Any) -> Aligner:
    settings = {"harmful": HARMFUL, "harmless": HARMLESS, "paper": True, **options}
    return Aligner.fit(tiny_model(), tiny_tokenizer(), aligned=tiny_model(seed=1), **settings)


# -- fit -----------------------------------------------------------------------------------------------------


def test_it_is_the_packages_own_name() -> None:
    assert inferaligner.Aligner is Aligner


def test_fit_leaves_the_models_as_they_were() -> None:
    target, aligned, tokenizer = tiny_model(), tiny_model(seed=1), tiny_tokenizer()
    before = [parameter.clone() for parameter in target.parameters()]
    Aligner.fit(target, tokenizer, aligned=aligned, harmful=HARMFUL, harmless=HARMLESS, paper=True)
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))
    for model in (target, aligned):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert "generate" not in model.__dict__


def test_the_papers_choices_yield_to_a_limit_that_is_given() -> None:
    mine = [f"How do I steal {thing} from a shop?" for thing in ["socks", "hats", "forks", "cups"]]
    papers, limited = fit(benign=mine).artifact, fit(benign=mine, max_false_open=0.1).artifact
    assert limited.gate.bias < papers.gate.bias
    opened = limited.calibration["held_out"]["open"]["your benign prompts: benign"]["value"]
    assert opened == 0 < papers.calibration["held_out"]["open"]["your benign prompts: benign"]["value"]
    assert limited.steering == papers.steering
    with pytest.raises(InputError, match="without --benign"):
        fit(max_false_open=0.1)


def test_a_fit_is_the_same_every_time() -> None:
    one, other = fit().artifact, fit().artifact
    assert torch.equal(one.srv, other.srv) and torch.equal(one.ssv, other.ssv)
    assert torch.equal(one.gate.weights, other.gate.weights) and one.gate.bias == other.gate.bias
    assert one.calibration == other.calibration


def test_srv_is_the_targets_and_ssv_the_aligned_models() -> None:
    found = fit().artifact
    same_sides = Aligner.fit(
        tiny_model(), tiny_tokenizer(), aligned=tiny_model(), harmful=HARMFUL, harmless=HARMLESS, paper=True
    ).artifact
    assert torch.equal(same_sides.srv, same_sides.ssv)
    assert torch.equal(found.srv, same_sides.srv)
    assert not torch.allclose(found.srv, found.ssv)


def test_benign_prompts_are_one_list_or_lists_by_name() -> None:
    assert "your benign prompts: benign" in fit(benign=PROMPTS).artifact.calibration["held_out"]["open"]
    named = fit(benign={"mine": PROMPTS}).artifact.calibration["held_out"]["open"]
    assert named["your benign prompts: mine"]["n"] == len(PROMPTS)


def test_benign_prompts_raise_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligner_module, "judge", lambda answer: Judgement("refusal"))
    # The harmful prompts themselves as benign traffic: the gate must stay shut on every one of them.
    options = {"paper": False, "gate_layer": 1, "steer_layers": [2], "strength": 0.1, "max_false_open": 0.01}
    strict = fit(benign=HARMFUL, **options)
    decisions = strict.score(tiny_model(), tiny_tokenizer(), HARMFUL)
    assert not any(decision.open for decision in decisions)
    assert strict.artifact.gate.bias < fit(**options).artifact.gate.bias


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"harmless": None}, InputError, "belong together"),
        ({"harmful": None}, InputError, "belong together"),
        ({"harmful": HARMFUL[:3]}, CalibrationError, "3 different harmful"),
        ({"harmful": HARMLESS}, InputError, "in both"),
        ({"max_false_open": 0.0}, InputError, "max-false-open"),
        ({"strength": -1.0}, InputError, "strength"),
        ({"steer_layers": []}, InputError, "empty"),
        ({"steer_layers": [4]}, InputError, "layers 0 to 3"),
        ({"gate_layer": 17}, InputError, "layers 0 to 3"),
        ({"benign": []}, InputError, "No prompts"),
    ],
)
def test_what_cannot_be_fitted(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit(**options)


def test_an_aligned_model_of_another_shape() -> None:
    with pytest.raises(CalibrationError, match="The map from"):
        Aligner.fit(
            tiny_model(),
            tiny_tokenizer(),
            aligned=tiny_model(hidden_size=16),
            harmful=HARMFUL,
            harmless=HARMLESS,
            carry="map",
        )


# -- apply, check, score -------------------------------------------------------------------------------------


def test_apply_gates_and_leaves_the_model_as_it_was(fitted: Aligner) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    texts = [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
        for prompt in PROMPTS
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        bare = model(**batch).logits[:, -1]
        with fitted.apply(model, tokenizer) as guard:
            gated = model(**batch).logits[:, -1]
        after = model(**batch).logits[:, -1]
    assert {decision.open for decision in guard.decisions} == {True, False}
    for row, decision in enumerate(guard.decisions):
        assert torch.equal(gated[row], bare[row]) == (not decision.open)
    assert torch.equal(after, bare)
    scored = fitted.score(model, tokenizer, PROMPTS)
    for one, other in zip(guard.decisions, scored, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5) and one.open == other.open


def test_the_source_of_the_vectors(fitted: Aligner) -> None:
    artifact = fitted.artifact
    assert torch.equal(fitted.plan().additions[1], artifact.steering.strength * artifact.ssv[1])
    assert torch.equal(fitted.plan("target").additions[1], artifact.steering.strength * artifact.srv[1])


def test_another_model_or_tokenizer_is_refused(fitted: Aligner) -> None:
    tokenizer = tiny_tokenizer()
    narrow = tiny_model(hidden_size=16)
    for use in (
        lambda: fitted.apply(narrow),
        lambda: fitted.check(narrow),
        lambda: fitted.score(narrow, tokenizer, PROMPTS),
    ):
        with pytest.raises(MismatchError, match=r"width of the residual stream is 16, expected 32"):
            use()
    with pytest.raises(MismatchError, match="number of decoder layers is 5, expected 4"):
        fitted.check(tiny_model(num_hidden_layers=5))
    tokenizer.chat_template = CHAT_TEMPLATE.replace("user", "human") + " "
    with pytest.raises(MismatchError, match="chat template is another one"):
        fitted.apply(tiny_model(), tokenizer)
    fitted.check(tiny_model(), tiny_tokenizer())


def test_the_number_format_does_not_matter(fitted: Aligner) -> None:
    fitted.check(tiny_model().to(torch.bfloat16), tiny_tokenizer())


# -- keep ----------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_decides_the_same(fitted: Aligner, tmp_path: Path) -> None:
    place = fitted.save_pretrained(tmp_path / "aligner")
    loaded = Aligner.from_pretrained(place)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert loaded.score(model, tokenizer, PROMPTS) == fitted.score(model, tokenizer, PROMPTS)
    assert loaded.artifact.digest() == fitted.artifact.digest()
    assert "# Aligner for" in (place / "README.md").read_text()
    assert Aligner.from_pretrained(str(place)).artifact.digest() == fitted.artifact.digest()


def test_a_home_folder_is_found(fitted: Aligner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted.save_pretrained(tmp_path / "aligner")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Aligner.from_pretrained("~/aligner").artifact.digest() == fitted.artifact.digest()


@pytest.mark.parametrize("place", ["nothing", "./no/where", "/no/where", "n" * 400, "a/b/c"])
def test_nothing_there(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ArtifactError, match="not an aligner"):
        Aligner.from_pretrained(place)


def test_from_the_hub(fitted: Aligner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fitted.save_pretrained(tmp_path / "snapshot")
    asked: list[str] = []

    def download(repository: str, **options: Any) -> str:
        asked.append(repository)
        assert "aligner.json" in options["allow_patterns"]
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert Aligner.from_pretrained("me/my-aligner").artifact.digest() == fitted.artifact.digest()
    assert asked == ["me/my-aligner"]


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("offline"), OSError("broken pipe"), ValueError("not an id"), RuntimeError("?")],
)
def test_a_hub_that_does_not_deliver(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, **_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"me/my-aligner is neither a folder here nor"):
        Aligner.from_pretrained("me/my-aligner")


def test_a_repository_without_aligner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="not an aligner"):
        Aligner.from_pretrained("me/model")


def test_push_to_hub(fitted: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            calls["token"] = token

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            calls["created"] = (repository, private, exist_ok)

        def upload_folder(self, *, folder_path: str, repo_id: str, commit_message: str) -> SimpleNamespace:
            calls["uploaded"] = repo_id
            calls["files"] = sorted(file.name for file in Path(folder_path).iterdir())
            calls["digest"] = Aligner.from_pretrained(folder_path).artifact.digest()
            calls["folder"] = folder_path
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert fitted.push_to_hub("me/my-aligner", private=True, token="t") == "https://hub/commit/1"
    assert calls["token"] == "t"
    assert calls["created"] == ("me/my-aligner", True, True)
    assert calls["uploaded"] == "me/my-aligner"
    assert calls["files"] == ["README.md", "aligner.json", "vectors.safetensors"]
    assert calls["digest"] == fitted.artifact.digest()
    assert not Path(calls["folder"]).exists()
