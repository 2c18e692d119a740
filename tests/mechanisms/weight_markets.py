"""Weight markets for the tests: drawn at random, and judged from first principles."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome

figure = st.floats(0.05, 20)


@st.composite
def weight_markets(draw: st.DrawFn, most: int = 4, limits: bool = True) -> dict[str, Json]:
    """Return a market of up to `most` buyers and sellers, with gaps in what is had and wanted."""
    buyers = draw(st.integers(1, most))
    sellers = draw(st.integers(1, most))
    types = draw(st.integers(1, 3))
    wanted = st.just(0.0) | figure | figure | figure
    demand = [[[draw(wanted) for _ in range(types)] for _ in range(sellers)] for _ in range(buyers)]
    capacity = [[draw(wanted) for _ in range(types)] for _ in range(sellers)]
    capacity[0] = [draw(figure) for _ in range(types)]
    for of_buyer in demand:
        of_buyer[0][0] = draw(figure)  # an edge for everybody
    limit = st.none() | figure if limits else st.none()
    return {
        "demand": demand,  # type: ignore[dict-item]
        "budget": [draw(figure) for _ in range(buyers)],
        "capacity": capacity,  # type: ignore[dict-item]
        "max_utility": [draw(limit) for _ in range(buyers)],
    }


def random_market(buyers: int, sellers: int, types: int, seed: int) -> dict[str, Any]:
    """Return a market where half of the buyers have a limit."""
    generator = np.random.Generator(np.random.Philox(seed))
    demand = generator.lognormal(size=(buyers, sellers, types))
    limits = generator.lognormal(-0.5, size=buyers)
    return {
        "demand": demand.tolist(),
        "budget": generator.lognormal(size=buyers).tolist(),
        "capacity": generator.lognormal(size=(sellers, types)).tolist(),
        "max_utility": [float(v) if s % 2 else None for s, v in enumerate(limits)],
    }


def array(value: Json) -> np.ndarray:
    return np.array(value, dtype=float)


def limits_of(market: dict[str, Json]) -> np.ndarray:
    """Return the limits, infinite where there is none."""
    limits = array(market["max_utility"])
    return np.where(np.isnan(limits), np.inf, limits)


def figures(outcome: Outcome, *keys: str) -> tuple[np.ndarray, ...]:
    return tuple(array(outcome.values[key]) for key in keys)


def with_values(outcome: Outcome, **changed: Any) -> Outcome:
    """Return the outcome with some of its figures changed; arrays become lists."""
    told = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in changed.items()}
    return Outcome(status=outcome.status, values={**outcome.values, **told})


def stated_anew(market: dict[str, Json], outcome: Outcome, **changed: Any) -> Outcome:
    """Return a forged outcome whose utility, surplus and gap agree with its x and prices."""
    forged = with_values(outcome, **changed)
    x, prices = figures(forged, "x", "prices")
    demand, budget, limits = array(market["demand"]), array(market["budget"]), limits_of(market)
    cost = (demand * prices).sum(axis=2)
    edge = (demand > 0).any(axis=2) & ~((demand > 0) & (array(market["capacity"]) == 0)).any(axis=2)
    cheapest = np.where(edge, cost, np.inf).min(axis=1)
    with np.errstate(divide="ignore"):
        best = np.minimum(budget / cheapest, limits)
    bought = x.sum(axis=1)
    gap = (prices * array(market["capacity"])).sum()
    gap += (budget * np.log(best / bought) - cheapest * best).sum()
    return with_values(
        forged,
        utility=np.minimum(bought, limits),
        surplus=budget - (x * cost).sum(axis=1),
        gap=float(gap),
        relative_gap=float(gap / budget.sum()),
    )
