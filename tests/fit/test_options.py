"""The choices of a fit are declared once: every other list of them is compared with the declaration."""

from __future__ import annotations

import inspect
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_type_hints

import pytest

from inferaligner.aligner import Aligner
from inferaligner.cli.fit_flags import FLAGS
from inferaligner.errors import InputError
from inferaligner.fit.options import (
    CONFIDENCE,
    OWN_LIMIT,
    SHIPPED_LIMIT,
    FitChoices,
    FitOptions,
    check_given,
)


def test_the_keywords_are_the_fields_with_their_types_in_their_order() -> None:
    assert get_type_hints(FitChoices) == get_type_hints(FitOptions)
    assert list(get_type_hints(FitChoices)) == [each.name for each in fields(FitOptions)]
    assert FitChoices.__required_keys__ == frozenset()


def test_aligner_fit_takes_them_and_restates_none() -> None:
    parameters = inspect.signature(Aligner.fit).parameters
    assert parameters["choices"].annotation == "Unpack[FitChoices]"
    assert not set(parameters) & {each.name for each in fields(FitOptions)}
    for each in fields(FitOptions):
        first = each.metadata["help"].split(" ")[0]
        assert f"{each.name}: {first}" in (Aligner.fit.__doc__ or "")


def test_there_is_a_flag_for_each() -> None:
    assert list(FLAGS) == [each.name for each in fields(FitOptions)]


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        FitOptions().strength = 1.0  # type: ignore[misc]
    assert FitOptions(steer_layers=[3, 1, 3]).steer_layers == (1, 3)
    assert FitOptions().changed() == ()
    assert FitOptions(strength=1.0, match_layers="depth").changed() == ("strength", "match_layers")


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"max_false_open": 0.0}, "`max_false_open` is 0.0"),
        ({"max_false_open": math.nan}, "`max_false_open` is nan"),
        ({"confidence": 1.0}, "`confidence` is 1.0"),
        ({"strength": math.inf}, "`strength` is inf"),
        ({"monitor_tokens": 0}, "`monitor_tokens` is 0"),
        ({"steer_layers": ()}, "`steer_layers` is empty"),
    ],
)
def test_values_out_of_range(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        FitOptions(**choices)


def test_limits() -> None:
    assert FitOptions().limits(own_traffic=False) == (OWN_LIMIT, SHIPPED_LIMIT)
    assert FitOptions(max_false_open=0.01).limits(own_traffic=True) == (0.01, SHIPPED_LIMIT)
    assert FitOptions(max_false_open=0.01).limits(own_traffic=False) == (0.01, 0.01)
    assert FitOptions(max_false_open=0.3).limits(own_traffic=True) == (0.3, 0.3)
    assert FitOptions().confidence == CONFIDENCE


@pytest.mark.parametrize("name", ["steer_layers", "strength", "carry", "match_layers", "monitor"])
def test_a_choice_without_effect_is_refused(name: str) -> None:
    check_given([name], aligned=True)
    with pytest.raises(InputError, match=f"`{name}` was given without `aligned`"):
        check_given([name], aligned=False)


def test_tokens_of_a_monitor_that_is_not_fitted() -> None:
    check_given(["monitor", "monitor_tokens"], aligned=True)
    with pytest.raises(InputError, match="`monitor_tokens` was given without `monitor`"):
        check_given(["monitor_tokens"], aligned=True)
