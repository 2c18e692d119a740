"""By how much a minority that lies can move a price: by no more than honest figures differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.price import bargain
from node.protocol.errors import RemoteProtocolError
from node.protocol.quorum import (
    GAIN_TOLERANCE,
    RECIPE_TOLERANCE,
    BallotState,
    Figure,
    is_close,
    lower_median,
    recipe_is_close,
)
from node.protocol.types import ONE, Millionths, Wei
from tests.quorum.brokers import figure, reveal, seats

KAPPA = 10**18
"""What the removal of the whole loss is worth to the buyer: one ether."""
FEE = 250
ROUNDING = 10_000
"""Wei: the fee's rounding repeats with this period, and prices step with it."""

gains = st.integers(-1_000_000, 1_000_000)


@settings(deadline=None)
@given(st.data())
def test_while_the_liars_are_a_minority_the_median_lies_among_honest_figures(
    data: st.DataObject,
) -> None:
    honest = data.draw(st.lists(gains, min_size=1, max_size=9))
    most = len(honest) - 1  # fewer than half of all, which is (k - 1) // 2
    lies = data.draw(st.lists(gains, max_size=most))
    assert len(lies) <= (len(honest) + len(lies) - 1) // 2
    said = data.draw(st.permutations([figure(gain) for gain in honest + lies]))
    median = lower_median(said)
    assert min(honest) <= median.gain <= max(honest)
    assert min(honest) - 50 <= median.bound <= max(honest) - 50


