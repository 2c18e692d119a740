"""What a buyer gains by a trade, by name, and what that is worth to it (Train 'n Trade §3.3).

θ̂ is the buyer's model before the trade and θ̄ after; `before` and `after` are its figures for
both, of which the gain Δ is

| name                 | of                            | Δ                        | no gain |
|----------------------|-------------------------------|--------------------------|---------|
| `loss_drop`          | losses L_z(θ̂), L_z(θ̄)         | before − after           | 0       |
| `relative_loss_drop` | losses                        | (before − after)/before  | 0       |
| `accuracy_gain`      | accuracies, 0 … 1             | after − before           | 0       |
| `error_ratio`        | ‖θ̂ − θ*‖², ‖θ̄ − θ*‖² (Eq. 3)   | before/after, x/0 = ∞    | 1       |

The paper values a trade at Δ itself. Of a ratio that values a useless trade at 1, so a private
valuation here is 0 where nothing is gained: κ·(Δ − 1) or κ·log Δ of a ratio, κ·Δ of a
difference. κ is money per unit of gain; the valuation is money as inside of a mechanism, and
below 0 where the trade does harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.reading import amount, fraction

LINEAR, LOGARITHMIC = "linear", "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class GainFromTrade:
    """A way to measure what a trade gains."""

    name: str
    no_gain: float
    """Δ of a trade that changes nothing."""
    formula: Callable[[float, float], float]
    """Δ of `before` and `after`."""
    figure: Callable[[float, str], float]
    """What reads a figure of a model, or refuses it."""

    @property
    def is_ratio(self) -> bool:
        """Whether Δ has no unit and multiplies: only of such is there a logarithm."""
        return self.no_gain != 0

    def of(self, before: float, after: float) -> float:
        """Return Δ; it may be infinite for a ratio. Raises `RefusedInputError` for bad figures."""
        return self.formula(self.figure(before, "before"), self.figure(after, "after"))


def _relative(before: float, after: float) -> float:
    if before == 0:
        raise RefusedInputError("before", "must be over 0 for a drop to be a part of it, got 0")
    drop = (before - after) / before
    if math.isinf(drop):
        raise RefusedInputError("before", f"is too small beside {after:g}, got {before:g}")
    return drop


def _ratio(before: float, after: float) -> float:
    if before == after:
        return 1.0  # also of two models that are both at the optimum
    return before / after if after > 0 else math.inf


GAINS: Final = {
    gain.name: gain
    for gain in (
        GainFromTrade(
            name="loss_drop",
            no_gain=0.0,
            formula=lambda before, after: before - after,
            figure=amount,
        ),
        GainFromTrade(name="relative_loss_drop", no_gain=0.0, formula=_relative, figure=amount),
        GainFromTrade(
            name="accuracy_gain",
            no_gain=0.0,
            formula=lambda before, after: after - before,
            figure=fraction,
        ),
        GainFromTrade(name="error_ratio", no_gain=1.0, formula=_ratio, figure=amount),
    )
}
"""By name."""


def valuation(gain: str, delta: float, *, kappa: float, shape: str = LINEAR) -> float:
    """Return what a gain of `delta`, measured as `gain`, is worth: 0 where nothing is gained.

    `linear` is κ·(Δ − no gain), `log` κ·log Δ, of ratios alone. An infinite ratio, as of a model
    at the optimum, is worth infinitely much (nothing to one with κ = 0), and a ratio of 0 under
    `log` infinitely little. Raises `RefusedInputError` for an unknown name or shape, a NaN, a
    κ under 0, and a Δ that no trade has.
    """
    if gain not in GAINS:
        raise RefusedInputError("gain", f"must be one of {', '.join(GAINS)}, got {gain!r:.40}")
    measured = GAINS[gain]
    scale = amount(kappa, "kappa")
    if math.isnan(delta) or (math.isinf(delta) and not measured.is_ratio):
        raise RefusedInputError("delta", f"must be finite, got {delta}")
    if measured.is_ratio and delta < 0:
        raise RefusedInputError("delta", f"is a ratio and must be at least 0, got {delta:g}")
    if shape == LINEAR:
        over = delta - measured.no_gain
    elif shape == LOGARITHMIC and measured.is_ratio:
        over = math.log(delta) if delta > 0 else -math.inf
    else:
        reason = f"must be {LINEAR}, or {LOGARITHMIC} of a ratio, got {shape!r:.40} of {gain}"
        raise RefusedInputError("shape", reason)
    return scale * over if scale else 0.0
