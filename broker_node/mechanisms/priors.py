"""What a seller believes of a buyer's valuation: distributions with their tails in closed form.

Every price needs only two functions of a prior: `tail(p)` = P(v >= p), and `tail_area(a, b)`
= ∫ₐᵇ tail. The expected profit of an ask follows from both (`bayesian_ask`). `between(a, b)`
is P(a <= v <= b) without the cancellation of two tails; where the best ask is searched for,
there are a `density` and `landmarks`, prices between which nothing is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, Protocol, runtime_checkable

import numpy as np

_STANDARD: Final = NormalDist()
_SQRT_TAU: Final = math.sqrt(2 * math.pi)
_BISECTIONS: Final = 60
"""Narrow an interval to the precision of a float."""


_REACH: Final = 9.0
"""Standard deviations that the landmarks of a normal lie on either side."""
_LANDMARKS: Final = 2_000
_SMALL: Final = 1e-150


def _normal_tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def _normal_density(z: float) -> float:
    return math.exp(-z * z / 2) / _SQRT_TAU


def _normal_between(start: float, end: float) -> float:
    if start > 0:
        return _normal_tail(start) - _normal_tail(end)
    return _normal_tail(-end) - _normal_tail(-start)


class Prior(Protocol):
    """A distribution over money."""

    @property
    def low(self) -> float:
        """The least valuation possible; −inf for the normal."""

    @property
    def high(self) -> float:
        """The greatest valuation possible; inf where there is none."""

    def tail(self, price: float) -> float:
        """Return P(v >= price)."""

    def tail_area(self, start: float, end: float) -> float:
        """Return ∫ P(v >= t) dt over start … end, inf where it diverges."""

    def between(self, start: float, end: float) -> float:
        """Return P(start <= v <= end)."""

    def quantile(self, probability: float) -> float:
        """Return the valuation that a share `probability` (over 0, under 1) is below."""


@runtime_checkable
class Searched(Prior, Protocol):
    """A distribution whose best ask has no formula."""

    def density(self, price: float) -> float:
        """Return the density of valuations, also outside of a truncation."""

    def landmarks(self, start: float, end: float) -> np.ndarray:
        """Return prices all over start … end (which may be infinite), fine where mass is."""


def _normal_excess(price: float, mu: float, sigma: float) -> float:
    """Return E[max(v − price, 0)] for a normal v."""
    z = (price - mu) / sigma
    return sigma * (math.exp(-z * z / 2) / _SQRT_TAU - z * _normal_tail(z))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Equally likely anywhere in low … high."""

    low: float
    high: float

    def tail(self, price: float) -> float:
        return min(1.0, max(0.0, (self.high - price) / (self.high - self.low)))

    def tail_area(self, start: float, end: float) -> float:
        before = max(0.0, min(end, self.low) - start)
        start, end = (min(max(edge, self.low), self.high) for edge in (start, end))
        width = self.high - self.low
        return before + ((self.high - start) ** 2 - (self.high - end) ** 2) / (2 * width)

    def between(self, start: float, end: float) -> float:
        inside = min(end, self.high) - max(start, self.low)
        return max(0.0, inside) / (self.high - self.low)

    def quantile(self, probability: float) -> float:
        return self.low + probability * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Density rate·exp(−rate·v) from 0."""

    rate: float
    low: float = 0.0
    high: float = math.inf

    def tail(self, price: float) -> float:
        return math.exp(-self.rate * max(price, 0.0))

    def tail_area(self, start: float, end: float) -> float:
        before = max(0.0, min(end, 0.0) - start)
        return before + (self.tail(start) - self.tail(end)) / self.rate

    def between(self, start: float, end: float) -> float:
        start = max(start, 0.0)
        return self.tail(start) * -math.expm1(-self.rate * max(0.0, end - start))

    def quantile(self, probability: float) -> float:
        return -math.log1p(-probability) / self.rate


@dataclass(frozen=True, slots=True)
class Pareto:
    """P(v >= p) = (xm/p)^alpha from xm."""

    xm: float
    alpha: float
    high: float = math.inf
    low: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", self.xm)

    def tail(self, price: float) -> float:
        return float((self.xm / max(price, self.xm)) ** self.alpha)

    def tail_area(self, start: float, end: float) -> float:
        before = max(0.0, min(end, self.xm) - start)
        start, end = max(start, self.xm), max(end, self.xm)
        if math.isinf(end):
            return before + (
                self.tail(start) * start / (self.alpha - 1) if self.alpha > 1 else math.inf
            )
        ratio = math.log(end / start)
        exponent = 1 - self.alpha
        grown = ratio if exponent == 0 else math.expm1(exponent * ratio) / exponent
        return before + self.tail(start) * start * grown

    def between(self, start: float, end: float) -> float:
        start = max(start, self.xm)
        if end <= start:
            return 0.0
        return self.tail(start) * -math.expm1(-self.alpha * math.log(end / start))

    def density(self, price: float) -> float:
        return 0.0 if price < self.xm else self.tail(price) * self.alpha / price

    def landmarks(self, start: float, end: float) -> np.ndarray:
        return np.geomspace(max(start, self.xm), max(end, self.xm), _LANDMARKS)

    def quantile(self, probability: float) -> float:
        return float(self.xm * (1 - probability) ** (-1 / self.alpha))


@dataclass(frozen=True, slots=True)
class MixtureNormal:
    """A weighted mixture of normals: (weight, mu, sigma) each; weights add up to 1."""

    components: tuple[tuple[float, float, float], ...]
    low: float = -math.inf
    high: float = math.inf

    def tail(self, price: float) -> float:
        return sum(w * _normal_tail((price - mu) / sigma) for w, mu, sigma in self.components)

    def tail_area(self, start: float, end: float) -> float:
        return sum(
            weight
            * (
                _normal_excess(start, mu, sigma)
                - (0.0 if math.isinf(end) else _normal_excess(end, mu, sigma))
            )
            for weight, mu, sigma in self.components
        )

    def between(self, start: float, end: float) -> float:
        return sum(
            weight * _normal_between((start - mu) / sigma, (end - mu) / sigma)
            for weight, mu, sigma in self.components
        )

    def density(self, price: float) -> float:
        return sum(w * _normal_density((price - mu) / s) / s for w, mu, s in self.components)

    def landmarks(self, start: float, end: float) -> np.ndarray:
        count = max(40, _LANDMARKS // len(self.components))
        found = []
        for _, mu, sigma in self.components:
            # past the start of a far tail the best ask is within a standard deviation
            lowest = max(-_REACH, min((start - mu) / sigma, 1 / _SMALL))
            found.append(mu + sigma * np.linspace(lowest, max(lowest, 0.0) + _REACH, count))
        return np.concatenate(found)

    def quantile(self, probability: float) -> float:
        z = _STANDARD.inv_cdf(probability)
        low = min(mu + sigma * z for _, mu, sigma in self.components)
        high = max(mu + sigma * z for _, mu, sigma in self.components)
        for _ in range(_BISECTIONS if low < high else 0):
            middle = (low + high) / 2
            if 1 - self.tail(middle) < probability:
                low = middle
            else:
                high = middle
        return (low + high) / 2


def normal(mu: float, sigma: float) -> MixtureNormal:
    """Return the normal distribution."""
    return MixtureNormal(((1.0, mu, sigma),))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp of a normal (mu, sigma)."""

    mu: float
    sigma: float
    low: float = 0.0
    high: float = math.inf

    def tail(self, price: float) -> float:
        if price <= 0:
            return 1.0
        return _normal_tail((math.log(price) - self.mu) / self.sigma)

    def _excess(self, price: float) -> float:
        """Return E[max(v − price, 0)], the Black-Scholes formula without its interest."""
        if math.isinf(price):
            return 0.0
        mean = math.exp(self.mu + self.sigma**2 / 2)
        if price <= 0:
            return mean - price
        z = (math.log(price) - self.mu) / self.sigma
        return mean * _normal_tail(z - self.sigma) - price * _normal_tail(z)

    def tail_area(self, start: float, end: float) -> float:
        return self._excess(start) - self._excess(end)

    def quantile(self, probability: float) -> float:
        return math.exp(self.mu + self.sigma * _STANDARD.inv_cdf(probability))

    def between(self, start: float, end: float) -> float:
        if end <= 0:
            return 0.0
        low = (math.log(start) - self.mu) / self.sigma if start > 0 else -math.inf
        high = (math.log(end) - self.mu) / self.sigma if end < math.inf else math.inf
        return max(0.0, _normal_between(low, high))

    def density(self, price: float) -> float:
        if price <= 0:
            return 0.0
        z = (math.log(price) - self.mu) / self.sigma
        return _normal_density(z) / (self.sigma * price)

    def landmarks(self, start: float, end: float) -> np.ndarray:
        lowest = -_REACH
        if start > 0:
            lowest = max(lowest, (math.log(start) - self.mu) / self.sigma)
        # p·tail(p) is largest before z = sigma, and with a cost not far beyond it
        z = np.linspace(lowest, max(lowest, self.sigma, 0.0) + _REACH, _LANDMARKS)
        prices: np.ndarray = np.exp(np.minimum(self.mu + self.sigma * z, 700.0))
        return prices


