"""The seller's ask against a prior over the buyer's valuation (Train 'n Trade §4, Eq. 2).

Two modes, which the paper mixes:

`take_it_or_leave_it`  the buyer pays the ask: maximise (p − c)·P(v >= p).
`split_difference`     the broker then averages bid and ask, price = k·v + (1 − k)·p: the
                       first-order condition becomes p − c = (1 − k)(1 − F)/f, so that the
                       seller asks for less (⅓, not ½, at k = ½ on uniform [0, 1]).

Both are one problem: with S the tail, the expected profit of an ask p is

    R(p) = (p − c)·S(p) + k·∫ₚ S,

k being 0 when the ask itself is paid. Eq. 2 alone forgets the cost, the truncation and the
corner p = L, and has no root for many priors; here the corner is always compared.

It is individually rational and balanced, but neither efficient (a deal is lost wherever
cost < v < ask) nor truthful towards the seller's own cost. This is not Myerson's virtual
valuation, and is not called one. Of asks that earn the same the lowest found is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from broker_node.mechanisms.ask_check import best_rival
from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.priors import (
    Empirical,
    Exponential,
    LogNormal,
    MixtureNormal,
    Pareto,
    Prior,
    Searched,
    Truncated,
    Uniform,
    normal,
)
from broker_node.mechanisms.reading import (
    LARGEST,
    amount,
    amounts,
    array,
    fraction,
    issues_of,
    items,
    mapping,
    require_keys,
    shown,
)
from broker_node.mechanisms.stated import misstated_status, stated_number

TAKE_IT_OR_LEAVE_IT: Final = "take_it_or_leave_it"
SPLIT_DIFFERENCE: Final = "split_difference"
_GRID: Final = 500
_REFINED: Final = 8
_MAX_SAMPLES: Final = 1_000_000
_MAX_COMPONENTS: Final = 100
_LEAST_MASS: Final = 1e-6
"""Under a support of less probability a mean over it is lost in rounding."""
_LARGEST_LOG: Final = math.log(LARGEST)
_HALVINGS: Final = 1_100
"""Enough to narrow any interval to neighbouring floats."""


def expected_profit(prior: Prior, ask: float, *, cost: float, share: float) -> float:
    """Return R(ask): what the seller expects, where the price is share·v + (1 − share)·ask."""
    profit = (ask - cost) * prior.tail(ask)
    if share > 0:
        profit += share * prior.tail_area(ask, prior.high)
    return profit


def best_ask(prior: Prior, *, cost: float, share: float = 0.0) -> float:
    """Return the ask with the highest expected profit, never under the cost.

    `share` is k, 0 … 1 (0 where the ask is paid). A seller that cannot earn anything asks
    for its cost. Raises `RefusedInputError` where the profit has no maximum.
    """
    if cost >= prior.high:
        return cost
    if isinstance(prior, Truncated) and isinstance(prior.prior, Empirical):
        prior = Empirical(prior.prior.within(prior.low, prior.high).tolist())
    low = max(prior.low, cost)
    if isinstance(prior, Empirical):
        return _best_sample(prior, prior.samples, cost, share)
    closed = _closed_form(prior, cost, share)
    if closed is not None:
        return min(max(low, closed), prior.high)
    candidates = _search(prior, low, cost, share)
    profits = [expected_profit(prior, float(p), cost=cost, share=share) for p in candidates]
    return float(candidates[int(np.argmax(profits))])


def learned_ask(samples: np.ndarray, *, cost: float, share: float = 0.0) -> float:
    """Return the ask learned from n past valuations, the top √n of them no candidates.

    The best sample itself overfits the tail: a price that one buyer in n would pay. Without
    the tail it recovers 90% of the optimal revenue from 10 observations, 98% from 100.
    """
    prior = Empirical(samples.tolist())
    kept = prior.samples[: max(1, len(prior.samples) - math.isqrt(len(prior.samples)))]
    return _best_sample(prior, kept, cost, share)


def _best_sample(prior: Empirical, candidates: np.ndarray, cost: float, share: float) -> float:
    """Return the candidate that would have earned the most, the cost where none covers it."""
    asks = candidates[candidates >= cost]
    if len(asks) == 0:
        return cost
    first = np.searchsorted(prior.samples, asks, side="left")
    buyers = len(prior.samples) - first
    paid_over = np.cumsum(prior.samples[::-1])[::-1][first] - asks * buyers
    return float(asks[int(np.argmax((asks - cost) * buyers + share * paid_over))])


def _closed_form(prior: Prior, cost: float, share: float) -> float | None:
    """Return the root of the first-order condition where there is a formula for it."""
    keep = 1 - share
    match prior:
        case Uniform(_, high):
            return (cost + keep * high) / (1 + keep)
        case Exponential(rate):
            return cost + keep / rate
        case Pareto(_, alpha) if alpha > 1:
            return cost * (alpha / (alpha - keep))
        case Pareto():
            _refuse_without_best(prior, cost, share)
            return prior.low
        case Truncated(prior=Uniform()):
            return (cost + keep * prior.high) / (1 + keep)
        case Truncated(prior=Exponential(rate)):
            return cost + _capped_exponential(keep, rate * (prior.high - cost)) / rate
        case Truncated(prior=Pareto(_, alpha)) if cost == 0:
            # p = keep·(p/α)·(1 − (p/U)^α): the table's U·(1 − α)^{1/α} where keep is 1
            bracket = 1 - alpha / keep if keep > 0 else 0.0
            return float(prior.high * bracket ** (1 / alpha)) if bracket > 0 else prior.low
        case _:
            return None


def _capped_exponential(keep: float, gap: float) -> float:
    """Return the x = λ(p − c) of x = keep·(1 − e^{x − gap}), gap being λ(U − c) > 0.

    That is keep − W(keep·e^{keep − gap}) with Lambert's W, by Newton's steps from above: the
    formula itself cancels where the gap is small.
    """
    x = min(keep, gap)
    while True:
        slope = 1 + keep * math.exp(x - gap)
        step = (x + keep * math.expm1(x - gap)) / slope
        if not x - step < x:
            return x
        x -= step


def _refuse_without_best(prior: Prior, cost: float, share: float) -> None:
    """Raise `RefusedInputError` where ever higher asks earn ever more."""
    if not isinstance(prior, Pareto) or prior.alpha > 1:
        return
    if prior.alpha < 1 or cost > 0 or share > 0:
        reason = f"Pareto of alpha {prior.alpha:g} <= 1 has no best ask without a support"
        raise RefusedInputError("prior.alpha", reason)


def _search(prior: Prior, low: float, cost: float, share: float) -> np.ndarray:
    """Return asks among which the best is: landmarks, the best of them refined, the corner."""
    believed = prior.prior if isinstance(prior, Truncated) else prior
    if not isinstance(believed, Searched):
        raise RefusedInputError("prior", f"{type(believed).__name__} has no density to search by")
    marks = believed.landmarks(low, prior.high)
    ends = [low, prior.high] if math.isfinite(prior.high) else [low]
    spread = np.linspace(low, max(float(marks.max()), low), _GRID)
    if math.isfinite(prior.high):
        spread = np.linspace(low, prior.high, _GRID)
    grid = np.unique(np.clip(np.concatenate([marks, spread, ends]), low, prior.high))
    profits = np.array([expected_profit(prior, float(p), cost=cost, share=share) for p in grid])

    def rises(ask: float) -> bool:
        margin = (ask - cost) * believed.density(ask)
        return (1 - share) * believed.between(ask, prior.high) > margin

    refined = []
    for index in np.argsort(-profits, kind="stable")[:_REFINED]:
        start = float(grid[max(index - 1, 0)])
        end = float(grid[min(index + 1, len(grid) - 1)])
        if rises(start) and not rises(end):
            refined.append(_turning_point(rises, start, end))
    return np.unique(np.concatenate([grid, refined]))


def _turning_point(rises: Callable[[float], bool], start: float, end: float) -> float:
    """Return where the profit stops rising, to the precision of a float."""
    for _ in range(_HALVINGS):
        middle = (start + end) / 2
        if not start < middle < end:
            break
        start, end = (middle, end) if rises(middle) else (start, middle)
    return start


def read_prior(value: Json) -> Prior:
    """Return the prior that a JSON object describes, by its `kind`."""
    given = dict(mapping(value, "prior"))
    kind = given.pop("kind", None)
    prior: Prior
    match kind:
        case "uniform":
            low, high = _parameters(given, "low", "high")
            if not low < high:
                raise RefusedInputError("prior.high", f"must be over prior.low, got {high:g}")
            prior = Uniform(low, high)
        case "exponential":
            (rate,) = _parameters(given, "rate")
            prior = Exponential(_scale(rate, "prior.rate"))
        case "normal":
            mu, sigma = _parameters(given, "mu", "sigma")
            prior = normal(mu, _scale(sigma, "prior.sigma"))
        case "lognormal":
            mu, sigma = _parameters(given, "mu", "sigma")
            if mu + _scale(sigma, "prior.sigma") ** 2 > _LARGEST_LOG:
                raise RefusedInputError("prior.sigma", f"is too large, got {sigma:g}")
            if mu < -_LARGEST_LOG:
                raise RefusedInputError("prior.mu", f"is too small, got {mu:g}")
            prior = LogNormal(mu, sigma)
        case "pareto":
            xm, alpha = _parameters(given, "xm", "alpha")
            prior = Pareto(_scale(xm, "prior.xm"), _scale(alpha, "prior.alpha"))
        case "empirical":
            require_keys(given, ("samples",))
            samples = amounts(given["samples"], "prior.samples", signed=True)
            if len(samples) > _MAX_SAMPLES:
                reason = f"must be 1 … {_MAX_SAMPLES} numbers, got {len(samples)}"
                raise RefusedInputError("prior.samples", reason)
            prior = Empirical(samples.tolist())
        case "mixture_normal":
            require_keys(given, ("components",))
            prior = _read_mixture(items(given["components"], "prior.components"))
        case _:
            raise RefusedInputError("prior.kind", f"unknown: {shown(kind)}")
    return prior


def _parameters(given: dict[str, Json], *names: str) -> list[float]:
    require_keys(given, names)
    return [amount(given[name], f"prior.{name}", signed=True) for name in names]


def _scale(value: float, field: str) -> float:
    """Return a number over 0 with whose inverse one can still reckon."""
    if value < 1 / LARGEST:
        at_least = "over 0" if value <= 0 else f"at least {1 / LARGEST:g}"
        raise RefusedInputError(field, f"must be {at_least}, got {value:g}")
    return value


def _read_mixture(components: list[Json]) -> MixtureNormal:
    field = "prior.components"
    if not 1 <= len(components) <= _MAX_COMPONENTS:
        reason = f"must be 1 … {_MAX_COMPONENTS} components, got {len(components)}"
        raise RefusedInputError(field, reason)
    rows = array(list(components), field, (len(components), 3)).tolist()
    for index, row in enumerate(rows):
        for part in (0, 2):
            _scale(row[part], f"{field}[{index}][{part}]")
    total = math.fsum(row[0] for row in rows)
    return MixtureNormal(tuple((row[0] / total, row[1], row[2]) for row in rows))


def _read(market: Market) -> tuple[Prior, float, float]:
    """Return prior, cost and k of the JSON input; k is 0 where the ask is paid."""
    require_keys(market, ("prior", "support", "cost"), ("mode", "k"))
    prior = read_prior(market["prior"])
    cost = amount(market["cost"], "cost", signed=True)
    mode = market.get("mode", TAKE_IT_OR_LEAVE_IT)
    share = fraction(market.get("k", 0.5), "k")
    if mode not in (TAKE_IT_OR_LEAVE_IT, SPLIT_DIFFERENCE):
        known = f"{TAKE_IT_OR_LEAVE_IT} or {SPLIT_DIFFERENCE}"
        raise RefusedInputError("mode", f"must be {known}, got {shown(mode)}")
    if mode == TAKE_IT_OR_LEAVE_IT:
        share = 0.0
    if market["support"] is not None:
        low, high = (
            amount(end, f"support[{index}]", signed=True)
            for index, end in enumerate(items(market["support"], "support", length=2))
        )
        if not low < high:
            raise RefusedInputError("support", f"must rise, got {low:g} … {high:g}")
        prior = _truncated(prior, low, high)
        if share > 0 and isinstance(prior, Truncated) and prior.mass < _LEAST_MASS:
            reason = f"the prior gives it only a probability of {prior.mass:.3g}"
            raise RefusedInputError("support", reason)
    _refuse_without_best(prior, cost, share)
    return prior, cost, share


def _truncated(prior: Prior, low: float, high: float) -> Prior:
    if isinstance(prior, Empirical):
        inside = prior.within(low, high)
        if len(inside):
            return Empirical(inside.tolist())
    else:
        truncated = Truncated(prior, low, high)
        if truncated.low <= truncated.high and truncated.mass > 0:
            return truncated
    reason = f"the prior gives {low:g} … {high:g} no probability"
    raise RefusedInputError("support", reason)


class BayesianAsk:
    """The seller's best ask against a prior over one buyer's valuation."""

    name = "bayesian-ask"
    claims = frozenset({Claim.INDIVIDUAL_RATIONALITY, Claim.BUDGET_BALANCE})

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return price (the best ask) and revenue (the expected profit over cost)."""
        prior, cost, share = _read(market)
        ask = best_ask(prior, cost=cost, share=share)
        profit = expected_profit(prior, ask, cost=cost, share=share)
        return Outcome(
            status=Status.TRADE if profit > 0 else Status.NO_TRADE,
            values={"price": ask, "revenue": profit},
        )

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge the ask against a grid of others, and the revenue that it states.

        By other tails, and by quadrature where clearing has formulas (`ask_check`).
        """
        prior, cost, share = _read(market)
        ask, told = (stated_number(outcome, key) for key in ("price", "revenue"))
        earned, best = best_rival(prior, ask, cost=cost, share=share)
        scale = max(abs(earned), abs(best), 1e-300)
        return Certificate(
            violations={
                "status": misstated_status(outcome, trades=told > 0),
                "individual_rationality": max(0.0, cost - ask) / max(1e-300, abs(cost), abs(ask)),
                "revenue": abs(told - earned) / scale,
                "suboptimal": max(0.0, best - earned) / scale,
            },
            tolerance=DEFAULT_TOLERANCE,
        )
