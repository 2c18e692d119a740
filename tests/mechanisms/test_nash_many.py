from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Json, RefusedInputError
from broker_node.mechanisms.nash import Nash
from broker_node.mechanisms.nash_many import nash_many

NASH = Nash()
value = st.floats(-100, 100) | st.integers(-3, 3).map(float)
cash = st.just(float("inf")) | st.floats(0, 50)
case = st.tuples(
    st.tuples(value, value, value, value),
    st.tuples(st.booleans(), st.booleans()),
    st.floats(0, 1),
    st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
    st.tuples(cash, cash),
    st.just(0.0) | st.floats(0, 0.9),
)
KEYS = ("v_a_own", "v_a_other", "v_b_own", "v_b_other")


def one_by_one(
    values: tuple[float, ...],
    legs: tuple[bool, bool],
    tau: float,
    disagreement: tuple[float, float],
    budget: tuple[float, float],
    fee: float,
) -> list[Json]:
    market: dict[str, Json] = {
        **dict(zip(KEYS, values, strict=True)),
        "legs": [leg for leg, given_leg in zip("ab", legs, strict=True) if given_leg],
        "tau": tau,
        "disagreement": [*disagreement],
        "budget": [None if np.isinf(held) else held for held in budget],
        "fee": fee,
    }
    found = NASH.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0).values
    traded = found["legs"]
    assert isinstance(traded, list)
    figures = [found[key] for key in ("net_transfer_to_a", "utility_a", "utility_b", "fee")]
    return ["a" in traded, "b" in traded, *figures]


@given(cases=st.lists(case, min_size=1, max_size=20))
def test_on_arrays_every_bargain_is_the_scalar_one_bit_for_bit(cases: list[tuple]) -> None:  # type: ignore[type-arg]
    values, legs, tau, disagreement, budget, fee = (
        list(column) for column in zip(*cases, strict=True)
    )
    found = nash_many(
        *np.array(values).T,
        leg_a=np.array(legs)[:, 0],
        leg_b=np.array(legs)[:, 1],
        tau=tau,
        disagreement=(np.array(disagreement)[:, 0], np.array(disagreement)[:, 1]),
        budget=(np.array(budget)[:, 0], np.array(budget)[:, 1]),
        fee=fee,
    )
    columns = [
        found.leg_a_N,
        found.leg_b_N,
        found.net_transfer_to_a_N,
        found.utility_a_N,
        found.utility_b_N,
        found.fee_N,
    ]
    told = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    assert told == [one_by_one(*row) for row in cases]


def test_numbers_hold_for_all_bargains() -> None:
    found = nash_many([2, 2, 12], 0, 0, 10, leg_b=False, budget=(np.inf, [np.inf, 3, np.inf]))
    assert found.net_transfer_to_a_N.tolist() == [6, 3, 0]
    assert found.leg_a_N.tolist() == [True, True, False]
    assert not found.leg_b_N.any()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"v_a_own": [1, float("nan")]}, "v_a_own"),
        ({"v_b_other": [1, 2, 3]}, "v_a_own"),
        ({"v_b_other": [[1, 2]]}, "v_a_own"),
        ({"tau": 1.1}, "tau"),
        ({"fee": 1.0}, "fee"),
        ({"budget": (-1.0, 0.0)}, "budget[0]"),
        ({"disagreement": (0.0, float("inf"))}, "disagreement[1]"),
    ],
)
def test_refused_arrays_are_named(change: dict[str, object], field: str) -> None:
    inputs = {"v_a_own": [1, 2], "v_a_other": 1, "v_b_own": 1, "v_b_other": 1, **change}
    with pytest.raises(RefusedInputError) as refused:
        nash_many(**inputs)  # type: ignore[arg-type]
    assert refused.value.field == field