class Empirical:
    """Each of n observed valuations is equally likely."""

    def __init__(self, samples: Sequence[float]) -> None:
        self.samples = np.sort(np.asarray(samples, dtype=np.float64))
        self.low = float(self.samples[0])
        self.high = float(self.samples[-1])

    def tail(self, price: float) -> float:
        at_least = len(self.samples) - int(np.searchsorted(self.samples, price, side="left"))
        return at_least / len(self.samples)

    def tail_area(self, start: float, end: float) -> float:
        clipped = np.clip(self.samples, start, max(start, end))
        return float((clipped - start).mean())

    def between(self, start: float, end: float) -> float:
        return len(self.within(start, end)) / len(self.samples)

    def within(self, start: float, end: float) -> np.ndarray:
        """Return the observations in start … end, rising."""
        inside: np.ndarray = self.samples[(self.samples >= start) & (self.samples <= end)]
        return inside

    def quantile(self, probability: float) -> float:
        return float(self.samples[min(int(probability * len(self.samples)), len(self.samples) - 1)])


class Truncated:
    """A prior given that the valuation lies within low … high."""

    def __init__(self, prior: Prior, low: float, high: float) -> None:
        self.prior = prior
        self.low = max(low, prior.low)
        self.high = min(high, prior.high)
        self._above = 0.0 if math.isinf(self.high) else prior.tail(math.nextafter(high, math.inf))
        self.mass = prior.between(self.low, self.high)

    def tail(self, price: float) -> float:
        if price > self.high:
            return 0.0
        return min(1.0, self.prior.between(max(price, self.low), self.high) / self.mass)

    def tail_area(self, start: float, end: float) -> float:
        before = max(0.0, min(end, self.low) - start)
        start, end = (min(max(edge, self.low), self.high) for edge in (start, end))
        if end <= start:
            return before
        area = self.prior.tail_area(start, end)
        return before + (area - (self._above * (end - start) if self._above else 0.0)) / self.mass

    def between(self, start: float, end: float) -> float:
        return self.prior.between(max(start, self.low), min(end, self.high)) / self.mass

    def quantile(self, probability: float) -> float:
        below = 1 - self.prior.tail(self.low)
        shifted = below + probability * self.mass
        return min(
            max(self.prior.quantile(min(max(shifted, 1e-15), 1 - 1e-15)), self.low), self.high
        )
