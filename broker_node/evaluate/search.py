"""Where along the line between two models the loss is lowest.

Two methods, by name:

`halving-brent`  Eleven values 0, .1 … 1 are screened on a few rows, the better ones on
                 more (successive halving), and Brent's bounded minimisation ends between
                 the neighbours of the best. The curve may have more than one minimum, which
                 is what the screen is for; 0 (no trade) and 1 (buy outright) are in it.
`paper-grid`     .05, .15 … .95, all on all rows (Train 'n Trade, its authors' settings).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scipy.optimize import minimize_scalar

from broker_node.evaluate.curve import LossCurve
from node.protocol.types import ONE, Millionths

SCREEN: Final = tuple(Millionths(tenth * ONE // 10) for tenth in range(11))
SCREEN_ROWS: Final = 128
SECOND_ROWS: Final = 512
SECOND_KEPT: Final = 4
BRENT_ROWS: Final = 2048
BRENT_TOLERANCE: Final = 0.01
BRENT_CALLS: Final = 8

PAPER_GRID: Final = tuple(Millionths(ONE // 20 + tenth * ONE // 10) for tenth in range(10))

Search = Callable[[LossCurve], Millionths]


def halving_brent(curve: LossCurve) -> Millionths:
    """Return the α with the lowest loss that the halving and Brent's method found."""
    rows = len(curve)
    first, second, last = (min(limit, rows) for limit in (SCREEN_ROWS, SECOND_ROWS, BRENT_ROWS))

    def ranked(alphas: tuple[Millionths, ...], limit: int) -> tuple[Millionths, ...]:
        return tuple(sorted(alphas, key=lambda alpha: (curve.loss(alpha, limit), alpha)))

    survivors = ranked(SCREEN, first)[:SECOND_KEPT]
    best = ranked(survivors, second)[0]
    step = ONE // 10
    low, high = max(0, best - step), min(ONE, best + step)

    def loss(alpha: float) -> float:
        return curve.loss(Millionths(round(alpha * ONE)), last)

    found = minimize_scalar(
        loss,
        bounds=(low / ONE, high / ONE),
        method="bounded",
        options={"xatol": BRENT_TOLERANCE, "maxiter": BRENT_CALLS},
    )
    candidates = {best, Millionths(round(float(found.x) * ONE))}
    return ranked(tuple(candidates), last)[0]


def paper_grid(curve: LossCurve) -> Millionths:
    """Return the α of the grid with the lowest loss on all rows."""
    return min(PAPER_GRID, key=lambda alpha: (curve.loss(alpha, len(curve)), alpha))


SEARCHES: Final[dict[str, Search]] = {
    "halving-brent": halving_brent,
    "paper-grid": paper_grid,
}
