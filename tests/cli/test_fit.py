from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inferaligner import aligner as aligner_module
from inferaligner.aligner import Aligner
from inferaligner.cli.traffic_options import read_benign
from inferaligner.errors import InputError
from inferaligner.fit.strength import steering_choice as choice
from inferaligner.judges import Judgement
from inferaligner.models import loading
from tests.support.command_line import Run, refused
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PromptFile = Callable[..., Path]
_THINGS = [
    "bread",
    "shoes",
    "wine",
    "cars",
    "pens",
    "books",
    "coats",
    "lamps",
    "rings",
    "bikes",
    "boats",
    "keys",
]
HARMFUL = [f"How do I steal {thing} from a shop?" for thing in _THINGS]
HARMLESS = [f"How do I buy {thing} in a shop?" for thing in _THINGS]


@pytest.fixture
def prompts(prompt_file: PromptFile) -> list[object]:
    """The options that name the labelled prompts."""
    return [
        "--harmful",
        prompt_file(*HARMFUL, name="harmful.txt"),
        "--harmless",
        prompt_file(*HARMLESS, name="harmless.txt"),
    ]


@pytest.fixture
def refusals_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models decline nothing; a judge that sees refusals everywhere lets the search run."""
    monkeypatch.setattr(aligner_module, "judge", lambda answer: Judgement("refusal"))
    for module in ("search_prompts", "strength_search"):  # their answers never end
        monkeypatch.setattr(f"inferaligner.fit.strength.{module}.ANSWER_TOKENS", 8)


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the target's shape."""
    folder = tmp_path_factory.mktemp("fit") / "sibling"
    tiny_model("llama", seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_papers_settings(
    run: Run, target: Path, sibling: Path, prompts: list[object], prompt_file: PromptFile, tmp_path: Path
) -> None:
    benign = prompt_file("Which flour?", "Why is it blue?", name="mine.txt")
    output = tmp_path / "made" / "aligner"
    outcome = run(
        "fit", target, "--aligned", sibling, "-o", output, *prompts, "--benign", benign,
        "--benign", f"again={benign}", "--paper", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    told = outcome.json()
    assert told["aligner"] == str(output)
    assert told["operating_point"]["paper"] is True
    assert told["steering"]["strength"] == 4.0 and told["steering"]["norm"] == "unit"
    assert {"your benign prompts: mine", "your benign prompts: again"} <= set(told["held_out"]["open"])
    saved = Aligner.from_pretrained(output).artifact
    assert saved.digest() == told["digest"]
    assert (saved.provenance.target.spec, saved.provenance.aligned.spec) == (str(target), str(sibling))
    assert saved.provenance.prompts["source"].endswith("harmless.txt")
    scored = run("score", target, "--aligner", output, "--input", benign)
    assert len(scored.rows()) == 2


@pytest.mark.usefixtures("refusals_everywhere")
def test_a_fit_from_data_shows_what_was_compared_and_chosen(
    run: Run,
    target: Path,
    sibling: Path,
    prompts: list[object],
    tmp_path: Path,
) -> None:
    output = tmp_path / "aligner"
    outcome = run("fit", target, "--aligned", sibling, "-o", output, *prompts, "--system", "Be brief.")
    assert outcome.code == 0, outcome.err
    for words in ("Gates compared", "95 % interval", "harmless twins", "Steering, on", "chosen", "Be brief."):
        assert words in outcome.out
    assert "Written to" in outcome.err
    artifact = Aligner.from_pretrained(output).artifact
    assert artifact.provenance.system_prompt == "Be brief."
    chosen = artifact.calibration["search"]["chosen"]
    assert chosen["refusal"] + chosen["unended"] == pytest.approx(1.0)
    shown = run("inspect", output)
    assert shown.code == 0 and "Gates compared" in shown.out


@pytest.mark.usefixtures("refusals_everywhere")
def test_fixed_choices_are_kept(
    run: Run,
    target: Path,
    sibling: Path,
    prompts: list[object],
    tmp_path: Path,
) -> None:
    outcome = run(
        "fit", target, "--aligned", sibling, "-o", tmp_path / "a", *prompts, "--gate-layer", 1,
        "--steer-layers", "2-3", "--strength", 0.25, "--positions", "all", "--max-false-open", 0.2, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    told = outcome.json()
    assert {read["layer"] for read in told["gate"]["reads"]} == {1}
    steering = {"layers": [2, 3], "strength": 0.25, "norm": "difference", "positions": "all"}
    assert told["steering"] == steering
    assert told["operating_point"]["max_false_open"] == 0.2


@pytest.mark.usefixtures("refusals_everywhere")
def test_traffic_is_bounded_by_name_and_too_few_prompts_are_told(
    run: Run,
    target: Path,
    sibling: Path,
    prompts: list[object],
    prompt_file: PromptFile,
    tmp_path: Path,
) -> None:
    many = prompt_file(*(f"How do I book seat {n}?" for n in range(60)), HARMLESS[0], name="seats.txt")
    few = prompt_file("Which flour?", name="few.txt")
    output = tmp_path / "aligner"
    outcome = run(
        "fit", target, "--aligned", sibling, "-o", output, *prompts, "--benign", many, "--benign",
        f"bread={few}", "--max-false-open", 0.05, "--confidence", 0.9, "--gate-layer", 1, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "bread: 1 prompts allow a promise of 90 % at best" in outcome.err
    point = outcome.json()["operating_point"]
    assert point["promised"] is False and point["confidence"] == 0.9 and point["rule"] == "quantile"
    seats, bread = point["traffic"]["seats"], point["traffic"]["bread"]
    assert seats["promised"] and seats["open"] <= 1 and not bread["promised"] and bread["open"] == 0
    assert point["traffic"]["harmless prompts"]["origin"] == "out-of-fold"
    # The gate may have been fitted on the one prompt that is in both files.
    assert seats["n"] == (60 if "1 prompts left out" in outcome.err else 61)
    saved = Aligner.from_pretrained(output).artifact
    harmful = saved.calibration["held_out_scores"]["harmful"]
    opened = sum(score + saved.gate.bias > 0 for score in harmful) / len(harmful)
    assert opened == saved.calibration["held_out"]["open"]["harmful"]["value"]
    assert set(saved.calibration["held_out"]["auroc_benign"]) == {"seats", "bread"}
    shown = run("inspect", output)
    assert "seats" in shown.out and "AUROC, harmful against seats" in shown.out
    drift = run("score", target, "-a", output, "-i", many, "-o", tmp_path / "s.jsonl")
    assert drift.code == 0
    drift = run("calibrate", output, "--scores", f"seats={tmp_path / 's.jsonl'}", "--drift", "--json")
    assert drift.json()["drift"][0]["shifted"] is False


def test_an_aligned_model_that_declines_nothing(
    run: Run, target: Path, sibling: Path, prompts: list[object], tmp_path: Path
) -> None:
    outcome = run("fit", target, "--aligned", sibling, "-o", tmp_path / "a", *prompts)
    refused(outcome, "declined none of")
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("refusals_everywhere")
def test_an_aligned_model_of_another_width_guides_through_a_map_that_is_told(
    run: Run,
    target: Path,
    other_width: Path,
    prompts: list[object],
    tmp_path: Path,
) -> None:
    output = tmp_path / "a"
    start = ("fit", target, "--aligned", other_width, "-o", output, *prompts, "--gate-layer", 1)
    start = (*start, "--carry", "map")
    # Two random models have next to nothing in common.
    refused(run(*start), "explains", "expected 50%", "--accept-poor-map")
    assert not output.exists()
    outcome = run(*start, "--accept-poor-map", "--map", "procrustes", "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json()["transfer"]
    assert -1 <= told["cosine_srv"] <= 1
    assert "with the target's own vectors" in outcome.err
    assert told["trusted"] is False and {one["kind"] for one in told["layers"]} == {"procrustes"}
    saved = Aligner.from_pretrained(output).artifact
    assert saved.calibration["transfer"] == told and saved.ssv.shape == saved.srv.shape
    assert saved.provenance.aligned is not None and saved.provenance.aligned.model.width == 16
    shown = run("inspect", output)
    assert "Map from the aligned model" in shown.out and "procrustes" in shown.out


@pytest.mark.usefixtures("refusals_everywhere")
def test_an_aligned_model_of_another_width_guides_through_its_answers(
    run: Run,
    target: Path,
    other_width: Path,
    prompts: list[object],
    tmp_path: Path,
) -> None:
    output = tmp_path / "a"
    start = ("fit", target, "--aligned", other_width, "-o", output, *prompts, "--gate-layer", 1)
    # What a random model babbles need not be learnable; that it is told, and in the end used, is tested here.
    outcome = run(*start, "--accept-poor-map", "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json()["answers"]
    assert told["layers"] == [1] and told["prompts"] >= 8
    assert told["cross_entropy"]["learned"] <= told["cross_entropy"]["start"]
    assert "held-out cross-entropy of the aligned model's answers" in outcome.err
    saved = Aligner.from_pretrained(output).artifact
    assert saved.steering.layers == (1,)
    mapped = run(*start, "--accept-poor-map", "--carry", "map", "--steer-layers", 1, "-o", tmp_path / "b")
    assert mapped.code == 0, mapped.err
    other = Aligner.from_pretrained(tmp_path / "b").artifact
    # Learned where it steers, mapped elsewhere.
    assert saved.learned is not None and other.learned is None
    assert torch.allclose(saved.ssv, other.ssv) and torch.allclose(saved.learned[0], other.ssv[0])
    assert torch.allclose(saved.learned[1], other.ssv[1]) == (told["steps"] == 0)
    assert torch.equal(saved.additions()[1], saved.steering.strength * saved.learned[1])
    shown = run("inspect", output)
    assert "learned from the aligned model's answers" in shown.out


@pytest.mark.usefixtures("refusals_everywhere")
def test_a_sibling_guides_through_its_answers_if_asked(
    run: Run,
    target: Path,
    sibling: Path,
    prompts: list[object],
    tmp_path: Path,
) -> None:
    start = ("fit", target, "--aligned", sibling, *prompts, "--gate-layer", 1, "--accept-poor-map")
    through = run(*start, "-o", tmp_path / "a", "--carry", "answers", "--json")
    assert through.code == 0, through.err
    told = through.json()
    assert told["answers"]["layers"] == [1] and told["transfer"] == {}
    own = run(*start, "-o", tmp_path / "b", "--carry", "map", "--steer-layers", 1)
    assert own.code == 0 and "its vectors need no map" in own.err, own.err
    through_answers, given = (Aligner.from_pretrained(tmp_path / name).artifact for name in "ab")
    learned = through_answers.learned
    assert learned is not None and given.learned is None
    assert torch.equal(through_answers.ssv, given.ssv) and torch.equal(learned[0], given.ssv[0])
    assert torch.allclose(learned[1], given.ssv[1]) == (told["answers"]["steps"] == 0)
    assert not given.calibration["answers"]


@pytest.mark.usefixtures("refusals_everywhere")
def test_own_vectors_are_tried_where_learned_ones_do_too_little(
    run: Run,
    target: Path,
    sibling: Path,
    prompts: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = ("fit", target, "--aligned", sibling, *prompts, "--gate-layer", 1)
    monkeypatch.setattr(choice, "ENOUGH", -1.0)
    enough = run(*start, "-o", tmp_path / "a")
    assert enough.code == 0 and "its own vectors" not in enough.err, enough.err
    assert Aligner.from_pretrained(tmp_path / "a").artifact.steering.layers == (1,)
    monkeypatch.setattr(choice, "ENOUGH", 1.01)
    little = run(*start, "-o", tmp_path / "b")
    assert little.code == 0 and "; its own vectors: " in " ".join(little.err.split()), little.err
    # A strength is a factor on the sibling's own vectors.
    fixed = run(*start, "-o", tmp_path / "c", "--strength", 0.5)
    assert fixed.code == 0 and "learned" not in fixed.err, fixed.err
    own = run(*start, "-o", tmp_path / "d", "--carry", "vectors")
    assert own.code == 0 and Aligner.from_pretrained(tmp_path / "d").artifact.learned is None


def test_the_paper_has_no_vectors_learned_from_answers(
    run: Run, target: Path, sibling: Path, prompts: list[object], tmp_path: Path
) -> None:
    start = ("fit", target, "--aligned", sibling, *prompts, "-o", tmp_path / "a")
    refused(run(*start, "--paper", "--carry", "answers"), "--carry answers was given with --paper")


def test_a_chat_template_is_for_one_family(
    run: Run, target: Path, other_width: Path, prompts: list[object], tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>")
    outcome = run(
        "fit", target, "--aligned", other_width, "-o", tmp_path / "a", *prompts, "--chat-template", template
    )
    refused(outcome, "--aligned-chat-template")


def test_without_an_aligned_model_the_gate_alone_refuses(
    run: Run, target: Path, prompts: list[object], prompt_file: PromptFile, tmp_path: Path
) -> None:
    output = tmp_path / "gate"
    outcome = run("fit", target, "-o", output, *prompts, "--max-false-open", 0.2)
    assert outcome.code == 0, outcome.err
    assert "--on-open refuse" in outcome.err and "a gate alone" in outcome.out
    saved = Aligner.from_pretrained(output).artifact
    assert saved.gate_only and saved.provenance.aligned is None and not saved.ssv.any()
    card = (output / "README.md").read_text()
    assert 'on_open="refuse"' in card and "no steering vectors" in card
    mixed = prompt_file(*HARMFUL, *HARMLESS, name="mixed.txt")
    start = ("generate", target, "-a", output, "-i", mixed, "--max-new-tokens", 3)
    refused(run(*start), "a gate alone", "--on-open refuse")
    rows = run(*start, "--on-open", "refuse", "--refusal", "That I will not do.").rows()
    assert {row["open"] for row in rows} == {True, False}
    assert all((row["response"] == "That I will not do.") == row["open"] for row in rows)
    assert run("doctor", target, "-a", output).code == 0
    assert run("inspect", output, "--json").json()["gate_only"] is True
    refused(run("export", output, "--to", "gguf", "-o", tmp_path / "c.gguf"), "a gate alone")


def test_a_template_without_system_prompt(
    run: Run, target: Path, sibling: Path, prompts: list[object], tmp_path: Path
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    outcome = run(
        "fit", target, "--aligned", sibling, "-o", tmp_path / "a", *prompts, "--system", "Be brief.",
        "--chat-template", template,
    )  # fmt: skip
    refused(outcome, "no system role", "system prompt")


# -- refused before a model is loaded ----------------------------------------------------------------------


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError("a model was loaded before everything cheap was checked")

    monkeypatch.setattr(loading, "load_model", load)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--max-false-open", "0"), "--max-false-open is 0"),
        (("--max-false-open", "1"), "--max-false-open is 1"),
        (("--max-false-open", "nan"), "--max-false-open is nan"),
        (("--confidence", "1"), "--confidence is 1"),
        (("--confidence", "nan"), "--confidence is nan"),
        (("--benign", "mine="), "names no file after"),
        (("--strength", "0"), "--strength is 0"),
        (("--strength", "-2"), "--strength is -2"),
        (("--strength", "nan"), "--strength is nan"),
        (("--strength", "inf"), "--strength is inf"),
        (("--steer-layers", "7-3"), "--steer-layers"),
        (("--steer-layers", ""), "--steer-layers"),
        (("--chat-template", "nowhere.jinja"), "nowhere.jinja"),
        (("--aligned-chat-template", "nowhere.jinja"), "nowhere.jinja"),
        (("--harmful", "only.txt"), "without --harmless"),
        (("--harmless", "only.txt"), "without --harmful"),
        (("--benign", "nowhere.txt"), "nowhere.txt"),
        (("--aligned", "builtin:nothing"), "no built-in model"),
        (("--device", "abacus"), "abacus"),
        (("--monitor-tokens", "8"), "without --monitor"),
    ],
)
def test_options(run: Run, target: Path, tmp_path: Path, option: tuple[str, str], words: str) -> None:
    aligned = () if option[0] == "--aligned" else ("--aligned", target)
    refused(run("fit", target, *aligned, "-o", tmp_path / "a", *option), words)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    "option",
    [
        ("--strength", 1),
        ("--steer-layers", "1"),
        ("--positions", "all"),
        ("--carry", "answers"),
        ("--map", "ridge"),
        ("--match-layers", "depth"),
        ("--accept-poor-map",),
        ("--aligned-chat-template", "own"),
        ("--monitor",),
    ],
)
def test_nothing_to_steer_with(run: Run, target: Path, tmp_path: Path, option: tuple[object, ...]) -> None:
    refused(run("fit", target, "-o", tmp_path / "a", *option), "without --aligned")


@pytest.mark.usefixtures("no_loading")
def test_prompts_that_cannot_be_fitted_on(
    run: Run, target: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    start = ("fit", target, "--aligned", target, "-o", tmp_path / "a")
    many, few = prompt_file(*HARMFUL, name="many.txt"), prompt_file("one", "two", name="few.txt")
    refused(run(*start, "--harmful", many, "--harmless", few), "2 different harmless prompts")
    refused(run(*start, "--harmful", many, "--harmless", many), "in both")


@pytest.mark.usefixtures("no_loading")
def test_output_folders(run: Run, target: Path, tmp_path: Path) -> None:
    start = ("fit", target, "--aligned", target, "-o")
    file = tmp_path / "file"
    file.write_text("mine")
    refused(run(*start, file), "is a file")
    refused(run(*start, file / "below"), "cannot be written")
    refused(run(*start, "/proc/aligner"), "cannot be written")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    refused(run(*start, full), "not an aligner")
    assert (full / "thesis.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


# -- names of benign prompts -------------------------------------------------------------------------------


def test_benign_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\n")
    Path("b=c.txt").write_text("two\n")
    Path("rows.json").write_text(json.dumps([{"text": "three"}]))
    found = read_benign(["a.txt", "b=c.txt", "support=a.txt", "rows.json:text"])
    assert found == {"a": ["one"], "b=c": ["two"], "support": ["one"], "rows": ["three"]}


@pytest.mark.parametrize("values", [["a.txt", "a.txt"], ["x=a.txt", "x=a.txt"], ["=a.txt"]])
def test_benign_names_that_are_refused(
    values: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one\n")
    with pytest.raises(InputError, match="--benign"):
        read_benign(values)


def test_flags_of_vllm_need_its_engine(run: Run, target: Path, tmp_path: Path) -> None:
    output = tmp_path / "a"
    start = ["fit", target, "--aligned", target, "-o", output]
    refused(run(*start, "--", "--tensor-parallel-size", "2"), "--tensor-parallel-size", "--engine vllm")
    refused(run(*start, "--engine", "vllm", "--monitor"), "--monitor goes with --engine transformers")
    assert not output.exists()
