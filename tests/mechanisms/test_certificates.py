"""Every outcome is confirmed, as it would be read from a file; a changed one is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Outcome, RefusedInputError, Status
from broker_node.mechanisms.registry import MECHANISMS
from broker_node.mechanisms.weight_market import equilibrium
from tests.mechanisms.drawn import DRAWN
from tests.mechanisms.test_independence import MARKETS

Path = tuple[str | int, ...]
UNORDERED = {"winners", "buyers", "sellers"}
"""Lists of who trades: another order says the same."""
RANGES = {"price_ranges", "surplus_ranges"}
"""A wider one is true as well."""
EXAMPLES = {"max-min": 15, "eeg": 25, "eg": 25, "social-welfare": 25}
SAME = 1e-6
"""What a figure is changed by is far more than the tolerance of any certificate."""


def as_read(answer: Outcome) -> dict[str, Any]:
    """Return an outcome as a file would hold it."""
    told: dict[str, Any] = json.loads(json.dumps(answer.to_json(), allow_nan=False))
    return told


def of_json(told: dict[str, Any]) -> Outcome:
    values = {key: value for key, value in told.items() if key != "status"}
    return Outcome(status=Status(told["status"]), values=values)


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_whatever_is_cleared_is_confirmed(name: str) -> None:
    mechanism = MECHANISMS[name]

    @settings(
        max_examples=EXAMPLES.get(name, 60),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(market=DRAWN[name])
    def confirmed(market: dict[str, Any]) -> None:
        assert mechanism.validate(market) == []
        outcome = mechanism.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
        certificate = mechanism.verify(market, of_json(as_read(outcome)))
        assert certificate.valid, (market, outcome, dict(certificate.violations))

    confirmed()


@pytest.mark.parametrize(
    ("name", "market"),
    [
        # a budget of the least float there is, and shares of one that are less
        ("procurement", {"cost": [0], "value": [1], "budget": 5e-324}),
        ("procurement", {"cost": [0, 0], "value": [1, 1], "budget": 5e-324}),
        ("procurement", {"cost": [0, 0], "value": [1e12, 1e42], "budget": 3e-294}),
        # the share of what is worth 1e-324 of the rest is no float, and its cost per value is 1
        (
            "procurement",
            {
                "cost": [0, 3.8510374251539974e-244],
                "value": [1.5589173048439053e80, 3.8510374251539974e-244],
                "budget": 1.5589174607356357e80,
            },
        ),
        # a capacity of minus nothing is none
        ("eg", {"demand": [[[1], [1]]], "budget": [1], "capacity": [[1], [-0.0]]}),
        # what a seller needs is nothing beside what it gets
        (
            "triplewin",
            {
                "shapley": [[0.1]],
                "delta": [0],
                "kappa_d": [5e-324],
                "kappa_m": [[1]],
                "omega": [[1]],
            },
        ),
        # Shapley values that cancel: their sum is lost in their rounding
        ("shapley", {"parties": 3, "performance_by_bitmask": [0, 0, 0, 0, 0, 0, 1, 2.4e-88]}),
    ],
)
def test_extremes_are_confirmed(name: str, market: dict[str, Any]) -> None:
    outcome = MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    certificate = MECHANISMS[name].verify(market, of_json(as_read(outcome)))
    assert certificate.valid, (outcome, dict(certificate.violations))


# ── changed outcomes ──


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every entry of an outcome, and its place."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        keyed = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inside in keyed:
            yield from places(inside, (*path, key))


def others(value: Any) -> list[Any]:
    """Return what an entry could be changed to, none of it within a tolerance of what it is."""
    match value:
        case bool():
            return [not value, None, "no"]
        case None:
            return [1.5, True, [], "none"]
        case int() | float():
            moved = [value + 1, value * 1.01 + 1e-3, -value - 1, 0]
            return [*(one for one in moved if abs(one - value) > SAME), None, str(value), [value]]
        case str():
            return ["other", "", None]
        case list():
            return [value[:-1], [*value, *value[-1:]], None, *([] if value else [[1]])]
    return [None]


def changed(told: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    forged = copy.deepcopy(told)
    inside: Any = forged
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return forged


def says_the_same(path: Path, before: Any, after: Any) -> bool:
    """Return whether a change is one that a certificate need not see."""
    if path[0] in RANGES:
        # only a range that does not hold the figure is wrong; that is tested by itself
        return len(path) > 2
    if path[0] == "levels" and len(path) > 2:
        # of a proof there is more than one: a repeated buyer, another weight of a settled one
        return path[2] == "weights" or (path[2] == "buyers" and isinstance(before, list))
    return bool(before == after) and type(before) is type(after)


def believed(name: str, market: dict[str, Any], forged: dict[str, Any]) -> bool:
    try:
        return MECHANISMS[name].verify(market, of_json(forged)).valid
    except RefusedInputError:
        return False


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_an_outcome_with_any_one_figure_changed_is_refused(name: str) -> None:
    for market in MARKETS[name]:
        told = as_read(MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0))
        assert believed(name, market, told)
        count = 0
        for path, before in places(told):
            if path == ("status",):
                continue
            for after in others(before):
                if not says_the_same(path, before, after):
                    forged = changed(told, path, after)
                    assert not believed(name, market, forged), (path, before, after)
                    count += 1
        assert count > 5


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_an_outcome_under_another_status_is_refused(name: str) -> None:
    for market in MARKETS[name]:
        told = as_read(MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0))
        for status in Status:
            if status.value != told["status"]:
                assert not believed(name, market, {**told, "status": status.value}), status


@pytest.mark.parametrize("name", ["eeg", "eg"])
@pytest.mark.parametrize("key", sorted(RANGES))
def test_a_range_that_is_impossible_or_misses_its_figure_is_refused(name: str, key: str) -> None:
    (market,) = MARKETS[name]
    told = as_read(MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0))
    for path, before in places(told[key]):
        if not isinstance(before, float):
            continue
        beyond = [1e3, -1.0] if path[-1] == 1 else [-1e-3, 1e3]
        for after in beyond:
            assert not believed(name, market, changed(told, (key, *path), after)), (path, after)


@given(data=st.data(), name=st.sampled_from(sorted(MECHANISMS)))
def test_a_figure_that_is_left_out_is_named(data: st.DataObject, name: str) -> None:
    market = data.draw(st.sampled_from(MARKETS[name]))
    outcome = MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    key = data.draw(st.sampled_from(sorted(set(outcome.values))))
    rest = {other: value for other, value in outcome.values.items() if other != key}
    with pytest.raises(RefusedInputError) as refused:
        MECHANISMS[name].verify(market, Outcome(status=outcome.status, values=rest))
    assert refused.value.field == key


@pytest.mark.parametrize("name", ["eeg", "eg"])
@pytest.mark.parametrize("key", sorted(RANGES))
def test_ranges_may_be_null_only_where_the_market_asks_for_none(name: str, key: str) -> None:
    (market,) = MARKETS[name]
    told = as_read(MECHANISMS[name].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0))
    silent = {**told, key: None}
    assert not believed(name, market, silent)
    assert not believed(name, {**market, "price_ranges": True}, silent)
    assert believed(name, {**market, "price_ranges": False}, silent)


def test_ranges_that_no_programme_tells_are_the_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    (market,) = MARKETS["eeg"]
    monkeypatch.setattr(equilibrium, "optimal_ranges", lambda *_: None)
    told = as_read(MECHANISMS["eeg"].clear(market, tolerance=DEFAULT_TOLERANCE, seed=0))
    assert told["price_ranges"][1][0] == pytest.approx([0.0, 1.5])  # a budget of 3 for 2 of it
    assert told["surplus_ranges"][0] == pytest.approx([0.0, 1.0])
    assert believed("eeg", market, told)
