from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Status
from broker_node.mechanisms.bayesian_ask import BayesianAsk
from tests.mechanisms.judged import cleared, number, rejected

ASK = BayesianAsk()
positive = st.floats(0.05, 5)
kinds = st.one_of(
    st.builds(
        lambda low, width: {"kind": "uniform", "low": low, "high": low + width},
        st.floats(-1, 3),
        positive,
    ),
    st.builds(lambda rate: {"kind": "exponential", "rate": rate}, positive),
    st.builds(
        lambda kind, mu, sigma: {"kind": kind, "mu": mu, "sigma": sigma},
        st.sampled_from(["normal", "lognormal"]),
        st.floats(-1, 2),
        positive,
    ),
    st.builds(
        lambda xm, alpha: {"kind": "pareto", "xm": xm, "alpha": alpha}, positive, st.floats(1.1, 5)
    ),
    st.builds(
        lambda samples: {"kind": "empirical", "samples": samples},
        st.lists(st.just(0.0) | st.floats(0.001, 9), min_size=1, max_size=9),
    ),
    st.builds(
        lambda rows: {"kind": "mixture_normal", "components": [list(row) for row in rows]},
        st.lists(st.tuples(positive, st.floats(0, 9), positive), min_size=1, max_size=3),
    ),
)


@given(
    prior=kinds,
    support=st.none() | st.tuples(st.floats(0, 1), st.floats(1.5, 9)),
    cost=st.floats(-1, 4),
    k=st.none() | st.floats(0, 1),
)
@settings(max_examples=30)
def test_every_ask_is_confirmed_and_a_different_one_is_not(
    prior: Json, support: tuple[float, float] | None, cost: float, k: float | None
) -> None:
    inputs: dict[str, Json] = {
        "prior": prior,
        "support": None if support is None else [*support],
        "cost": cost,
    }
    if k is not None:
        inputs |= {"mode": "split_difference", "k": k}
    if ASK.validate(inputs):
        return
    outcome = cleared(ASK, inputs)
    if outcome.status is Status.TRADE:
        revenue = number(outcome.values["revenue"])
        assert rejected(ASK, inputs, {"revenue": revenue * 1.0001}) == {"revenue"}
        assert rejected(ASK, inputs, {"price": cost - 1.0})
