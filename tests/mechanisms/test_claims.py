"""Every claim of every mechanism is put to random markets, and to those who would break it.

A claim that is not made is put to them too, where a mechanism's docstring says that it is given
up: what simulates it must find the market that breaks it, or it would find none anywhere.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.base import Claim, Status
from broker_node.mechanisms.registry import MECHANISMS
from tests.mechanisms.claim_benches import (
    AskBench,
    AssignmentBench,
    Bench,
    CopiesBench,
    DoubleAuctionBench,
    NashBench,
    ProcurementBench,
    Told,
)
from tests.mechanisms.claim_benches_shared import CoupledBench, PoolBench, WeightBench

BENCHES: Final[dict[str, Bench]] = {
    "nash": NashBench("nash"),
    "bayesian-ask": AskBench("bayesian-ask"),
    "procurement": ProcurementBench("procurement"),
    "mcafee": DoubleAuctionBench("mcafee"),
    "kplus1": CopiesBench("kplus1"),
    "vcg": AssignmentBench("vcg"),
    "shapley": PoolBench("shapley"),
    "triplewin": CoupledBench("triplewin"),
    **{
        name: WeightBench(name)
        for name in ("eeg", "eg", "proportional", "social-welfare", "max-min")
    },
}
"""Of every mechanism but those by which nothing is traded."""
SLACK: Final = 10
"""How far over its tolerance a property is broken that is given up."""
CLAIMED: Final = [
    pytest.param(name, claim, id=f"{name}: {claim.value}")
    for name, mechanism in MECHANISMS.items()
    for claim in sorted(mechanism.claims, key=lambda claim: claim.value)
]
GIVEN_UP: Final = [
    ("nash", Claim.INCENTIVE_COMPATIBILITY),
    ("bayesian-ask", Claim.INCENTIVE_COMPATIBILITY),
    ("bayesian-ask", Claim.PARETO),
    ("procurement", Claim.PARETO),
    ("mcafee", Claim.PARETO),
    ("kplus1", Claim.PARETO),
    ("shapley", Claim.INDIVIDUAL_RATIONALITY),
    ("triplewin", Claim.INCENTIVE_COMPATIBILITY),
    ("eg", Claim.PARETO),
    ("proportional", Claim.PARETO),
    ("social-welfare", Claim.ENVY_FREE),
    ("social-welfare", Claim.SHARING_INCENTIVE),
    ("max-min", Claim.ENVY_FREE),
    ("max-min", Claim.SHARING_INCENTIVE),
]

CROSSED: Final[Told] = {
    "demand": [[[1.0, 2.0]], [[2.0, 1.0]]],
    "budget": [1.0, 1.0],
    "capacity": [[1.0, 1.0]],
    "max_utility": [None, None],
}
"""Each of two buyers needs more of what the other needs less of."""


def broken(bench: Bench, claim: Claim, market: Told) -> float:
    """Return by how much a claim is broken in a market; at most the tolerance if it holds."""
    outcome = bench.clear(market)
    match claim:
        case Claim.INDIVIDUAL_RATIONALITY:
            return -min(bench.gains(market, outcome))
        case Claim.INCENTIVE_COMPATIBILITY:
            honest = bench.gains(market, outcome)
            return max(
                bench.gains(market, bench.clear(told))[party] - honest[party]
                for party, told in bench.lies(market)
            )
        case Claim.BUDGET_BALANCE:
            return bench.deficit(market, outcome)
        case Claim.ENVY_FREE:
            return bench.envy(market, outcome)
        case Claim.PARETO:
            return bench.forgone(market, outcome)
        case Claim.SHARING_INCENTIVE:
            return bench.under_share(market, outcome)


@pytest.mark.parametrize(("name", "claim"), CLAIMED)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_what_a_mechanism_claims_holds_in_every_market_that_is_drawn(
    name: str, claim: Claim, data: st.DataObject
) -> None:
    bench = BENCHES[name]
    market = data.draw(bench.markets())
    assert broken(bench, claim, market) <= bench.tolerance


@pytest.mark.parametrize(("name", "claim"), GIVEN_UP)
def test_what_a_mechanism_gives_up_is_not_claimed_and_a_market_shows_it(
    name: str, claim: Claim
) -> None:
    assert claim not in MECHANISMS[name].claims
    bench = BENCHES[name]
    find(
        bench.markets(),
        lambda market: broken(bench, claim, market) > SLACK * bench.tolerance,
        settings=settings(
            max_examples=2_000,
            phases=[Phase.generate],
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_of_two_legs_that_cannot_be_paid_together_neither_trades() -> None:
    """Leg a alone needs no money and leaves A better off; the rule asks about both at once."""
    bench = NashBench("nash")
    poor = {"v_a_own": -1.0, "v_a_other": -2.0, "v_b_own": -2.0, "v_b_other": 0.0}
    outcome = bench.clear({**poor, "budget": [None, 0.0]})
    assert outcome.status is Status.NO_TRADE
    assert bench.forgone_by(poor, outcome, (float("inf"), 0.0)) == 1


def test_a_buyer_of_weights_that_misstates_its_demand_can_have_more_of_them() -> None:
    """By over a percent of what it has; few markets that are drawn show as much."""
    assert Claim.INCENTIVE_COMPATIBILITY not in MECHANISMS["eeg"].claims
    bench = BENCHES["eeg"]
    assert broken(bench, Claim.INCENTIVE_COMPATIBILITY, CROSSED) > SLACK * bench.tolerance


def test_whoever_trades_is_simulated_and_whoever_does_not_claims_nothing() -> None:
    without = MECHANISMS.keys() - BENCHES.keys()
    assert without == {"fusion", "gain-bounds"}
    assert not any(MECHANISMS[name].claims for name in without)


@pytest.mark.parametrize("name", ["nash", "bayesian-ask"])
def test_who_prices_between_two_says_which_property_it_gives_up(name: str) -> None:
    """Myerson and Satterthwaite (1983): of four properties no bilateral rule has all."""
    four = {
        Claim.INDIVIDUAL_RATIONALITY,
        Claim.INCENTIVE_COMPATIBILITY,
        Claim.BUDGET_BALANCE,
        Claim.PARETO,
    }
    missing = four - MECHANISMS[name].claims
    assert missing
    assert all((name, claim) in GIVEN_UP for claim in missing)
