"""Where along the line between two models the loss is lowest.

Methods, by name:

`halving-brent`  Eleven values 0, .1 … 1 are measured on a few rows, and on twice as many
                 until those that are not significantly worse than the best, row for row,
                 form one valley. Brent's bounded minimisation ends in it. The curve may
                 have more than one minimum, which is what the screen is for; 0 (no trade)
                 and 1 (buy outright) are in it.
`paper-grid`     .05, .15 … .95, all on all rows (Train 'n Trade, its authors' settings).
`exact-quadratic`
                 the bottom of the parabola that the loss of a linear model is, under squared
                 errors (Train 'n Trade, Algorithm 1); no other curve is searched by it.
`half`           one half, unseen: averaging, as FedAvg does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final

from scipy.optimize import minimize_scalar

from broker_node.evaluate.curve import LossCurve
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import ONE, Millionths

STEP: Final = ONE // 10
SCREEN: Final = tuple(Millionths(k * STEP) for k in range(11))
SCREEN_ROWS: Final = 256
SIGNIFICANT: Final = 2.0
"""Standard errors by which a value must be worse than the best to be dropped."""
BRENT_ROWS: Final = 1024
"""Fewest rows, where there are as many, for the minimisation within the valley."""
BRENT_TOLERANCE: Final = 0.02
BRENT_CALLS: Final = 6

PAPER_GRID: Final = tuple(Millionths(ONE // 20 + k * STEP) for k in range(10))

Search = Callable[[LossCurve], Millionths]


def _best(curve: LossCurve, alphas: Sequence[Millionths], rows: int) -> Millionths:
    curve.measure(alphas, rows)
    return min(alphas, key=lambda alpha: (curve.loss(alpha, rows), alpha))


def _not_worse(
    curve: LossCurve, alphas: Sequence[Millionths], best: Millionths, rows: int
) -> list[Millionths]:
    """Return `best` and the values that are not significantly worse, in their order."""
    best_R = curve.losses(best, rows)
    kept = []
    for alpha in alphas:
        worse_R = curve.losses(alpha, rows) - best_R
        margin = SIGNIFICANT * float(worse_R.std(correction=0)) / math.sqrt(rows)
        # an overflow makes the margin a NaN, which nothing is under
        if alpha == best or float(worse_R.mean()) < margin:
            kept.append(alpha)
    return kept


def _one_valley(curve: LossCurve, alphas: Sequence[Millionths], rows: int) -> bool:
    """Whether the values are neighbours and their losses fall, then rise."""
    if any(right - left != STEP for left, right in itertools.pairwise(alphas)):
        return False
    losses = [curve.loss(alpha, rows) for alpha in alphas]
    bottom = losses.index(min(losses))
    falling, rising = losses[: bottom + 1], losses[bottom:]
    return falling == sorted(falling, reverse=True) and rising == sorted(rising)


def halving_brent(curve: LossCurve) -> Millionths:
    """Return the α with the lowest loss that the screen and Brent's method found."""
    rows = min(SCREEN_ROWS, len(curve))
    alphas = list(SCREEN)
    while True:
        best = _best(curve, alphas, rows)
        alphas = _not_worse(curve, alphas, best, rows)
        if _one_valley(curve, alphas, rows):
            low, high = alphas[0], alphas[-1]
            break
        if rows == len(curve):
            low = high = best
            break
        rows = min(2 * rows, len(curve))
    if low == best:
        low = Millionths(max(0, low - STEP))
    if high == best:
        high = Millionths(min(ONE, high + STEP))
    rows = max(rows, min(BRENT_ROWS, len(curve)))
    found = minimize_scalar(
        lambda alpha: curve.loss(Millionths(round(alpha * ONE)), rows),
        bounds=(low / ONE, high / ONE),
        method="bounded",
        options={"xatol": BRENT_TOLERANCE, "maxiter": BRENT_CALLS},
    )
    return _best(curve, [best, Millionths(round(float(found.x) * ONE))], rows)


def paper_grid(curve: LossCurve) -> Millionths:
    """Return the α of the grid with the lowest loss on all rows."""
    return _best(curve, PAPER_GRID, len(curve))


def exact_quadratic(curve: LossCurve) -> Millionths:
    """Return the α of lowest loss in 0 … 1 of a parabola, which three of its values fix.

    Raises `RemoteProtocolError("wrong-architecture")` for a curve that is none: what is sold
    is not a linear model.
    """
    if not curve.quadratic:
        raise RemoteProtocolError("wrong-architecture", "the loss is no parabola in α")
    rows = len(curve)
    at0_R, half_R, at1_R = (curve.losses(Millionths(alpha), rows) for alpha in (0, ONE // 2, ONE))
    # differences row by row, before the mean: near the end of training they are all there is
    bend = 2 * float((at0_R - 2 * half_R + at1_R).mean())
    slope = float((4 * half_R - 3 * at0_R - at1_R).mean())
    if not (math.isfinite(bend) and math.isfinite(slope)) or bend <= 0:
        return _best(curve, (Millionths(0), Millionths(ONE)), rows)
    return Millionths(round(min(1.0, max(0.0, -slope / (2 * bend))) * ONE))


def half(_curve: LossCurve) -> Millionths:
    """Return one half."""
    return Millionths(ONE // 2)


SEARCHES: Final[dict[str, Search]] = {
    "halving-brent": halving_brent,
    "paper-grid": paper_grid,
    "exact-quadratic": exact_quadratic,
    "half": half,
}
