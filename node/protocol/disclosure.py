"""What a broker tells a buyer of a trial before there is a deal: its disclosure policy.

Who buys with weight α and hears its own gain Δ can work out what the other would gain by its
parameters, exactly where both minimise one loss (Train 'n Trade §4,
`broker_node.mechanisms.gain_bounds`), and ask for all of it. So a broker may tell less:

`full`     all three figures as they were measured.
`rounded`  gain and bound rounded down to one decimal digit that counts, 0.0347 to 0.03;
           α up to a tenth.
`none`     only whether there is a gain, and one that is sure: the least figure over 0, or 0.

A gain over 0 is never told higher than it is, so a bid made of it loses nothing by the policy;
what is told has the signs of what was measured, so an offer without a gain is not bought.
A deal needs the recipe, with α, and says all that was measured: the policy keeps it from those
who only try.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from node.protocol.types import ONE, Millionths

ALPHA_STEP: Final = ONE // 10


class Disclosure(Enum):
    """How much of a trial is told."""

    FULL = "full"
    ROUNDED = "rounded"
    NONE = "none"


class Figures(NamedTuple):
    """What a trial measures, in millionths."""

    gain: Millionths
    bound: Millionths
    alpha: Millionths


def told_of(policy: Disclosure, measured: Figures) -> Figures:
    """Return what is told of a measurement; what holds of one (bound <= gain) holds of it."""
    match policy:
        case Disclosure.FULL:
            return measured
        case Disclosure.ROUNDED:
            return Figures(
                gain=_one_digit(measured.gain),
                bound=_one_digit(measured.bound),
                alpha=Millionths(-(-measured.alpha // ALPHA_STEP) * ALPHA_STEP),
            )
        case Disclosure.NONE:
            return Figures(
                gain=Millionths(int(measured.gain > 0)),
                bound=Millionths(int(measured.bound > 0)),
                alpha=Millionths(ONE if measured.alpha > 0 else 0),
            )


def may_be_told_as(measured: Figures, told: Figures) -> bool:
    """Return whether some policy tells a measurement so; a buyer does not know which."""
    return any(told_of(policy, measured) == told for policy in Disclosure)


def _one_digit(figure: Millionths) -> Millionths:
    """Return a figure rounded down to its first decimal digit, below 0 away from it."""
    step = 10 ** (len(str(abs(figure))) - 1)
    return Millionths(figure // step * step)
