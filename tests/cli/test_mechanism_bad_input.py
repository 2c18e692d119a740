"""`pm-node mechanism` on markets that are wrong: a line with field and value, or an outcome."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.registry import MECHANISMS
from tests.cli.conftest import Command
from tests.mechanisms.test_independence import MARKETS

Place = tuple[str | int, ...]
NAMES = sorted(MECHANISMS)
HOSTILE = (
    *("NaN", "Infinity", "-Infinity", "1e999", "1e308", "-1e308", "1e151", "1e150", "-1e150"),
    *("5e-324", "1e-300", "-0.0", "0", "-1", "1", "2", "64", "1000000", "0.5", "1e16"),
    *("9" * 400, "-" + "9" * 400, "null", "true", "false", '""', '"1"', '"a"', '"\\ud800"'),
    *("[]", "{}", "[[]]", "[null]", "[0]", "[1, 2]", "[1e150, 1]", "[[[[1]]]]", '["a", "a"]'),
    *("[" * 9 + "]" * 9, "[" * 60 + "]" * 60, '{"kind": "uniform"}'),
)
"""As JSON is written, of which some is none."""


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inside, (*place, key))


def damaged(market: dict[str, Any], place: Place, raw: str | None) -> str:
    """Return the market's text with something else in a place, or without it."""
    market = copy.deepcopy(market)
    inside: Any = market
    for key in place[:-1]:
        inside = inside[key]
    if raw is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = "HERE"
    return json.dumps(market).replace('"HERE"', raw or "")


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_whatever_stands_in_a_market_it_is_answered_or_refused_in_one_line(
    data: st.DataObject, name: str, pm_node: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    market = data.draw(st.sampled_from(MARKETS[name]))
    place = data.draw(st.sampled_from(list(places(market))))
    text = damaged(market, place, data.draw(st.none() | st.sampled_from(HOSTILE)))
    ran = pm_node("mechanism", "clear", name, "-", "--json", stdin=text)
    if ran.code == 2:
        ran.refused(2, ": ")
        return
    assert ran.code == 0, (text, ran.err)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "market").write_text(text)
    (folder / "outcome").write_text(ran.out)
    verified = pm_node("mechanism", "verify", name, folder / "market", folder / "outcome", "--json")
    assert verified.code == 0, (text, ran.out, verified)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_whatever_stands_in_an_outcome_it_is_judged_or_refused_in_one_line(
    data: st.DataObject, name: str, pm_node: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    market = data.draw(st.sampled_from(MARKETS[name]))
    told = MECHANISMS[name].clear(market, tolerance=1e-9, seed=0).to_json()
    place = data.draw(st.sampled_from(list(places(told))))
    folder: Path = tmp_path_factory.mktemp("fuzz")
    (folder / "market").write_text(json.dumps(market))
    raw = data.draw(st.none() | st.sampled_from(HOSTILE))
    (folder / "outcome").write_text(damaged(told, place, raw))
    ran = pm_node("mechanism", "verify", name, folder / "market", folder / "outcome", "--json")
    if ran.code == 2:
        ran.refused(2, ": ")
    else:
        assert ran.json["valid"] is (ran.code == 0)


def test_a_market_without_anything_is_refused_under_a_field(pm_node: Command) -> None:
    for name in NAMES:
        for text in ("{}", "[]", "null", "7"):
            pm_node("mechanism", "clear", name, "-", stdin=text).refused(2, ": ")


def put(name: str, **changes: Any) -> str:
    return json.dumps({**MARKETS[name][0], **changes})


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("nash", put("nash", budget=[-1, 2]), ["budget[0]", "-1"]),
        ("nash", put("nash", tau=2), ["tau", "2"]),
        ("nash", put("nash", v_a_own=True), ["v_a_own", "True"]),
        ("nash", put("nash", v_a_own="3"), ["v_a_own", "'3'"]),
        ("bayesian-ask", put("bayesian-ask", support=[2, 1]), ["support", "2", "1"]),
        ("bayesian-ask", put("bayesian-ask", prior={"kind": "beta"}), ["prior.kind", "beta"]),
        ("gain-bounds", put("gain-bounds", alpha=1.5), ["alpha", "1.5"]),
        ("procurement", put("procurement", budget=-5), ["budget", "-5"]),
        ("procurement", put("procurement", cost=[1, 2]), ["value", "2 items", "3"]),
        ("mcafee", put("mcafee", asks=[]), ["asks", "0"]),
        ("kplus1", put("kplus1", copies=1.5), ["copies", "1.5"]),
        ("kplus1", put("kplus1", copies=True), ["copies", "True"]),
        ("vcg", put("vcg", values=[[1, 2], [3]]), ["values[1]", "2 items", "1"]),
        ("fusion", put("fusion", lam=[1.5]), ["lam[0]", "1.5"]),
        ("fusion", put("fusion", acquired=[[3]]), ["acquired[0]", "2 items", "1"]),
        ("shapley", put("shapley", parties=64), ["parties", "64"]),
        ("shapley", put("shapley", parties=1_000_000), ["parties", "1000000"]),
        ("shapley", put("shapley", parties=10**400), ["parties", "2**1329"]),
        ("shapley", put("shapley", parties=[str(n) for n in range(10**5)]), ["parties", "100000"]),
        ("triplewin", put("triplewin", shapley=[[-0.1], [0.2]]), ["shapley[0][0]", "-0.1"]),
        ("triplewin", put("triplewin", kappa_d=[0, 1]), ["kappa_d[0]", "0"]),
        ("triplewin", put("triplewin", reserve=[[90]]), ["reserve[0]", "2 items", "1"]),
        ("triplewin", put("triplewin", kappa_m=[[1e150, 8]]), ["kappa_m[0]", "too large"]),
        (
            "shapley",
            put("shapley", ceiling=None, performance_by_bitmask=[0, 0, 1e150, 1e150]),
            ["performance_by_bitmask", "too large"],
        ),
        *(
            (name, put(name, **change), fragments)
            for name in ("eeg", "eg", "proportional", "social-welfare", "max-min")
            for change, fragments in (
                ({"budget": [-1, 2]}, ["budget[0]", "-1"]),
                ({"budget": [0, 2]}, ["budget[0]", "0"]),
                ({"budget": []}, ["budget", "empty"]),
                ({"demand": [[[0, 0], [0, 0]], [[2, 1], [1, 3]]]}, ["demand[0]", "0"]),
                ({"demand": [[[1, 2], [2]], [[2, 1], [1, 3]]]}, ["demand[0][1]", "2 items"]),
                ({"max_utility": [-1, None]}, ["max_utility[0]", "-1"]),
                ({"capacity": [[1, -1], [2, 1]]}, ["capacity[0][1]", "-1"]),
            )
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_value(
    pm_node: Command, name: str, text: str, fragments: list[str]
) -> None:
    pm_node("mechanism", "clear", name, "-", stdin=text).refused(2, *fragments)


def test_a_loop_that_gains_is_an_answer(pm_node: Command) -> None:
    text = put("triplewin", shapley=[[1], [1]])
    ran = pm_node("mechanism", "clear", "triplewin", "-", "--json", stdin=text)
    assert ran.code == 0
    assert ran.json["status"] == "infeasible"
    assert ran.json["loop_gain"] == [2]
    assert ran.json["p_data_to_model"] is None
