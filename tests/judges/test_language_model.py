"""A language model as the judge: concurrency, retries, rate limit and cache."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from inferaligner.errors import InputError
from inferaligner.judges.reply_cache import ReplyCache
from inferaligner.judges.rubric import RUBRICS, read_attack, read_graded, read_over_refusal
from tests.support.fake_endpoint import Endpoint, fake_endpoint

PAIRS = [(f"request {number}", f"answer {number}") for number in range(12)]


def verdict(question: str) -> str:
    return f"Because. VERDICT: {'yes' if 'answer 3' in question else 'no'}"


def judge_at(url: str, cache: ReplyCache, **options: object):  # type: ignore[no-untyped-def]
    pytest.importorskip("openai")
    from inferaligner.judges.language_model import Endpoint as JudgeEndpoint
    from inferaligner.judges.language_model import LanguageModelJudge

    return LanguageModelJudge(JudgeEndpoint("fake", url, **options), RUBRICS["attack-success"], cache)  # type: ignore[arg-type]


def test_every_pair_gets_its_label_concurrently(tmp_path: Path) -> None:
    with fake_endpoint(Endpoint(verdict, delay=0.1)) as endpoint:
        judge = judge_at(endpoint.url, ReplyCache(tmp_path / "c.sqlite"), concurrency=4)
        labels = {index: judgement.label for index, judgement in judge.judge_each(PAIRS)}
    assert labels == {n: "attack success" if n == 3 else "attack failure" for n in range(12)}
    assert 1 < endpoint.most_together <= 4


def test_failures_are_repeated_and_replies_are_kept(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "c.sqlite")
    with fake_endpoint(Endpoint(verdict, fail=lambda n: (429, 500, 503, 200)[n % 4])) as endpoint:
        assert len(list(judge_at(endpoint.url, cache, concurrency=1).judge_each(PAIRS))) == 12
        assert endpoint.calls == 48
        again = judge_at(endpoint.url, cache).judge_all(PAIRS)
        assert endpoint.calls == 48 and again[3].label == "attack success"


def test_a_judge_that_gives_up_reports_it_and_continues_later(tmp_path: Path) -> None:
    file = tmp_path / "c.sqlite"
    with fake_endpoint(Endpoint(verdict, fail=lambda n: 200 if n < 5 else 500)) as endpoint:
        judge = judge_at(endpoint.url, ReplyCache(file), concurrency=1, retries=1)
        with pytest.raises(InputError, match="run the same command again"):
            list(judge.judge_each(PAIRS))
        endpoint.fail = lambda n: 200
        asked = len(endpoint.questions)
        assert 0 < asked < 12
        assert len(list(judge_at(endpoint.url, ReplyCache(file)).judge_each(PAIRS))) == 12
        assert len(endpoint.questions) == 12


def test_a_refused_call_is_not_repeated(tmp_path: Path) -> None:
    with fake_endpoint(Endpoint(verdict, fail=lambda n: 401)) as endpoint:
        with pytest.raises(InputError, match="401"):
            list(judge_at(endpoint.url, ReplyCache(tmp_path / "c.sqlite"), concurrency=1).judge_each(PAIRS))
        assert endpoint.calls <= 2


def test_the_rate_is_limited(tmp_path: Path) -> None:
    with fake_endpoint(Endpoint(verdict)) as endpoint:
        begun = time.monotonic()
        judge = judge_at(endpoint.url, ReplyCache(tmp_path / "c.sqlite"), per_minute=600)
        list(judge.judge_each(PAIRS))
        assert time.monotonic() - begun >= 1.1  # eleven gaps of a tenth


def test_replies_are_read() -> None:
    assert read_attack("VERDICT: no ... no: VERDICT: **yes**").label == "attack success"
    assert read_attack("I will not say").label == "unparsable"
    graded = read_graded("REFUSED: 0\nCONVINCING: 5\nSPECIFIC: 3")
    assert (graded.score, graded.label) == (0.75, "harmful")
    assert read_graded("REFUSED: 1\nCONVINCING: 5\nSPECIFIC: 5").score == 0.0
    assert read_graded("CONVINCING: 5").label == "unparsable"
    assert read_over_refusal("LABEL: partial").label == "partial refusal"


@pytest.mark.parametrize("name", sorted(RUBRICS))
def test_a_question_holds_both_texts_as_they_are(name: str) -> None:
    asked = RUBRICS[name].ask("say {answer} {x}", "no {prompt}")
    assert "say {answer} {x}" in asked and "no {prompt}" in asked
    assert asked.count("say {answer}") == 1
