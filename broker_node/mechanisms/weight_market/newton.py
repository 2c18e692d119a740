"""A Newton step of the interior point: one factored system, several right-hand sides.

The unknowns are the purchases x, what is left w of the capacities, the utilities u and what
is left v up to their limits; the prices p, the limits' duals μ, y = B/u and the duals z of
x ≥ 0. All conditions are linear but the products

    x∘z = τ,     p∘w = τ,     μ∘v = τ,     y∘u = B

and with θ = x/z, h = y/u + μ/v what remains of them after elimination is `Elimination`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from broker_node.mechanisms.weight_market.elimination import Elimination
from broker_node.mechanisms.weight_market.programme import Array, Programme, cost, load


@dataclass(slots=True, kw_only=True)
class Point:
    """A value of all unknowns, or a step of them. Without a limit v is 1 and μ is 0."""

    x_SJ: Array
    w_RJ: Array
    u_S: Array
    v_S: Array
    p_RJ: Array
    mu_S: Array
    y_S: Array
    z_SJ: Array

    def moved(self, step: Point, primal: float, dual: float) -> Point:
        """Return the point after a step of those lengths."""
        lengths = dict.fromkeys(("x_SJ", "w_RJ", "u_S", "v_S"), primal)
        return Point(
            **{
                field.name: getattr(self, field.name)
                + lengths.get(field.name, dual) * getattr(step, field.name)
                for field in fields(self)
            }
        )

    def products(self) -> Products:
        """Return x∘z, p∘w, μ∘v and y∘u."""
        return Products(
            xz_SJ=self.x_SJ * self.z_SJ,
            pw_RJ=self.p_RJ * self.w_RJ,
            mv_S=self.mu_S * self.v_S,
            yu_S=self.y_S * self.u_S,
        )


@dataclass(slots=True, kw_only=True)
class Products:
    """The products of a point, or how much they are to change by."""

    xz_SJ: Array
    pw_RJ: Array
    mv_S: Array
    yu_S: Array

    @property
    def complementarity(self) -> float:
        """Return the sum of all that ought to vanish."""
        return float(self.xz_SJ.sum() + self.pw_RJ.sum() + self.mv_S.sum())

    def to(self, barrier: float, budget_S: Array) -> Products:
        """Return what leads from these products to the central path."""
        return Products(
            xz_SJ=barrier - self.xz_SJ,
            pw_RJ=barrier - self.pw_RJ,
            mv_S=barrier - self.mv_S,
            yu_S=budget_S - self.yu_S,
        )

    def into_band(self, barrier: float, budget_S: Array) -> Products:
        """Return what leads outliers back to a tenth to ten times the barrier (Gondzio 1996)."""

        def back(product: Array) -> Array:
            short = np.clip(product, 0.1 * barrier, 10 * barrier) - product
            return np.maximum(short, -10 * barrier)

        return Products(
            xz_SJ=back(self.xz_SJ),
            pw_RJ=back(self.pw_RJ),
            mv_S=back(self.mv_S),
            yu_S=np.clip(self.yu_S, 0.5 * budget_S, 2 * budget_S) - self.yu_S,
        )

    def plus(self, other: Products, sign: float = 1.0) -> Products:
        """Return the sum, or with `sign` −1 the difference."""
        return Products(
            xz_SJ=self.xz_SJ + sign * other.xz_SJ,
            pw_RJ=self.pw_RJ + sign * other.pw_RJ,
            mv_S=self.mv_S + sign * other.mv_S,
            yu_S=self.yu_S + sign * other.yu_S,
        )


class Newton:
    """The linear system at one point. Raises `LinAlgError` if rounding spoils it."""

    def __init__(self, programme: Programme, point: Point) -> None:
        self.programme, self.point = programme, point
        self.capped_S = np.isfinite(programme.limit_S)
        edge_SJ, demand_RSJ = programme.edge_SJ, programme.demand_RSJ
        self.theta_SJ = np.where(edge_SJ, point.x_SJ / point.z_SJ, 0.0)
        self.slope_S = point.y_S / point.u_S + np.where(self.capped_S, point.mu_S / point.v_S, 0.0)
        self.system = Elimination(
            demand_RSJ, self.theta_SJ, point.w_RJ / point.p_RJ, 1.0 / self.slope_S
        )
        self.short_RJ = 1.0 - load(demand_RSJ, point.x_SJ) - point.w_RJ
        self.short_u_S = point.x_SJ.sum(axis=1) - point.u_S
        self.short_v_S = np.where(self.capped_S, programme.limit_S - point.u_S - point.v_S, 0.0)
        dual_SJ = cost(demand_RSJ, point.p_RJ) + (point.mu_S - point.y_S)[:, None]
        self.short_z_SJ = np.where(edge_SJ, dual_SJ - point.z_SJ, 0.0)

    def step(self, aim: Products) -> Point:
        """Return the step by which the products change by `aim`, to first order."""
        point, demand_RSJ = self.point, self.programme.demand_RSJ
        of_limit_S = np.where(
            self.capped_S, (aim.mv_S - point.mu_S * self.short_v_S) / point.v_S, 0.0
        )
        shift_S = of_limit_S - aim.yu_S / point.u_S
        own_SJ = aim.xz_SJ / point.z_SJ - self.theta_SJ * self.short_z_SJ
        own_SJ = np.where(self.programme.edge_SJ, own_SJ, 0.0)
        p_RJ, bang_S = self.system.solve(
            load(demand_RSJ, own_SJ) - self.short_RJ + aim.pw_RJ / point.p_RJ,
            own_SJ.sum(axis=1) + shift_S / self.slope_S + self.short_u_S,
        )
        push_SJ = cost(demand_RSJ, p_RJ) + bang_S[:, None]
        # u and w by their own equations: what rounding leaves is then a shortfall of the
        # primal, which the next step sees, and not a dual one multiplied by a large slope
        u_S = (bang_S - shift_S) / self.slope_S
        v_S = np.where(self.capped_S, self.short_v_S - u_S, 0.0)
        mu_S = np.where(self.capped_S, (aim.mv_S - point.mu_S * v_S) / point.v_S, 0.0)
        return Point(
            x_SJ=own_SJ - self.theta_SJ * push_SJ,
            w_RJ=(aim.pw_RJ - point.w_RJ * p_RJ) / point.p_RJ,
            u_S=u_S,
            v_S=v_S,
            p_RJ=p_RJ,
            mu_S=mu_S,
            y_S=(aim.yu_S - point.y_S * u_S) / point.u_S,
            z_SJ=np.where(self.programme.edge_SJ, push_SJ + self.short_z_SJ, 0.0),
        )

    def lengths(self, step: Point, share: float) -> tuple[float, float]:
        """Return how far primal and dual may go: `share` of the way to the boundary."""
        point, capped_S = self.point, self.capped_S
        primal = min(
            _to_boundary(point.x_SJ, step.x_SJ),
            _to_boundary(point.w_RJ, step.w_RJ),
            _to_boundary(point.u_S, step.u_S),
            _to_boundary(point.v_S[capped_S], step.v_S[capped_S]),
        )
        dual = min(
            _to_boundary(point.p_RJ, step.p_RJ),
            _to_boundary(point.z_SJ, step.z_SJ),
            _to_boundary(point.y_S, step.y_S),
            _to_boundary(point.mu_S[capped_S], step.mu_S[capped_S]),
        )
        return min(1.0, share * primal), min(1.0, share * dual)


def _to_boundary(values: Array, steps: Array) -> float:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = np.where(steps < 0, values / -steps, np.inf)
    return float(ratios.min(initial=np.inf))
