"""The record of the operating point, and the words for it."""

from __future__ import annotations

from typing import Any

import pytest

from inferaligner.errors import ArtifactError
from inferaligner.statistics.stored_sample import StoredSample
from inferaligner.storage.model_card import operating_point
from inferaligner.storage.operating_point_record import OperatingPoint, TrafficRecord, read_operating_point


def record(**changes: Any) -> TrafficRecord:
    quantiles = StoredSample.of([-3.0, -2.0, -1.0]).quantiles
    fields = {"n": 300, "open": 0, "bound": 0.01, "promised": True, "origin": "held-out"}
    return TrafficRecord(**{**fields, "quantiles": quantiles, **changes})


def point(rule: str = "traffic", **traffic: TrafficRecord) -> dict[str, Any]:
    made = OperatingPoint(max_false_open=0.01, confidence=0.95, rule=rule, traffic=traffic)
    return {"operating_point": made.model_dump(mode="json")}


def test_it_comes_back_as_it_was() -> None:
    raw = point(mine=record())
    found = read_operating_point(raw)
    assert found is not None and found.model_dump(mode="json") == raw["operating_point"]


def test_old_artifacts_have_none() -> None:
    assert read_operating_point({"max_false_open": 0.02}) is None


@pytest.mark.parametrize(
    "raw",
    [
        {},
        [],
        {**point()["operating_point"], "max_false_open": 2.0},
        point(mine=record(quantiles=(1.0, 2.0)))["operating_point"],
        point(mine=record(n=7, quantiles=tuple(range(110, 0, -1))))["operating_point"],
    ],
)
def test_one_that_makes_no_sense(raw: Any) -> None:
    with pytest.raises(ArtifactError, match="calibrate DIR --benign"):
        read_operating_point({"operating_point": raw})


def test_fields_of_later_versions_are_passed_over() -> None:
    raw = point(mine=record())["operating_point"]
    assert read_operating_point({"operating_point": {**raw, "colour": "red"}}) is not None


def test_a_promise_needs_traffic_and_all_of_it() -> None:
    def promised(**traffic: TrafficRecord) -> bool:
        found = read_operating_point(point(**traffic))
        assert found is not None
        return found.promised

    assert promised(mine=record())
    assert not promised()
    assert not promised(mine=record(), small=record(promised=False))
    assert not promised(contrast=record(origin="out-of-fold"))


def test_promises_hold_at_once_with_less_confidence() -> None:
    found = read_operating_point(point(a=record(), b=record(), c=record(promised=False)))
    assert found is not None and found.joint_confidence == pytest.approx(0.90)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({}, "not calibrated"),
        ({"max_false_open": 0.02}, "at most 2.0 % of benign calibration prompts open it"),
        ({"max_false_open": 0.0004}, "at most 0.040 % of"),
        ({"max_false_open": 0.02, "paper": True}, "the paper's"),
        (point("paper", mine=record()), "the paper's"),
        (point("quantile", c=record(origin="out-of-fold", promised=False)), "at most 1.0 % of benign cali"),
        (point("promise", c=record(origin="out-of-fold")), "of such traffic, with 95.0 % confidence"),
        (point(mine=record()), "at most 1.0 % of mine opens it, with 95.0 % confidence"),
        (point(a=record(), b=record()), "1.0 % of a, b opens it, each with 95.0 %"),
        (
            point(a=record(), b=record(promised=False, n=12, bound=0.22)),
            "no promise of 1.0 % for b (12 prompts: at most 22.0 %)",
        ),
        # Moved after a fit with the paper's bias: the threshold is the traffic's now.
        ({**point(mine=record()), "paper": True, "max_false_open": 0.01}, "at most 1.0 % of mine"),
    ],
)
def test_words(calibration: dict[str, Any], words: str) -> None:
    assert words in operating_point(calibration)
