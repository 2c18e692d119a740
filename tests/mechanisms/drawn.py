"""A market for every mechanism, drawn at random: ties, zeros and extremes among the figures."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from broker_node.mechanisms.base import Json
from tests.mechanisms.weight_markets import weight_markets

Drawn = st.SearchStrategy[dict[str, Any]]

few = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
"""So that ties are frequent."""
amount = st.integers(0, 100) | few | st.floats(0, 100) | st.floats(0, 1e150)
signed = st.integers(-100, 100) | few | st.floats(-100, 100) | st.floats(-1e150, 1e150)
positive = st.integers(1, 100) | st.floats(0.01, 100)
share = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)


def lists(one: st.SearchStrategy[Any], least: int = 1, most: int = 6) -> st.SearchStrategy[Any]:
    return st.lists(one, min_size=least, max_size=most)


def exactly(one: st.SearchStrategy[Any], *shape: int) -> st.SearchStrategy[Any]:
    """Return nested lists of that shape."""
    for length in reversed(shape):
        one = st.lists(one, min_size=length, max_size=length)
    return one


def fixed(**keys: st.SearchStrategy[Any]) -> Drawn:
    return st.fixed_dictionaries(keys)


nash: Final = st.fixed_dictionaries(
    dict.fromkeys(("v_a_own", "v_a_other", "v_b_own", "v_b_other"), signed),
    optional={
        "legs": st.sampled_from([[], ["a"], ["b"], ["a", "b"]]),
        "tau": share,
        "disagreement": exactly(signed, 2),
        "budget": st.none() | exactly(st.none() | amount, 2),
        "fee": st.floats(0, 0.99),
    },
)

_priors: Final = st.one_of(
    st.tuples(st.floats(-50, 50), positive).map(
        lambda ends: {"kind": "uniform", "low": ends[0], "high": ends[0] + ends[1]}
    ),
    fixed(kind=st.just("exponential"), rate=positive),
    fixed(kind=st.sampled_from(["normal"]), mu=st.floats(-50, 50), sigma=positive),
    fixed(kind=st.just("lognormal"), mu=st.floats(-3, 3), sigma=st.floats(0.05, 3)),
    fixed(kind=st.just("pareto"), xm=positive, alpha=st.floats(1.05, 10)),
    fixed(kind=st.just("empirical"), samples=lists(st.integers(-9, 99) | st.floats(-99, 99))),
    fixed(
        kind=st.just("mixture_normal"),
        components=lists(st.tuples(positive, st.floats(-50, 50), positive).map(list), most=3),
    ),
)
bayesian_ask: Final = st.fixed_dictionaries(
    {"prior": _priors, "support": st.none(), "cost": st.integers(-9, 60) | st.floats(-9, 60)},
    optional={
        "mode": st.sampled_from(["take_it_or_leave_it", "split_difference"]),
        "k": share,
    },
)

gain_bounds: Final = st.one_of(
    fixed(alpha=st.floats(0.001, 1), beta=share, delta_a=amount),
    fixed(alpha=st.just(0), beta=share, delta_a=st.just(1)),
    st.floats(0.001, 1).flatmap(
        lambda alpha: fixed(
            alpha=st.just(alpha), beta=st.just(1 - alpha), delta_a=st.floats(1, 100)
        )
    ),
)


@st.composite
def _procurement(draw: st.DrawFn) -> dict[str, Json]:
    sellers = draw(st.integers(1, 8))
    return {
        "cost": draw(exactly(amount, sellers)),
        "value": draw(exactly(amount, sellers)),
        "budget": draw(amount),
    }


@st.composite
def _fusion(draw: st.DrawFn) -> dict[str, Json]:
    shape = draw(lists(st.integers(1, 3), most=3))
    sellers = draw(st.integers(0, 3))
    flags = exactly(st.booleans(), sellers, *shape[: draw(st.integers(0, len(shape)))])
    return {
        "local": draw(exactly(signed, *shape)),
        "acquired": draw(exactly(signed, sellers, *shape)),
        "lam": draw(exactly(share, sellers)),
        "mask": draw(flags) if sellers and draw(st.booleans()) else None,
    }


@st.composite
def _shapley(draw: st.DrawFn) -> dict[str, Json]:
    parties = draw(st.integers(1, 4))
    shape = (parties, 1 << parties) if draw(st.booleans()) else (1 << parties,)
    market: dict[str, Json] = {
        "parties": parties,
        "performance_by_bitmask": draw(exactly(st.floats(0, 1) | few, *shape)),
    }
    if draw(st.booleans()):
        market |= {"ceiling": 3, "non_refundable": draw(st.floats(0, 2))}
    return market


@st.composite
def _triplewin(draw: st.DrawFn) -> dict[str, Json]:
    sellers, models, buyers = (draw(st.integers(1, 3)) for _ in range(3))
    small = st.floats(0, 0.4) | st.sampled_from([0.0, 0.25, 1.0])
    return {
        "shapley": draw(exactly(small, sellers, models)),
        "delta": draw(exactly(st.floats(0, 5), models)),
        "kappa_d": draw(exactly(positive, sellers)),
        "kappa_m": draw(exactly(positive, models, buyers)),
        "omega": draw(exactly(small, models, buyers)),
        "reserve": draw(st.none() | exactly(st.none() | st.floats(0, 1e4), models, buyers)),
    }


def _vcg(shape: tuple[int, int]) -> Drawn:
    return fixed(values=exactly(signed, *shape))


DRAWN: Final[dict[str, Drawn]] = {
    "nash": nash,
    "bayesian-ask": bayesian_ask,
    "gain-bounds": gain_bounds,
    "procurement": _procurement(),
    "mcafee": fixed(bids=lists(amount), asks=lists(amount)),
    "kplus1": fixed(bids=lists(amount), copies=st.integers(1, 8), reserve=amount),
    "vcg": st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(_vcg),
    "fusion": _fusion(),
    "shapley": _shapley(),
    "triplewin": _triplewin(),
    **dict.fromkeys(("eeg", "eg", "proportional", "social-welfare", "max-min"), weight_markets()),
}
"""By mechanism: markets that it clears."""
