"""Local classifiers as judges, on tiny models that are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from inferaligner.errors import InputError, ModelLoadError
from inferaligner.judges.classifier import ClassifierJudge
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [("Why?", "Because."), ("How do I bake a loaf of bread?", "With flour, and some time."), ("a", "b")]


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "causal")
    tiny_tokenizer().save_pretrained(tmp_path / "causal")
    return tmp_path / "causal"


def test_a_causal_classifier_gives_the_likelier_label(causal: Path) -> None:
    template = "Q {behavior} A {generation} V"
    judge = ClassifierJudge(str(causal), template=template, labels=["yes", "no"], batch_size=2)
    judgements = judge.judge_all(PAIRS)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no")]
    for index, (prompt, answer) in enumerate(PAIRS):
        ids = tokenizer(f"Q {prompt} A {answer} V", add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1, words]
        assert judgements[index].label == ("yes", "no")[int(logits.argmax())]
    assert judge.positive == ("yes",)


def test_a_sequence_classifier_has_its_own_labels(tmp_path: Path) -> None:
    names: dict[int, Any] = {0: "fine", 1: "bad"}
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
        id2label=names,
        label2id={"fine": 0, "bad": 1},
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "sequence")
    tiny_tokenizer().save_pretrained(tmp_path / "sequence")
    judge = ClassifierJudge(str(tmp_path / "sequence"), positive=["bad"])
    labels = [judgement.label for judgement in judge.judge_all(PAIRS)]
    assert len(labels) == 3 and set(labels) <= {"fine", "bad"} and judge.positive == ("bad",)
    with pytest.raises(InputError, match="worse"):
        ClassifierJudge(str(tmp_path / "sequence"), positive=["worse"])


def test_an_unusable_classifier_is_refused(causal: Path) -> None:
    with pytest.raises(InputError, match="two or more labels"):
        ClassifierJudge(str(causal))
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        ClassifierJudge(str(causal / "nothing"))
