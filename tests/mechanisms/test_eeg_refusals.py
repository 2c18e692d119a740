"""What the weight market does not clear, it refuses by field, place and value."""

from __future__ import annotations

import re
from typing import Any

import pytest

from broker_node.mechanisms.base import Json, RefusedInputError
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from tests.mechanisms.weight_markets import with_values

EEG = ExtendedEisenbergGale()

GOOD: dict[str, Json] = {
    "demand": [[[1.0, 2.0]], [[2.0, 1.0]]],
    "budget": [1.0, 1.0],
    "capacity": [[1.0, 1.0]],
    "max_utility": [None, 1.0],
}
nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "field", "named"),
    [
        ({"budget": [1.0, -2.5]}, "budget[1]", "over 0, got -2.5"),
        ({"budget": [0.0, 1.0]}, "budget[0]", "over 0, got 0"),
        ({"budget": [nan, 1.0]}, "budget[0]", "nan"),
        ({"budget": [inf, 1.0]}, "budget[0]", "inf"),
        ({"budget": [1.0, True]}, "budget[1]", "True"),
        ({"budget": []}, "budget", "empty"),
        ({"budget": 3}, "budget", "list"),
        ({"budget": [1.0]}, "demand", "1 items, got 2"),
        ({"capacity": []}, "capacity", "empty"),
        ({"capacity": [[]]}, "capacity[0]", "empty"),
        ({"capacity": [[1.0, -1.0]]}, "capacity[0][1]", "at least 0, got -1"),
        ({"capacity": [[1.0, nan]]}, "capacity[0][1]", "nan"),
        ({"capacity": [[1.0, 1.0], [1.0]]}, "capacity[1]", "2 items, got 1"),
        ({"capacity": [[0.0, 1.0]]}, "demand[0]", "met by no seller"),
        ({"demand": [[[1.0, 2.0]]]}, "demand", "2 items, got 1"),
        ({"demand": [[[1.0, 2.0]], [[2.0]]]}, "demand[1][0]", "2 items, got 1"),
        ({"demand": [[[1.0, 2.0]], [[2.0, 1.0], []]]}, "demand[1]", "1 items, got 2"),
        ({"demand": [[[1.0, 2.0]], [[0.0, 0.0]]]}, "demand[1]", "0 of every seller"),
        ({"demand": [[[1.0, 2.0]], [None]]}, "demand[1]", "0 of every seller"),
        ({"demand": [[[1.0, 2.0]], [[1.0, nan]]]}, "demand[1][0][1]", "nan"),
        ({"demand": [[[1.0, 2.0]], [[1.0, -inf]]]}, "demand[1][0][1]", "-inf"),
        ({"demand": [[[1.0, 2.0]], [[1.0, -3.0]]]}, "demand[1][0][1]", "got -3"),
        ({"demand": [[[1.0, 2.0]], [[1.0, "2"]]]}, "demand[1][0][1]", "'2'"),
        ({"demand": [[[1.0, 2.0]], [[1.0, False]]]}, "demand[1][0][1]", "False"),
        ({"demand": [[[1.0, 2.0]], [[1.0, 10**400]]]}, "demand[1][0][1]", "must be finite"),
        ({"demand": [[[1.0, 2.0]], [[1.0, 1e-300]]]}, "demand[1][0][1]", "1e-300"),
        ({"demand": "all"}, "demand", "list"),
        ({"max_utility": [0.0, None]}, "max_utility[0]", "over 0, got 0"),
        ({"max_utility": [-1.0, None]}, "max_utility[0]", "got -1"),
        ({"max_utility": [nan, None]}, "max_utility[0]", "nan"),
        ({"max_utility": [1.0]}, "max_utility", "2 items, got 1"),
        ({"price_ranges": 1}, "price_ranges", "true, false or null"),
        ({"prices": [[1.0]]}, "prices", "not a key"),
    ],
)
def test_bad_input_is_refused_by_field_place_and_value(
    change: dict[str, Json], field: str, named: str
) -> None:
    market = {**GOOD, **change}
    issue = EEG.validate(market)[0]
    assert issue.field == field
    assert named in issue.reason
    with pytest.raises(RefusedInputError, match=re.escape(field)):
        EEG.clear(market, tolerance=1e-9, seed=0)


def test_an_input_that_lacks_a_key_is_refused_and_limits_may_be_left_out() -> None:
    for key in ("demand", "budget", "capacity"):
        missing = {k: v for k, v in GOOD.items() if k != key}
        assert EEG.validate(missing)[0].field == key
    assert EEG.validate({k: v for k, v in GOOD.items() if k != "max_utility"}) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"x": [[1.0]]}, "x"),
        ({"x": "all"}, "x"),
        ({"x": [[nan], [1.0]]}, "x[0][0]"),
        ({"prices": None}, "prices"),
        ({"gap": [0.0]}, "gap"),
        ({"utility": [1.0, "2"]}, "utility[1]"),
    ],
)
def test_a_malformed_outcome_is_refused_by_the_figure(change: dict[str, Any], field: str) -> None:
    outcome = EEG.clear(GOOD, tolerance=1e-9, seed=0)
    with pytest.raises(RefusedInputError) as refused:
        EEG.verify(GOOD, with_values(outcome, **change))
    assert refused.value.field == field


def test_a_range_that_does_not_hold_its_price_is_not_confirmed() -> None:
    outcome = EEG.clear(GOOD, tolerance=1e-9, seed=0)
    assert EEG.verify(GOOD, outcome).valid
    away = with_values(outcome, price_ranges=[[[7.0, 8.0], [7.0, None]]])
    assert EEG.verify(GOOD, away).violations["ranges"] == 1
    with pytest.raises(RefusedInputError, match="surplus_ranges"):
        EEG.verify(GOOD, with_values(outcome, surplus_ranges=[[0.0, 1.0]]))
