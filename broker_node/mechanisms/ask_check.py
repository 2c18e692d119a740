"""What an ask earns, computed a second way: other tails, and quadrature for their area.

`broker_node.mechanisms.bayesian_ask` prices with closed forms of tail and area; this checks
it with scipy's distribution functions and Gauss-Legendre panels, and shares nothing with it
but the parameters of the prior. E counts panel edges, which are the rival asks as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.priors import (
    Empirical,
    Exponential,
    LogNormal,
    MixtureNormal,
    Pareto,
    Prior,
    Truncated,
    Uniform,
)

_NODES: Final = 16
_E_FOLDS: Final = 45.0
"""Beyond so many what is left of a tail is under the precision of a float."""
_Z_REACH: Final = 39.0
_STEPS: Final = 400


def best_rival(prior: Prior, ask: float, *, cost: float, share: float) -> tuple[float, float]:
    """Return what `ask` earns, and the most that an ask of a grid of at least the cost does."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(prior, Empirical):
            return _among_samples(prior.samples, ask, cost, share)
        return _among_edges(prior, ask, cost, share)


def _among_edges(prior: Prior, ask: float, cost: float, share: float) -> tuple[float, float]:
    """Return the same for a distribution, the rivals being the edges of the panels."""
    low, high = prior.low, prior.high
    believed = prior.prior if isinstance(prior, Truncated) else prior
    start = min(ask, max(cost, low))
    edges_E = _edges(believed, start, high)
    known = [edge for edge in (ask, cost, low, high) if math.isfinite(edge) and edge >= start]
    edges_E = np.unique(np.concatenate([edges_E[(edges_E >= start) & (edges_E <= high)], known]))
    mass = _within(believed, np.array([low]), high)[0]

    def tail(prices: np.ndarray) -> np.ndarray:
        inside = _within(believed, np.maximum(prices, low), high) / mass
        return np.where(prices > high, 0.0, np.where(prices <= low, 1.0, inside))

    profits_E = (edges_E - cost) * tail(edges_E)
    if share > 0:
        profits_E += share * _area_above(tail, edges_E)
    earned = float(profits_E[np.searchsorted(edges_E, ask)])
    return earned, float(profits_E[edges_E >= cost].max(initial=0.0))


def _area_above(tail: Callable[[np.ndarray], np.ndarray], edges_E: np.ndarray) -> np.ndarray:
    """Return the area under the tail from each edge to the last."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(edges_E)[:, None] / 2
    prices = edges_E[:-1, None] + half * (nodes + 1)
    panels = (tail(prices.ravel()).reshape(prices.shape) * weights).sum(axis=1) * half[:, 0]
    return np.append(np.cumsum(panels[::-1])[::-1], 0.0)


def _within(prior: Prior, start: np.ndarray, end: float) -> np.ndarray:
    """Return P(start <= v <= end), by whichever tail cancels less."""
    above, below = _both_tails(prior, start)
    end_above, end_below = (
        (0.0, 1.0)
        if math.isinf(end)
        else (float(part[0]) for part in _both_tails(prior, np.array([end])))
    )
    inside: np.ndarray = np.where(above < 0.5, above - end_above, end_below - below)
    return inside.clip(min=0.0)


def _both_tails(prior: Prior, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return P(v >= price) and P(v < price)."""
    from scipy.special import ndtr  # noqa: PLC0415  it takes a third of a second to import

    match prior:
        case Uniform(low, high):
            place = np.clip((prices - low) / (high - low), 0.0, 1.0)
            return np.clip((high - prices) / (high - low), 0.0, 1.0), place
        case Exponential(rate):
            waited = rate * np.maximum(prices, 0.0)
            return np.exp(-waited), -np.expm1(-waited)
        case Pareto(xm, alpha):
            waited = alpha * np.log(np.maximum(prices, xm) / xm)
            return np.exp(-waited), -np.expm1(-waited)
        case MixtureNormal(components):
            z = [(weight, (prices - mu) / sigma) for weight, mu, sigma in components]
            weights = np.array([weight for weight, _ in z])
            at = np.array([place for _, place in z])
            return weights @ ndtr(-at), weights @ ndtr(at)
        case LogNormal(mu, sigma):
            with np.errstate(divide="ignore"):
                at = (np.log(np.maximum(prices, 0.0)) - mu) / sigma
            return np.asarray(ndtr(-at)), np.asarray(ndtr(at))
    raise RefusedInputError("prior", f"{type(prior).__name__} cannot be checked")


def _edges(prior: Prior, start: float, high: float) -> np.ndarray:
    """Return prices between which the tail is smooth, as far as it reaches."""
    match prior:
        case Exponential(rate):
            reach = min(high, max(start, 0.0) + _E_FOLDS / rate)
        case Pareto(xm, alpha):
            first = max(start, xm)
            folds = _E_FOLDS / (alpha - 1 if alpha > 1 else 1.0)
            last = min(math.log(first) + folds, math.log(high) if high > 0 else 0.0, 700.0)
            return np.exp(np.linspace(math.log(first), max(last, math.log(first)), _STEPS))
        case MixtureNormal(components):
            z = np.linspace(-10.0, _Z_REACH, _STEPS)
            grids = [mu + sigma * z for _, mu, sigma in components]
            for _, mu, sigma in components:
                at = (start - mu) / sigma
                if 0 < at < _Z_REACH:
                    grids.append(start + sigma * np.linspace(0.0, 5.0, _STEPS))
            if math.isfinite(high):
                grids.append(np.linspace(start, high, _STEPS))
            return np.concatenate(grids)
        case LogNormal(mu, sigma):
            first = -_Z_REACH if start <= 0 else max(-_Z_REACH, (math.log(start) - mu) / sigma)
            last = max(first, sigma) + _Z_REACH
            count = int((last - first) / min(0.1, 0.25 / sigma)) + 2
            prices: np.ndarray = np.exp(
                np.minimum(mu + sigma * np.linspace(first, last, count), 700.0)
            )
            return np.append(prices, max(start, 0.0))
        case _:
            reach = high
    return np.linspace(start, max(start, reach), _STEPS)


def _among_samples(
    samples: np.ndarray, ask: float, cost: float, share: float
) -> tuple[float, float]:
    """Return the same for observations: tails counted, areas by the gaps between them."""
    levels, counts = np.unique(samples, return_counts=True)
    left = np.cumsum(counts[::-1])[::-1] / len(samples)
    gaps = np.append(np.diff(levels), 0.0) * np.append(left[1:], 0.0)
    areas = np.cumsum(gaps[::-1])[::-1]
    profits = (levels - cost) * left + share * areas
    above = samples[samples >= ask]
    earned = (ask - cost) * (len(above) / len(samples))
    earned += share * float((above - ask).sum()) / len(samples)
    return earned, float(profits[levels >= cost].max(initial=0.0))
