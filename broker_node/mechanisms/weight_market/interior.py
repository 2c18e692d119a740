"""The extended Eisenberg–Gale programme by a structured primal–dual interior point.

With y_s = B_s/u_s the conditions of the optimum are linear but for products (`newton`), so
primal and dual take steps of their own, as in a linear programme: Mehrotra's predictor and
corrector (1992), Gondzio's centrality correctors (1996), and y∘u = B kept as a product with
a target of its own instead of a barrier (Ye, "A path to the Arrow–Debreu competitive market
equilibrium", 2008). An iteration costs one Cholesky factor of size min(S, J·R).

It stops on the certificate of a feasible point, not on the residuals: an answer is what
`programme.feasible` makes of an iterate, and its gap is that of this very answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from broker_node.mechanisms.weight_market.newton import Newton, Point
from broker_node.mechanisms.weight_market.programme import (
    Array,
    Programme,
    feasible,
    relative_gap,
)
from broker_node.mechanisms.weight_market.start import start

MAX_ITERATIONS: Final = 100
TO_BOUNDARY: Final = 0.995
SHORT: Final = 0.1
"""A step of less than this is worth centring for."""
CORRECTORS: Final = 3
ASPIRATION: Final = 0.3
"""By how much a corrector tries to lengthen a step."""
BARRIER_FLOOR: Final = 0.02
"""Of the gap aimed at, what the barrier alone may leave: below it only rounding grows."""
PATIENCE: Final = 6
"""Iterations without a better certificate, near the end, before the best is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equilibrium:
    """A feasible allocation, prices, and the relative gap between the two."""

    x_SJ: Array
    price_RJ: Array
    gap: float
    iterations: int


def solve(programme: Programme, tolerance: float) -> Equilibrium:
    """Return an equilibrium whose relative gap is at most `tolerance`, if that was met.

    Ends there, after `PATIENCE` iterations without progress, where rounding allows no
    further step, or after `MAX_ITERATIONS`: the caller reads `gap`.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        return _solve(programme, tolerance)


def _solve(programme: Programme, tolerance: float) -> Equilibrium:
    budget = float(programme.budget_S.sum())
    floor = BARRIER_FLOOR * tolerance * budget / programme.pairs
    point = _start(programme)
    best = _certified(programme, point, 0)
    stale = 0
    for iteration in range(1, MAX_ITERATIONS + 1):
        if best.gap <= tolerance or stale > PATIENCE:
            break
        moved = _moved(programme, point, floor)
        if moved is None:
            break
        point = moved
        candidate = _certified(programme, point, iteration)
        stale = stale + 1 if best.gap < 1e-4 and candidate.gap > 0.9 * best.gap else 0
        best = candidate if candidate.gap < best.gap else best
    trimmed = _trimmed(programme, point, best)
    return trimmed if trimmed.gap <= max(tolerance, best.gap) else best


def _start(programme: Programme) -> Point:
    barrier, price_RJ, x_SJ, z_SJ = start(programme)
    limit_S = programme.limit_S
    capped_S = np.isfinite(limit_S)
    u_S = x_SJ.sum(axis=1)
    room_S = np.maximum(limit_S - u_S, 1e-3 * np.minimum(u_S, limit_S))
    v_S = np.where(capped_S, room_S, 1.0)
    return Point(
        x_SJ=x_SJ,
        w_RJ=barrier / price_RJ,
        u_S=u_S,
        v_S=v_S,
        p_RJ=price_RJ,
        mu_S=np.where(capped_S, barrier / v_S, 0.0),
        y_S=programme.budget_S / u_S,
        z_SJ=z_SJ,
    )


def _certified(programme: Programme, point: Point, iteration: int) -> Equilibrium:
    """Return the better of the point and its snap to the boundary that it tends to."""
    x_SJ = feasible(programme, point.x_SJ, point.p_RJ)
    gap = relative_gap(programme, x_SJ, point.p_RJ)
    plain = Equilibrium(x_SJ=x_SJ, price_RJ=point.p_RJ, gap=gap, iterations=iteration)
    if gap > 1e-3:
        return plain
    price_RJ = np.where(point.p_RJ < point.w_RJ * point.p_RJ.mean(), 0.0, point.p_RJ)
    saturated_S = point.mu_S > point.v_S * point.y_S
    lift_S = np.where(saturated_S, programme.limit_S / point.u_S, 1.0)
    x_SJ = feasible(programme, point.x_SJ * lift_S[:, None], price_RJ)
    gap = relative_gap(programme, x_SJ, price_RJ)
    if gap > plain.gap:
        return plain
    return Equilibrium(x_SJ=x_SJ, price_RJ=price_RJ, gap=gap, iterations=iteration)


def _trimmed(programme: Programme, point: Point, best: Equilibrium) -> Equilibrium:
    """Return `best` without the purchases that only the barrier keeps over 0."""
    used_SJ = point.x_SJ * point.y_S[:, None] > point.z_SJ * point.u_S[:, None]
    x_SJ = np.where(used_SJ, best.x_SJ, 0.0)
    gap = relative_gap(programme, x_SJ, best.price_RJ)
    return Equilibrium(x_SJ=x_SJ, price_RJ=best.price_RJ, gap=gap, iterations=best.iterations)


def _moved(programme: Programme, point: Point, floor: float) -> Point | None:
    """Return the next iterate; None where the arithmetic allows no further step."""
    budget_S, pairs = programme.budget_S, programme.pairs
    here = point.products()
    now = here.complementarity
    try:
        newton = Newton(programme, point)
        affine = newton.step(here.to(0.0, budget_S))
        then = point.moved(affine, *newton.lengths(affine, 1.0)).products().complementarity
        barrier = max(floor, now / pairs * (then / now) ** 3)
        aim = here.to(barrier, budget_S).plus(affine.products(), -1.0)
        step = newton.step(aim)
        primal, dual = newton.lengths(step, TO_BOUNDARY)
        if min(primal, dual) < SHORT:
            barrier = 0.5 * now / pairs
            aim = here.to(barrier, budget_S)
            step = newton.step(aim)
            primal, dual = newton.lengths(step, TO_BOUNDARY)
        for _ in range(CORRECTORS):
            if min(primal, dual) > 0.9:
                break
            farther = (min(1.0, 1.08 * length + ASPIRATION) for length in (primal, dual))
            trial = point.moved(step, *farther).products()
            wider = aim.plus(trial.into_band(barrier, budget_S))
            corrected = newton.step(wider)
            lengths = newton.lengths(corrected, TO_BOUNDARY)
            if sum(lengths) < primal + dual + 0.1 * ASPIRATION:
                break
            aim, step, (primal, dual) = wider, corrected, lengths
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(primal + dual) or max(primal, dual) < 1e-10:
        return None
    return point.moved(step, primal, dual)
