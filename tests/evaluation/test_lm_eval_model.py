"""lm-eval on a small local task, offline, with and without an aligner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: make test-extras")
pytestmark = pytest.mark.extras

from inferaligner.errors import InputError  # noqa: E402
from inferaligner.evaluation.lm_eval_model import InferAlignerLM  # noqa: E402
from tests.support.tiny_aligner import PROMPTS, tiny_aligner  # noqa: E402
from tests.support.tiny_models import tiny_model, tiny_tokenizer  # noqa: E402

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {output}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""
_CHOICES = 'doc_to_choice: ["yes", "no", "perhaps so"]\nmetric_list:\n  - metric: acc\n'
_GENERATED = (
    'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 4\nmetric_list:\n  - metric: exact_match\n'
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = tiny_model("llama", max_position_embeddings=1024), tiny_tokenizer()
    model.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    tiny_aligner(model, tokenizer).save_pretrained(tmp_path / "aligner")
    rows = [{"question": prompt, "answer": "yes"} for prompt in PROMPTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, output, more in (("mine", "multiple_choice", _CHOICES), ("told", "generate_until", _GENERATED)):
        text = _TASK.format(name=name, file=tmp_path / "rows.jsonl", output=output, more=more)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    return tmp_path


def run(places: Path, task: str, *, aligner: bool, chat: bool = True) -> tuple[dict[str, Any], Any]:
    model = InferAlignerLM(
        str(places / "target"), str(places / "aligner") if aligner else None, batch_size=4, device="cpu"
    )
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(places / "tasks")),
            apply_chat_template=chat,
            log_samples=True,
            bootstrap_iters=0,
        )
        samples = {sample["doc"]["question"]: sample["resps"] for sample in found["samples"][task]}
        return samples, model.decisions
    finally:
        model.close()


def test_log_likelihoods_of_closed_prompts_are_the_bare_models(places: Path) -> None:
    bare, nothing = run(places, "mine", aligner=False)
    ours, decisions = run(places, "mine", aligner=True)
    assert nothing == [] and len(decisions) == 3 * len(PROMPTS)
    changed = [question for question in PROMPTS if ours[question] != bare[question]]
    opened = sum(decision.open for decision in decisions) / 3
    assert 0 < len(changed) == opened < len(PROMPTS)


def test_generation_is_gated_too(places: Path) -> None:
    bare, _ = run(places, "told", aligner=False)
    ours, decisions = run(places, "told", aligner=True)
    changed = sum(ours[question] != bare[question] for question in PROMPTS)
    assert 0 < changed <= sum(decision.open for decision in decisions) < len(PROMPTS)


def test_a_context_without_the_template_is_refused(places: Path) -> None:
    with pytest.raises(InputError, match="--apply_chat_template"):
        run(places, "mine", aligner=True, chat=False)
    samples, _ = run(places, "mine", aligner=False, chat=False)
    assert len(samples) == len(PROMPTS)
