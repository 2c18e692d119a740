from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, Status
from broker_node.mechanisms.vcg import Vcg
from tests.mechanisms.judged import (
    cleared,
    floats,
    needs_every_figure,
    number,
    refuses,
    rejected,
)

VCG = Vcg()
Table = list[list[float]]
worth = st.floats(-2, 10) | st.integers(-1, 4).map(float)
tables = st.tuples(st.integers(1, 5), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(worth, min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


def auction(values: Table) -> Outcome:
    return cleared(VCG, {"values": [[*row] for row in values]})


def most_welfare(values: Table) -> float:
    """Return the largest value of any assignment, by trying all of them."""
    if not values:
        return 0.0
    choices: list[int | None] = [*range(len(values[0])), *([None] * len(values))]
    return max(
        sum(row[good] for row, good in zip(values, taken, strict=True) if good is not None)
        for taken in set(itertools.permutations(choices, len(values)))
    )


def utility(outcome: Outcome, values: Table, buyer: int) -> float:
    assignment = outcome.values["assignment"]
    assert isinstance(assignment, list)
    good = assignment[buyer]
    return (values[buyer][good] if isinstance(good, int) else 0.0) - floats(
        outcome.values["payments"]
    )[buyer]


def test_one_good_is_sold_at_the_second_price() -> None:
    assert auction([[3], [9], [5]]).to_json() == {
        "status": "trade",
        "welfare": 9,
        "payments": [0, 5, 0],
        "assignment": [None, 0, None],
    }


def test_a_buyer_pays_for_the_chain_that_it_sets_off() -> None:
    # without buyer 0, buyer 1 would move up and buyer 2 would have what it leaves
    outcome = auction([[10, 0], [8, 5], [0, 4]])
    assert outcome.values["assignment"] == [0, 1, None]
    assert floats(outcome.values["payments"]) == [7, 4, 0]  # (8 + 4) − 5, and 4


@given(values=tables)
@settings(max_examples=40)
def test_no_assignment_is_worth_more_and_payments_are_what_others_lose(values: Table) -> None:
    outcome = auction(values)
    welfare = most_welfare(values)
    assert outcome.values["welfare"] == pytest.approx(welfare, abs=1e-9)
    for buyer, paid in enumerate(floats(outcome.values["payments"])):
        others = most_welfare([*values[:buyer], *values[buyer + 1 :]])
        own = utility(outcome, values, buyer) + paid
        assert paid == pytest.approx(others - (welfare - own), abs=1e-9)


@given(values=tables)
def test_nobody_loses_or_envies(values: Table) -> None:
    outcome = auction(values)
    payments = floats(outcome.values["payments"])
    assignment = outcome.values["assignment"]
    assert isinstance(assignment, list)
    prices = {g: payments[b] for b, g in enumerate(assignment) if isinstance(g, int)}
    for buyer, row in enumerate(values):
        assert utility(outcome, values, buyer) >= 0
        for good, value in enumerate(row):
            assert utility(outcome, values, buyer) >= value - prices.get(good, 0.0) - 1e-9


@given(values=tables, seed=st.integers(0, 2**32), who=st.integers(0, 4))
def test_no_buyer_gains_by_other_values(values: Table, seed: int, who: int) -> None:
    who %= len(values)
    generator = np.random.Generator(np.random.Philox(seed))
    honest = utility(auction(values), values, who)
    told = np.array(values[who])
    for lie in (told * 2, told / 2, told * 0, generator.uniform(0, 12, len(told))):
        outcome = auction([*values[:who], lie.tolist(), *values[who + 1 :]])
        assert utility(outcome, values, who) <= honest + 1e-9


def test_what_nobody_wants_is_left() -> None:
    outcome = auction([[-1, 0], [-2, -3]])
    assert outcome.status is Status.NO_TRADE
    assert outcome.values["assignment"] == [None, None]


def test_hundreds_of_buyers_and_goods_are_cleared_and_checked() -> None:
    generator = np.random.Generator(np.random.Philox(6))
    outcome = auction(generator.uniform(0, 1, (300, 200)).tolist())
    assert number(outcome.values["welfare"]) > 190


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"payments": [8, 5, 0]}, "not_lowest"),
        ({"payments": [6.5, 4, 0]}, "envy"),
        ({"payments": [11, 4, 0]}, "individual_rationality"),
        ({"payments": [7, 4, 1]}, "paid_for_nothing"),
        ({"payments": [7, -1, 0]}, "negative_payment"),
        ({"welfare": 14}, "welfare"),
        ({"assignment": [0, None, 1]}, "envy"),
        ({"assignment": [None, None, None]}, "status"),
    ],
)
def test_another_outcome_is_not_confirmed(change: dict[str, Json], broken: str) -> None:
    assert broken in rejected(VCG, {"values": [[10, 0], [8, 5], [0, 4]]}, change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(VCG, {"values": [[10, 0], [8, 5], [0, 4]]})


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ([], "values", "row"),
        ([[]], "values", "cells, got 0"),
        ([[1, 2], [3]], "values[1]", "2 items, got 1"),
        ([[1, 2], [3, float("nan")]], "values[1][1]", "finite, got nan"),
        ([1, 2], "values[0]", "a list, got 1"),
        ([[[1]]], "values[0][0]", "a number, got a list of 1 items"),
        ("ab", "values", "list"),
        ([[10**400]], "values[0][0]", "finite"),
    ],
)
def test_a_refused_table_says_where_and_what_is_wrong(
    values: Json, field: str, reason: str
) -> None:
    assert reason in refuses(VCG, {"values": values}, field)
