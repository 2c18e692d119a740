from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json
from broker_node.mechanisms.gain_bounds import GainBounds, gain_range
from tests.mechanisms.judged import cleared, needs_every_figure, number, refuses, rejected

BOUNDS = GainBounds()
weight = st.floats(0.01, 1)


def bounds(alpha: float, beta: float, delta_a: float) -> tuple[float, float]:
    values = cleared(BOUNDS, {"alpha": alpha, "beta": beta, "delta_a": delta_a}).values
    lower, upper = (math.inf if values[k] is None else values[k] for k in ("lower", "upper"))
    return number(lower), number(upper)


def gains(own: np.ndarray, theirs: np.ndarray, alpha: float, beta: float) -> tuple[float, float]:
    """Return Δ_a and Δ_b of Eq. 3 for two errors, whichever dimension they have."""
    merged_a = (1 - alpha) * own + alpha * theirs
    merged_b = beta * own + (1 - beta) * theirs
    return (
        float(own @ own / (merged_a @ merged_a)),
        float(theirs @ theirs / (merged_b @ merged_b)),
    )


@given(alpha=weight, beta=weight, dimension=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_no_two_models_have_a_gain_outside_of_the_range(
    alpha: float, beta: float, dimension: int, seed: int
) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    own, theirs = generator.normal(size=(2, dimension))
    delta_a, delta_b = gains(own, theirs, alpha, beta)
    assume(delta_a < 1e6)
    lower, upper = bounds(alpha, beta, delta_a)
    assert lower * (1 - 1e-6) - 1e-9 <= delta_b <= upper * (1 + 1e-6) + 1e-9


@given(alpha=weight, beta=weight, delta_a=st.floats(0.01, 50))
def test_both_ends_belong_to_models_on_one_line_with_the_optimum(
    alpha: float, beta: float, delta_a: float
) -> None:
    ends = []
    for side in (1.0, -1.0):
        own = side * math.sqrt(delta_a)
        theirs = (1 - (1 - alpha) * own) / alpha
        merged_b = beta * own + (1 - beta) * theirs
        assume(abs(merged_b) > 1e-6)
        ends.append((theirs / merged_b) ** 2)
    assert bounds(alpha, beta, delta_a) == pytest.approx((min(ends), max(ends)), rel=1e-5, abs=1e-9)


@given(alpha=st.floats(0.05, 0.95), seed=st.integers(0, 2**32))
def test_one_merged_model_reveals_the_buyers_gain_exactly(alpha: float, seed: int) -> None:
    # the optimum's foot on the line of both models divides it as alpha says
    generator = np.random.Generator(np.random.Philox(seed))
    foot = np.append(generator.uniform(0.1, 2), np.zeros(3))
    along = np.append(0.0, generator.normal(size=3))
    own, theirs = foot + alpha * along, foot - (1 - alpha) * along
    delta_a, delta_b = gains(own, theirs, alpha, 1 - alpha)
    outcome = cleared(BOUNDS, {"alpha": alpha, "beta": 1 - alpha, "delta_a": max(1.0, delta_a)})
    assert outcome.values["exact"] == pytest.approx(delta_b, rel=1e-6)


@pytest.mark.parametrize(("beta", "delta_a"), [(0.5, 2.0), (0.7, 0.9)])
def test_where_alpha_is_no_minimiser_nothing_is_exact(beta: float, delta_a: float) -> None:
    market: dict[str, Json] = {"alpha": 0.3, "beta": beta, "delta_a": delta_a}
    assert cleared(BOUNDS, market).values["exact"] is None


def test_a_buyer_that_may_hit_the_optimum_has_no_upper_bound() -> None:
    # (1 − β) = s·(1 − α − β): a merge of the two lies on the optimum
    outcome = cleared(BOUNDS, {"alpha": 0.25, "beta": 0.5, "delta_a": 4})
    assert outcome.values == {"lower": 6.25, "upper": None, "exact": None}
    assert gain_range(0.25, 0.5, 4.0)[1] == math.inf


def test_who_buys_nothing_gains_nothing() -> None:
    assert bounds(0.4, 0, 3) == (1, 1)
    assert bounds(0.4, 0, 1 / 0.36) == (1, 1)


def test_who_bought_nothing_learns_nothing() -> None:
    assert bounds(0, 0.4, 1) == (0, math.inf)
    assert "alpha is 0" in refuses(BOUNDS, {"alpha": 0, "beta": 0.4, "delta_a": 2}, "delta_a")


def test_a_whole_purchase_of_one_that_was_right() -> None:
    assert bounds(0.5, 1, 0) == (math.inf, math.inf)
    assert bounds(1, 0.5, 0) == (4, 4)


@pytest.mark.parametrize(
    "change", [{"lower": 0.5}, {"upper": 9.0}, {"upper": None}, {"exact": 1.5}, {"exact": None}]
)
def test_another_range_is_not_confirmed(change: dict[str, Json]) -> None:
    assert rejected(BOUNDS, {"alpha": 0.4, "beta": 0.6, "delta_a": 1.3}, change)


def test_each_figure_must_be_stated() -> None:
    needs_every_figure(BOUNDS, {"alpha": 0.4, "beta": 0.6, "delta_a": 1.3})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"beta": -0.1}, "beta"),
        ({"delta_a": -1}, "delta_a"),
        ({"delta_a": float("nan")}, "delta_a"),
        ({"delta_a": float("inf")}, "delta_a"),
        ({"delta_a": None}, "delta_a"),
        ({"gamma": 1}, "gamma"),
    ],
)
def test_a_refused_input_names_its_field(change: dict[str, Json], field: str) -> None:
    refuses(BOUNDS, {"alpha": 0.4, "beta": 0.6, "delta_a": 1.3, **change}, field)
