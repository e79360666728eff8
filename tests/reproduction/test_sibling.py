"""The aligned sibling of a family that has none: which commands train it, and that they run once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reproduction.fine_tuning import Job
from reproduction.recipe import Family, ScaleConfig, Sibling, read_scale_config
from reproduction.run_context import Place, RunContext
from reproduction.stage_store import Clock, StageStore
from reproduction.stages import training

from inferaligner.errors import InputError


def run(folder: Path, family: Family, how: Sibling) -> RunContext:
    config = read_scale_config("small")
    scale = config.scale.model_copy(update={"families": {"mine": family}, "sibling": how})
    place = Place(None, folder / "work", folder / "results", examples=True)
    changed = ScaleConfig(config.name, scale, config.experiments)
    store = StageStore(folder / "work" / "mathematics", Clock())
    return RunContext("mathematics", config.domain("mathematics"), changed, "mine", place, store)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; each command leaves behind what the real one would."""
    told: list[list[str]] = []

    def run(words: list[str]) -> int:
        told.append(words[1:])
        output = Path(words[words.index("-o") + 1])
        for name in ("model", "adapter"):
            (output / name).mkdir(parents=True, exist_ok=True)
        return 0

    monkeypatch.setattr(training, "_run", run)
    return told


def test_a_base_model_learns_to_answer_first(tmp_path: Path, commands: list[list[str]]) -> None:
    family = Family(title="Mine", target="base", chat_template="gemma.jinja", chat={"alpaca": 3})
    mine = run(tmp_path, family, Sibling(options=("--epochs", "5")))
    adapter = training.sibling(mine)
    chat, sibling = commands
    assert chat[:4] == ["-m", "reproduction.chat_tuning", "--base", "base"]
    assert chat[chat.index("--template") + 1] == family.template
    rows = [json.loads(line) for line in Path(chat[chat.index("--answers") + 1]).read_text().splitlines()]
    assert len(rows) == 3 and all(row["prompt"] and row["answer"] for row in rows)
    model = str(tmp_path / "work" / "aligned-sibling" / "chat" / "model")
    assert sibling[:4] == ["-m", "reproduction.sibling", "--target", model]
    assert sibling[-2:] == ["--epochs", "5"] and adapter.endswith("aligned-sibling/train/adapter")
    assert training.sibling(mine) == adapter and len(commands) == 2, "finished stages are not done again"


def test_the_domain_is_learned_by_the_model_that_answers(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def train(job: Job) -> bool:
        jobs.append(job)
        job.result.mkdir(parents=True)
        return True

    monkeypatch.setattr(training, "train", train)
    family = Family(title="Mine", target="base", chat_template="gemma.jinja", chat={"alpaca": 3})
    for name, chosen in (("base", family), ("chat", Family(title="Mine", target="chat"))):
        training.domain(run(tmp_path / name, chosen, Sibling()))
    assert [job.model for job in jobs] == [
        str(tmp_path / "base" / "work" / "aligned-sibling" / "chat" / "model"),
        "chat",
    ]
    assert len(commands) == 1


def test_a_chat_model_gets_the_whole_recipe(tmp_path: Path, commands: list[list[str]]) -> None:
    training.sibling(run(tmp_path, Family(title="Mine", target="chat"), Sibling()))
    assert [words[:4] for words in commands] == [["-m", "reproduction.sibling", "--target", "chat"]]


def test_a_base_model_needs_a_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs both"):
        training.sibling(run(tmp_path, Family(title="Mine", target="b", chat={"alpaca": 3}), Sibling()))
