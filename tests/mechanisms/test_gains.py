"""Gains from trade by name: what changes nothing gains nothing, and is worth nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.gains import GAINS, LINEAR, LOGARITHMIC, valuation

NAMES = ("loss_drop", "relative_loss_drop", "accuracy_gain", "error_ratio")
figure = st.floats(1e-6, 1)
kappa = st.floats(0, 1e6)


def shapes(name: str) -> tuple[str, ...]:
    return (LINEAR, LOGARITHMIC) if GAINS[name].is_ratio else (LINEAR,)


def test_the_four_gains_are_those_of_the_paper() -> None:
    assert tuple(GAINS) == NAMES
    assert all(name == gain.name for name, gain in GAINS.items())
    assert [gain.no_gain for gain in GAINS.values()] == [0, 0, 0, 1]
    found = [GAINS[name].of(0.5, 0.125) for name in NAMES]
    assert found == [0.375, 0.75, -0.375, 4]


@given(same=figure, scale=kappa)
def test_a_trade_that_changes_nothing_is_worth_nothing(same: float, scale: float) -> None:
    for name, gain in GAINS.items():
        assert gain.of(same, same) == gain.no_gain
        for shape in shapes(name):
            assert valuation(name, gain.of(same, same), kappa=scale, shape=shape) == 0


@given(before=figure, after=figure, scale=st.floats(0.1, 1e6))
def test_a_trade_is_worth_something_exactly_where_it_helps(
    before: float, after: float, scale: float
) -> None:
    for name, gain in GAINS.items():
        helps = after > before if name == "accuracy_gain" else after < before
        for shape in shapes(name):
            worth = valuation(name, gain.of(before, after), kappa=scale, shape=shape)
            if gain.of(before, after) != gain.no_gain:
                assert (worth > 0) == helps


def test_valuations_are_those_of_the_specification() -> None:
    assert valuation("error_ratio", 4.0, kappa=2) == 2 * (4 - 1)
    assert valuation("error_ratio", 4.0, kappa=2, shape="log") == 2 * math.log(4)
    assert valuation("loss_drop", 0.25, kappa=2) == 0.5
    # the raw ratio would value a useless trade at 1
    assert valuation("error_ratio", 1.0, kappa=1) == 0


def test_a_model_at_the_optimum_has_gained_without_bound() -> None:
    ratio = GAINS["error_ratio"]
    assert ratio.of(0.5, 0) == math.inf
    assert ratio.of(0, 0) == 1
    assert valuation("error_ratio", math.inf, kappa=1) == math.inf
    assert valuation("error_ratio", math.inf, kappa=0) == 0
    assert valuation("error_ratio", 0.0, kappa=1, shape="log") == -math.inf


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_figures_that_no_model_has_are_refused_by_name(name: str, bad: float) -> None:
    for field, pair in (("before", (bad, 0.5)), ("after", (0.5, bad))):
        with pytest.raises(RefusedInputError) as refused:
            GAINS[name].of(*pair)
        assert refused.value.field == field


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.5), (0.0, 0.0), (5e-324, 1e150)])
def test_a_drop_is_no_part_of_a_loss_of_nothing(before: float, after: float) -> None:
    with pytest.raises(RefusedInputError, match="before"):
        GAINS["relative_loss_drop"].of(before, after)


def test_an_accuracy_is_a_share() -> None:
    with pytest.raises(RefusedInputError, match="after"):
        GAINS["accuracy_gain"].of(0.5, 1.5)


@pytest.mark.parametrize(
    ("gain", "delta", "scale", "shape", "field"),
    [
        ("error", 1.0, 1.0, LINEAR, "gain"),
        ("loss_drop", math.nan, 1.0, LINEAR, "delta"),
        ("loss_drop", math.inf, 1.0, LINEAR, "delta"),
        ("error_ratio", math.nan, 1.0, LINEAR, "delta"),
        ("error_ratio", -0.5, 1.0, LINEAR, "delta"),
        ("loss_drop", 0.5, -1.0, LINEAR, "kappa"),
        ("loss_drop", 0.5, math.nan, LINEAR, "kappa"),
        ("loss_drop", 0.5, 1.0, LOGARITHMIC, "shape"),
        ("error_ratio", 0.5, 1.0, "square", "shape"),
    ],
)
def test_a_valuation_of_nonsense_is_refused_by_name(
    gain: str, delta: float, scale: float, shape: str, field: str
) -> None:
    with pytest.raises(RefusedInputError) as refused:
        valuation(gain, delta, kappa=scale, shape=shape)
    assert refused.value.field == field
