from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.monitor.monitor_choice import WINDOWS, LabelledAnswers, choose_monitor, highest
from inferaligner.fit.monitor.monitor_fit import monitor_layers, settle_monitor, split_for_monitor
from inferaligner.fit.samples import Sample, Samples
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.statistics.intervals import upper_bound

WIDTH, TOKENS, TURN = 12, 40, 20


def planted(strength: float = 2.0, count: int = 60, seed: int = 0) -> LabelledAnswers:
    """Answers of noise; in harmful ones a direction rises at token `TURN`, at layer 5 and not at layer 3."""
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=draw)
    direction = direction / direction.norm()
    samples, streams = [], []
    for number in range(2 * count):
        harmful = number % 2 == 1
        stream = torch.randn(TOKENS, 2, WIDTH, generator=draw)
        if harmful:
            stream[TURN:, 1] += strength * direction
        samples.append(Sample(f"prompt {number}", harmful, f"content {number}", "everyday"))
        streams.append(stream)
    return LabelledAnswers(tuple(samples), tuple(streams), (3, 5))


def test_it_finds_the_layer_and_the_direction() -> None:
    answers = planted()
    monitor, trials = choose_monitor(answers, 0.05)
    assert monitor.layer == 5
    assert trials[0].true_open > 0.8 > 0.3 > max(t.true_open for t in trials if t.layer == 3)
    assert [trial.true_open for trial in trials] == sorted((t.true_open for t in trials), reverse=True)
    opened = []
    tops = highest([monitor.token_scores(stream[:, 1]) for stream in answers.streams], monitor.window)
    bar = monitor.with_bias(-float(np.sort(tops[~answers.harmful])[-2]))
    for sample, stream in zip(answers.samples, answers.streams, strict=True):
        over = bar.running_scores(bar.token_scores(stream[:, 1])[None])[0] + bar.bias > 0
        if sample.harmful and bool(over.any()):
            opened.append(int(over.int().argmax()))
    assert len(opened) > 40
    assert TURN <= np.median(opened) <= TURN + monitor.window


def test_the_average_token_of_a_harmless_answer_scores_zero() -> None:
    answers = planted()
    monitor, _ = choose_monitor(answers, 0.05)
    harmless = [s for s, a in zip(answers.streams, answers.samples, strict=True) if not a.harmful]
    scores = torch.cat([monitor.token_scores(stream[:, 1]) for stream in harmless])
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-3)


def test_highest_is_numpys_and_knows_empty_answers() -> None:
    scores: list[Tensor] = [torch.tensor([1.0, -2.0, 4.0, 3.0]), torch.empty(0), torch.tensor([-1.0])]
    np.testing.assert_allclose(highest(scores, 2), [3.5, 0.0, -0.5])
    assert max(WINDOWS) > 3  # a window longer than an answer counts what is missing as zero
    np.testing.assert_allclose(highest(scores[:1], 8), [6 / 8])


def test_answers_without_text_are_too_few() -> None:
    answers = planted(count=10)
    empty = tuple(s[:0] if a.harmful else s for s, a in zip(answers.streams, answers.samples, strict=True))
    with pytest.raises(CalibrationError, match="answered only 0 harmful prompts"):
        choose_monitor(LabelledAnswers(answers.samples, empty, answers.layers), 0.05)


def test_the_promise_holds_on_known_truth() -> None:
    """Of 200 calibrations on 200 draws, at most a tenth leave more than 3 % of the distribution above."""
    monitor = AnswerMonitor("test", 0, 4, torch.ones(2), 0.0, 0.0)
    draw = np.random.default_rng(1)
    broken = 0
    for _ in range(200):
        moved, point = settle_monitor(monitor, {"answers": list(draw.exponential(size=200))}, 0.03, 0.9)
        assert point.promised
        broken += float(np.exp(moved.bias)) > 0.03  # P(X > -bias) of the exponential distribution
    assert broken <= 32  # 99 % of Binomial(200, 0.1)


def test_the_strictest_traffic_sets_the_bias() -> None:
    monitor = AnswerMonitor("test", 0, 4, torch.ones(2), 0.0, 0.7)
    low, high = [float(n) for n in range(200)], [float(n) for n in range(1000, 1050)]
    moved, point = settle_monitor(monitor, {"low": low, "high": high}, 0.02, 0.95)
    assert -moved.bias == pytest.approx(1049.0, rel=1e-3)
    assert -moved.bias > 1049.0, "the answer that is the threshold stays closed"
    assert point.traffic["low"].promised and not point.traffic["high"].promised
    assert point.traffic["high"].bound == pytest.approx(upper_bound(0, 50, 0.95))
    assert point.traffic["high"].open == 0


def test_the_threshold_rests_on_other_contents_than_the_weights() -> None:
    samples = [
        Sample(f"{kind} {n}", kind == "harmful", f"{kind}/{n // 3}", group)
        for kind, group, count in (("harmful", "pairs", 30), ("day", "everyday", 90), ("math", "math", 60))
        for n in range(count)
    ]
    fitting, calibrating = split_for_monitor(Samples(tuple(samples), (), {}))
    assert len(calibrating) > 30 and all(sample.ordinary for sample in calibrating)
    assert sum(sample.harmful for sample in fitting) == 30
    assert not {s.content for s in fitting} & {s.content for s in calibrating}
    with pytest.raises(CalibrationError, match="too few to fit a monitor"):
        split_for_monitor(Samples((samples[0],), (), {}))


def test_layers_end_at_the_first_steered_one() -> None:
    assert monitor_layers(16, 30) == (10, 13, 16)
    assert monitor_layers(1, 4) == (0, 1)
    assert monitor_layers(0, 30) == (0,)
