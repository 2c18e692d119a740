"""What a broker tells of a trial before there is a deal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.disclosure import Disclosure, Figures, may_be_told_as, told_of
from node.protocol.evaluation import check_measured
from node.protocol.types import ONE, Millionths

shares = st.integers(-(2**63) // 10, ONE).map(Millionths) | st.integers(-20, 20).map(Millionths)


@st.composite
def measurements(draw: st.DrawFn) -> Figures:
    gain, bound = draw(shares), draw(shares)
    alpha = Millionths(draw(st.integers(0, ONE)))
    return Figures(gain=max(gain, bound), bound=min(gain, bound), alpha=alpha)


def figures(gain: int, bound: int, alpha: int) -> Figures:
    return Figures(Millionths(gain), Millionths(bound), Millionths(alpha))


@given(measured=measurements(), policy=st.sampled_from(Disclosure))
def test_a_gain_is_never_told_higher_and_keeps_its_sign(
    measured: Figures, policy: Disclosure
) -> None:
    told = told_of(policy, measured)
    check_measured(told.gain, told.bound, told.alpha)
    assert told.gain <= max(measured.gain, 0)
    assert told.bound <= max(measured.bound, 0)
    for before, after in zip(measured, told, strict=True):
        assert (before > 0) == (after > 0)
    assert may_be_told_as(measured, told)


@pytest.mark.parametrize(
    ("policy", "measured", "told"),
    [
        (Disclosure.FULL, (34_712, 29_999, 412_345), (34_712, 29_999, 412_345)),
        (Disclosure.ROUNDED, (34_712, 29_999, 412_345), (30_000, 20_000, 500_000)),
        (Disclosure.ROUNDED, (7, -34_712, 1), (7, -40_000, 100_000)),
        (Disclosure.ROUNDED, (ONE, 999_999, ONE), (ONE, 900_000, ONE)),
        (Disclosure.ROUNDED, (0, 0, 0), (0, 0, 0)),
        (Disclosure.NONE, (34_712, 29_999, 412_345), (1, 1, ONE)),
        (Disclosure.NONE, (34_712, -5, 412_345), (1, 0, ONE)),
        (Disclosure.NONE, (-3, -5, 0), (0, 0, 0)),
    ],
)
def test_what_each_policy_tells(
    policy: Disclosure, measured: tuple[int, int, int], told: tuple[int, int, int]
) -> None:
    assert told_of(policy, figures(*measured)) == figures(*told)


@pytest.mark.parametrize(
    "told", [(34_713, 29_999, 412_345), (40_000, 20_000, 500_000), (30_000, 20_000, 412_345)]
)
def test_a_broker_that_told_something_else_is_caught_at_the_deal(
    told: tuple[int, int, int],
) -> None:
    assert not may_be_told_as(figures(34_712, 29_999, 412_345), figures(*told))


def test_a_rounded_gain_no_longer_gives_the_other_sides_away() -> None:
    # with beta = 1 - alpha the other's gain is exactly 1 + ((1 - a)/a)^2 (gain - 1)
    hidden = {
        told_of(Disclosure.ROUNDED, figures(gain, 0, 412_345)) for gain in range(30_000, 40_000)
    }
    assert len(hidden) == 1
