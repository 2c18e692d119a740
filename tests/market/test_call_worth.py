"""In a call nobody bids, and nobody pays, more than what it wants is worth to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from broker_node.appraisal import DrillAppraiser
from broker_node.calls.call import Closed
from broker_node.calls.clearing import ClearedCall, clear_call
from node.chain.port import FundedEvent
from node.chronicle import CallCleared, LegEnded
from node.protocol.types import ONE, Wei
from tests.market.market import ETHER, architecture, open_market, weights
from tests.market.test_call_market import CALL, buyer_of, sellers

WORTH = ETHER * DrillAppraiser.GAIN // ONE
"""κ·Δ of every trial of the drill, at a κ of one ether."""


async def test_who_bids_all_that_its_purse_allows_can_fund_all_that_it_is_given(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer, session = await buyer_of(
            market, 2, call_budget=None, value_per_unit_gain=Wei(1_000 * ETHER)
        )
        await session.offer(architecture(), weights("buyer"))
        await session.step()
        assert [leg.because for leg in buyer.heard(LegEnded)] == ["bought", "bought"]
        assert sum(leg.price or 0 for leg in buyer.heard(LegEnded)) > 9 * ETHER


async def test_a_sole_bidder_without_a_call_budget_pays_no_more_than_its_gain_is_worth(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one")
        _, session = await buyer_of(market, 1, call_budget=None)
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert step.bought
        (call,) = market.broker.heard(CallCleared)
        (budget,) = call.budgets.values()
        assert (step.price or 0) <= int(budget) <= WORTH
        assert step.price == pytest.approx(WORTH, rel=1e-5)


async def test_who_bids_all_that_two_sellers_are_worth_to_it_buys_of_both(tmp_path: Path) -> None:
    """What a clearing errs by makes neither of the prices one over its worth."""
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer, session = await buyer_of(market, 2, call_budget=None)
        await session.offer(architecture(), weights("buyer"))
        await session.step()
        legs = buyer.heard(LegEnded)
        assert [leg.because for leg in legs] == ["bought", "bought"]
        assert all((leg.price or 0) <= WORTH for leg in legs)


async def test_what_a_call_prices_over_its_worth_is_left_and_the_rest_is_bought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = WORTH // 2

    def uneven(closed: Closed) -> ClearedCall:
        """The same call, where half the price of one seller's goods is on the other's."""
        cleared = clear_call(closed)
        cheap, dear = cleared.given
        assert cheap.allocation is not None
        assert dear.allocation is not None
        given = tuple(
            dataclasses.replace(
                one, allocation=dataclasses.replace(found, price=Wei(found.price + change))
            )
            for one, found, change in (
                (cheap, cheap.allocation, -moved),
                (dear, dear.allocation, moved),
            )
        )
        return dataclasses.replace(cleared, given=given)

    monkeypatch.setattr("broker_node.calls.desk.clear_call", uneven)
    async with open_market(tmp_path, **CALL) as market:
        await sellers(market, "one", "two")
        buyer, session = await buyer_of(market, 2, call_budget=None)
        await session.offer(architecture(), weights("buyer"))
        step = await session.step()
        assert step.bought
        assert {leg.because for leg in buyer.heard(LegEnded)} == {"over-worth", "bought"}
        (funded,) = market.events(FundedEvent)
        assert funded.price == step.price
        assert funded.price <= WORTH
        assert not buyer.blamed("call") + buyer.blamed("buy")
