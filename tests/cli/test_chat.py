from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.cli import chat as chat_module
from inferaligner.cli.chat import Conversation
from inferaligner.models.loading import LoadedModel
from tests.support.command_line import Run
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

SHORT = ("--max-new-tokens", 6)
OPEN, CLOSED = PROMPTS[0], PROMPTS[1]


def bare_answer(*turns: str) -> str:
    """The bare model's answer to a conversation, user first."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(str(rendered), add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_a_closed_turn_is_the_bare_models_and_an_open_one_is_marked(
    run: Run, target: Path, aligner: Path
) -> None:
    outcome = run("chat", target, "-a", aligner, *SHORT, stdin=f"{CLOSED}\n")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == bare_answer(CLOSED)
    outcome = run("chat", target, "-a", aligner, *SHORT, stdin=f"{OPEN}\n/compare\n/quit\nnot read\n")
    assert outcome.code == 0, outcome.err
    mark, answer, without, bare = outcome.out.strip().split("\n", 3)
    assert mark.startswith("[gate open (+")
    assert without == "[without the aligner]"
    assert bare.strip() == bare_answer(OPEN)
    assert answer.strip() != bare.strip()


def test_turns_are_remembered_until_reset(run: Run, target: Path, aligner: Path) -> None:
    first = bare_answer(CLOSED)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    loaded = LoadedModel(model, tokenizer, "tiny")
    conversation = Conversation(Aligner.from_pretrained(aligner), loaded, 6)
    conversation.say(CLOSED)
    conversation.say(CLOSED)
    assert [turn["role"] for turn in conversation._turns] == ["user", "assistant"] * 2
    assert conversation._turns[1]["content"] == first
    outcome = run("chat", target, "-a", aligner, *SHORT, stdin=f"{CLOSED}\n/reset\n{CLOSED}\n")
    assert "Started over." in outcome.err
    assert outcome.out.strip() == f"{first}\n{first}"


def test_every_turn_is_gated_afresh_on_the_whole_conversation() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    fitted = tiny_aligner(model, tokenizer)
    seen = []
    original = Aligner.apply

    def watched(self: Aligner, *arguments: object, **options: object) -> object:
        guard = original(self, *arguments, **options)  # type: ignore[arg-type]
        seen.append(guard)
        return guard

    fitted.apply = watched.__get__(fitted)  # type: ignore[method-assign]
    conversation = Conversation(fitted, LoadedModel(model, tokenizer, "tiny"), 4)
    conversation.say(OPEN)
    answer = conversation._turns[1]["content"]
    conversation.say(CLOSED)
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": OPEN},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": CLOSED},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    from inferaligner.method.activations import record_activations

    ids = tokenizer(str(rendered), add_special_tokens=False)["input_ids"]
    gate = fitted.artifact.gate
    recorded = record_activations(model, [ids], layers=gate.layers, offsets=gate.offsets)
    (expected,) = gate.decide(gate.scores(recorded.values, recorded.layers, recorded.offsets))
    assert len(seen) == 2
    assert seen[0].decisions[0].open
    assert seen[1].decisions[0].score == pytest.approx(expected.score, abs=1e-5)
    assert seen[1].decisions[0].open == expected.open


def test_mistakes_do_not_end_the_conversation(run: Run, target: Path, aligner: Path) -> None:
    lines = ["/compare", "/nonsense", "long " * 400, "", "/help", CLOSED]
    outcome = run("chat", target, "-a", aligner, *SHORT, stdin="\n".join(lines))
    assert outcome.code == 0, outcome.err
    for words in ("no turn to compare", "no command /nonsense", "reads at most 256"):
        assert words in outcome.err
    assert outcome.out.strip() == bare_answer(CLOSED)


def test_an_interrupted_answer_is_forgotten(
    run: Run, target: Path, aligner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Conversation._answer

    def interrupted(self: Conversation, turns: list[dict[str, str]], guard: object) -> str:
        if turns[-1]["content"] == "stop":
            raise KeyboardInterrupt
        return original(self, turns, guard)  # type: ignore[arg-type]

    monkeypatch.setattr(chat_module.Conversation, "_answer", interrupted)
    outcome = run("chat", target, "-a", aligner, *SHORT, stdin=f"stop\n{CLOSED}\n")
    assert outcome.code == 0
    assert "forgotten" in outcome.err
    assert outcome.out.strip() == bare_answer(CLOSED)


def test_nothing_to_read_ends_at_once(run: Run, target: Path, aligner: Path) -> None:
    outcome = run("chat", target, "-a", aligner, stdin="")
    assert (outcome.code, outcome.out) == (0, "")


def test_an_open_turn_is_refused(run: Run, target: Path, aligner: Path) -> None:
    outcome = run("chat", target, "-a", aligner, "--on-open", "refuse", "--refusal", "No.", stdin=f"{OPEN}\n")
    assert outcome.code == 0, outcome.err
    mark, answer = outcome.out.strip().split("\n")
    assert mark.startswith("[gate open") and answer == "No."
