"""The contract of `inferaligner.judges`, for every judge of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.suite import KINDS
from inferaligner.judges import UNPARSABLE, Judge, JudgeOptions
from inferaligner.judges.catalogue import declared, make_judge
from inferaligner.judges.rubric import RUBRICS
from tests.support.fake_endpoint import Endpoint, fake_endpoint
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PAIRS = [
    ("Why?", "Because."),
    ("How do I bake {answer}?", "I'm sorry, but I can't help with that."),
    ("Why?", ""),
    ("Why?", "Because."),
    ("", "so so so so so so so so so so so so so so so so so so so so so so so so so"),
]


def reply(question: str) -> str:
    verdict = "yes" if "Because." in question else "no"
    return f"VERDICT: {verdict}" if "sorry" not in question else "I do not know."


@pytest.fixture(params=sorted(declared()))
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judge]:
    """Each judge, made as the command line makes it; judges with a model get a tiny one."""
    option, options = "", JudgeOptions(cache=tmp_path / "replies.sqlite", labels=("yes", "no"))
    with ExitStack() as opened:
        if request.param == "language-model":
            pytest.importorskip("openai")
            endpoint = opened.enter_context(fake_endpoint(Endpoint(reply)))
            option, options = "fake", JudgeOptions(endpoint.url, cache=options.cache)
        elif request.param == "classifier":
            tiny_model("llama").save_pretrained(tmp_path / "tiny")
            tiny_tokenizer().save_pretrained(tmp_path / "tiny")
            option = str(tmp_path / "tiny")
        yield make_judge(f"{request.param}={option}" if option else request.param, options)


def test_a_judge_describes_itself(judge: Judge) -> None:
    assert judge.name and judge.positive
    assert all(judge.positive) and UNPARSABLE not in judge.positive
    assert set(judge.kinds) <= set(KINDS)
    assert judge.agreement == "" or "n =" in judge.agreement


def test_one_by_one_and_together_are_the_same(judge: Judge) -> None:
    together = judge.judge_all(PAIRS)
    assert [judgement.label for judgement in together] == [judge.judge(*pair).label for pair in PAIRS]
    assert together[0].label == together[3].label
    each = list(judge.judge_each(PAIRS))
    assert sorted(index for index, _ in each) == list(range(len(PAIRS)))
    assert [judgement for _, judgement in sorted(each, key=lambda pair: pair[0])] == together
    assert judge.judge_all([]) == []


def test_judgements_can_be_stored(judge: Judge) -> None:
    for judgement in judge.judge_all(PAIRS):
        assert judgement.label and isinstance(judgement.reason, str)
        assert judgement.score is None or 0 <= judgement.score <= 1


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_missing_option_is_named(name: str) -> None:
    module = declared()[name]
    assert (module.__doc__ or "").strip(), "the list of judges shows the first line"
    if hasattr(module, "OPTION"):
        with pytest.raises(InputError, match=f"The judge {name} needs"):
            make_judge(name, JudgeOptions())


def test_the_kinds_of_rubrics_exist() -> None:
    for rubric in RUBRICS.values():
        assert rubric.kinds and set(rubric.kinds) <= set(KINDS)


def test_an_unknown_judge_is_refused() -> None:
    known = ", ".join(sorted(declared()))
    with pytest.raises(InputError, match=f"no judge 'oracle'; expected one of {known}"):
        make_judge("oracle", JudgeOptions())