@settings(deadline=None)
@given(st.lists(st.tuples(gains, st.integers(0, 500_000)), min_size=1, max_size=9))
def test_the_median_is_some_brokers_figure_and_its_bound_is_no_higher(
    said: list[tuple[int, int]],
) -> None:
    figures = [figure(gain, margin=margin) for gain, margin in said]
    median = lower_median(figures)
    assert median.bound <= median.gain
    assert median.gain in {each.gain for each in figures}
    assert median.bound in {each.bound for each in figures}
    assert median.gain == sorted(each.gain for each in figures)[(len(figures) - 1) // 2]


def price_of(gain: int, ask: int) -> int | None:
    found = bargain(Wei(max(0, KAPPA * gain // ONE)), Wei(ask), fee_basis_points=FEE)
    return None if found is None else found.price


def most_moved(spread: int) -> int:
    """By so many wei a price moves if the gain that it is made of moves by `spread` millionths.

    The buyer bids κ times the gain; the Nash price moves half as far as the bid.
    """
    return KAPPA * spread // ONE // 2 + ROUNDING


@settings(deadline=None, max_examples=200)
@given(
    gain=st.integers(1_000, 900_000),
    spread=st.integers(0, 2 * GAIN_TOLERANCE),
    share=st.integers(0, 900),
)
def test_a_price_moves_half_as_far_as_what_the_gain_is_worth(
    gain: int, spread: int, share: int
) -> None:
    ask = KAPPA * gain // ONE * share // 1_000
    one, other = price_of(gain, ask), price_of(gain + spread, ask)
    assert one is not None
    assert other is not None
    assert 0 <= other - one <= most_moved(spread) or abs(other - one) <= ROUNDING


def test_without_an_honest_minority_nothing_is_gained_by_sealing() -> None:
    """Two of three that lie alike set the median; the third does not sign for it."""
    honest, *liars = [figure(100_000), figure(900_000), figure(900_000)]
    assert lower_median([honest, *liars]).gain == 900_000
    assert not is_close(honest, lower_median([honest, *liars]))


@pytest.mark.parametrize(("brokers", "needed"), [(3, 2), (4, 3), (5, 3), (7, 4), (7, 5)])
def test_simulated_liars_move_the_price_within_the_bound_or_have_no_trade(
    brokers: int, needed: int
) -> None:
    """Honest figures differ by noise; each of up to n − m liars says what it likes."""
    draws = np.random.Generator(np.random.Philox(key=brokers * 100 + needed))
    noise = 2  # millionths; between honest machines none was measured
    worst, traded, gave_up = 0, 0, 0
    for _ in range(30):
        true = int(draws.integers(20_000, 500_000))
        liars = int(draws.integers(0, brokers - needed + 1))
        honest = [true + int(draws.integers(-noise, noise + 1)) for _ in range(brokers - liars)]
        lies = [_lie(true, draws) for _ in range(liars)]
        absent = int(draws.integers(0, brokers - needed + 1 - liars))
        said = [*(figure(gain) for gain in honest[absent:]), *lies]
        seated = seats(said, needed=needed)
        openings = reveal(seated)
        signed = []
        for seat in seated:
            if seat.said in lies:
                signed.append(lower_median([o.figure for o in openings]).gain)  # signs anything
                continue
            try:
                signed.append(seat.ballot.settle(openings).gain)
            except RemoteProtocolError:
                assert seat.ballot.state is BallotState.REFUSED
        if len(signed) < needed:
            gave_up += 1
            continue
        traded += 1
        ask = KAPPA * true // ONE // 4
        fair, found = price_of(true, ask), price_of(signed[0], ask)
        assert fair is not None
        assert found is not None
        # whatever is signed by a quorum has an honest signer, for liars are fewer than m
        allowed = noise if len(lies) <= (len(said) - 1) // 2 else noise + GAIN_TOLERANCE + 1
        assert abs(found - fair) <= most_moved(allowed)
        worst = max(worst, abs(found - fair))
    print(f"{brokers} brokers, {needed} sign: {traded} trades, {gave_up} without a quorum,")
    print(f"the price moved by at most {worst} wei of {most_moved(noise + GAIN_TOLERANCE + 1)}")
    assert traded >= 15


@pytest.mark.parametrize(("brokers", "needed"), [(3, 2), (4, 3), (5, 3), (7, 4), (7, 5)])
def test_a_lead_that_fits_its_recipe_moves_the_price_within_the_bound_or_has_no_trade(
    brokers: int, needed: int
) -> None:
    """Its recipe does gain what it says, on these rows; fewer than m brokers lie, the lead is one.

    Honest members replay that gain, and compare it with what they find by themselves.
    """
    draws = np.random.Generator(np.random.Philox(key=brokers * 1_000 + needed))
    noise = 2
    allowed = RECIPE_TOLERANCE + GAIN_TOLERANCE + 1 + 2 * noise
    worst, traded, gave_up = 0, 0, 0
    for _ in range(60):
        true = int(draws.integers(20_000, 500_000))
        reach = int(draws.choice([RECIPE_TOLERANCE - 2 * noise, 2 * RECIPE_TOLERANCE, 300_000]))
        fitted = true + int(draws.integers(-reach, reach + 1))
        liars = int(draws.integers(1, needed))
        said: list[Figure] = [_lie(fitted, draws) for _ in range(liars)]
        for _ in range(brokers - liars):
            own, replayed = (
                figure(gain + int(draws.integers(-noise, noise + 1))) for gain in (true, fitted)
            )
            if recipe_is_close(own, replayed):
                said.append(replayed)
        if len(said) < needed:
            gave_up += 1
            assert abs(fitted - true) > RECIPE_TOLERANCE - 2 * noise
            continue
        seated = seats(said, needed=needed)
        openings = reveal(seated)
        lies = said[:liars]
        signed = [
            lower_median([o.figure for o in openings])
            for seat in seated
            if seat.said in lies or is_close(seat.said, lower_median([o.figure for o in openings]))
        ]
        if len(signed) < needed:
            gave_up += 1
            continue
        traded += 1
        ask = KAPPA * true // ONE // 4
        fair, found = price_of(true, ask), price_of(signed[0].gain, ask)
        assert fair is not None
        assert found is not None
        assert abs(signed[0].gain - true) <= allowed
        assert abs(found - fair) <= most_moved(allowed)
        worst = max(worst, abs(found - fair))
    print(f"{brokers} brokers, {needed} sign: {traded} trades, {gave_up} without a quorum,")
    print(f"the price moved by at most {worst} wei of {most_moved(allowed)}")
    assert traded >= 15
    assert gave_up >= 15


def _lie(true: int, draws: np.random.Generator) -> Figure:
    match int(draws.integers(0, 4)):
        case 0:
            gain = min(10 * true, ONE)
        case 1:
            gain = true // 10
        case 2:
            gain = -true
        case _:
            gain = true + int(draws.integers(-GAIN_TOLERANCE, GAIN_TOLERANCE + 1))
    return figure(int(Millionths(gain)))
