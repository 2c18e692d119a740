"""Who bids all that its purse allows can still pay for its disputes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from node.chain.codec import BROKER_DISPUTE_GAS, GAS_LIMITS
from node.chain.errors import UnfundedAccountError
from node.chain.port import Dispute, EscrowState, Fund
from node.protocol.eip712 import digest
from node.protocol.events import BadGoods, PurchaseEvent
from node.protocol.purchase import Purchase, PurchaseRecord, PurchaseState
from node.protocol.types import Digest, Wei
from node.settlement.purse import BID_HEADROOM, FUND_HEADROOM, GAS_RESERVE, Purse
from node.settlement.trade import Trade
from tests.settlement.fake_chain import DOMAIN, ETHER, Deal, FakeChain
from tests.settlement.trades import (
    BROKER,
    BUYER,
    SELLER,
    Bench,
    Node,
    goods_of,
    purchase,
    quote_of,
    wall,
)
from tests.settlement.world import World

MAX_FEE = 3 * 10**9
"""Of a unit of gas: 3 gwei, twice the base fee."""
DEPOSIT, DISPUTE = (MAX_FEE * GAS_LIMITS[kind] for kind in (Fund, Dispute))
"""What each may cost, in wei."""
BOTH = DEPOSIT + DISPUTE
SLASHING = MAX_FEE * BROKER_DISPUTE_GAS


def bought(number: int, state: PurchaseState = PurchaseState.FETCHING) -> PurchaseRecord:
    return dataclasses.replace(purchase(quote_of(number)), state=state.value)


def purse_of(node: Node, *purchases: PurchaseRecord, budget: Wei | None = None) -> Purse:
    """The purse of an account with these purchases open."""
    trades = [Trade(Purchase(record)) for record in purchases]
    desk: Any = SimpleNamespace(open_trades=lambda: trades)
    return Purse(node.treasury, desk, node.journal, budget=budget)


@pytest.fixture
def dear(chain: FakeChain) -> FakeChain:
    """The chain, at 3 gwei."""
    chain.base_fee = MAX_FEE // 2
    return chain


# ── the whole way ──


class Garbled(Bench):
    """All goods that come here are garbage."""

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        await super().deliver(purchase, secret)
        number = next(n for n in range(9) if quote_of(n).trade_id == purchase.trade_id)
        return BadGoods(goods_of(number).show(1))


@pytest.mark.parametrize("trades", [1, 2], ids=["one purchase", "two purchases"])
async def test_who_bids_all_that_its_purse_allows_gets_its_money_back_for_garbage(
    memory: Path, trades: int
) -> None:
    """Two share one purse; fees rise after the deposits, by as much as the bids left room for."""
    world = World(memory, trades)
    chain, buyer = world.chain, world.nodes["buyer"]
    buyer.bench = Garbled()
    for node in world.nodes.values():
        node.journal.close()
        node.wake()
    chain.base_fee = MAX_FEE // 2
    chain.balances[BUYER] = GAS_RESERVE + trades * (ETHER + BID_HEADROOM * BOTH)
    before = [bought(number) for number in range(trades - 1)]
    assert await purse_of(buyer, *before).left(SELLER) == ETHER
    chain.balances[BUYER] -= GAS_RESERVE  # all else that the account may do

    async def fees_rise() -> None:
        while len(chain.deals) < trades:
            await trio.sleep(0.1)
        chain.base_fee *= BID_HEADROOM

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fees_rise)
        await world.settle()
    assert world.states() == [("refunded", "disputed", "disputed")] * trades
    assert len(chain.calls(Dispute, succeeded=True)) == trades
    assert chain.balances[DOMAIN.escrow] == 0
    assert not any(chain.credits.values())


# ── before a bid ──


async def test_a_bid_leaves_the_gas_of_a_deposit_and_a_dispute_at_present_fees(
    buyer: Node, dear: FakeChain
) -> None:
    held, purse = 10 * ETHER, purse_of(buyer)
    assert await purse.left(SELLER) == held - BID_HEADROOM * BOTH - GAS_RESERVE
    dear.base_fee *= 2
    assert await purse.left(SELLER) == held - 2 * BID_HEADROOM * BOTH - GAS_RESERVE


async def test_a_bid_for_the_goods_of_a_broker_leaves_what_its_slashing_takes(
    buyer: Node, dear: FakeChain
) -> None:
    gas = BID_HEADROOM * (DEPOSIT + SLASHING)
    assert await purse_of(buyer).left(BROKER) == 10 * ETHER - gas - GAS_RESERVE


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (PurchaseState.FETCHING, ETHER + BID_HEADROOM * BOTH),
        (PurchaseState.FUNDING, ETHER + BID_HEADROOM * BOTH),
        (PurchaseState.FUNDED, BID_HEADROOM * DISPUTE),
        (PurchaseState.REVEALED, BID_HEADROOM * DISPUTE),
        (PurchaseState.DISPUTING, BID_HEADROOM * DISPUTE),
        (PurchaseState.DELIVERED, 0),
        (PurchaseState.CREDITED, 0),
    ],
)
async def test_each_open_purchase_keeps_back_what_it_may_still_cost(
    buyer: Node, dear: FakeChain, state: PurchaseState, kept: int
) -> None:
    alone, beside = purse_of(buyer), purse_of(buyer, bought(1, state))
    assert await alone.left(SELLER) - await beside.left(SELLER) == kept


async def test_a_price_that_is_away_already_is_not_kept_back_once_more(
    buyer: Node, dear: FakeChain
) -> None:
    """The chain has the deposit, and it is not deep enough yet for the purchase to be told."""
    record = bought(1, PurchaseState.FUNDING)
    alone, beside = purse_of(buyer), purse_of(buyer, record)
    dear.deals[record.trade_id] = Deal(EscrowState.FUNDED, wall(), digest(DOMAIN, record.quote))
    assert await alone.left(SELLER) - await beside.left(SELLER) == BID_HEADROOM * DISPUTE


async def test_an_account_that_could_not_pay_for_its_dispute_has_nothing_to_bid(
    buyer: Node, dear: FakeChain
) -> None:
    purse, least = purse_of(buyer), BID_HEADROOM * BOTH + GAS_RESERVE
    for held, left in ((0, 0), (GAS_RESERVE + 5, 0), (least, 0), (least + 1, 1)):
        dear.balances[BUYER] = held
        assert await purse.left(SELLER) == left


async def test_a_budget_bounds_what_the_account_holds(buyer: Node, dear: FakeChain) -> None:
    assert await purse_of(buyer, budget=Wei(7)).left(SELLER) == 7
    dear.balances[BUYER] = 0
    assert await purse_of(buyer, budget=Wei(7)).left(SELLER) == 0


async def test_one_bid_for_goods_of_several_leaves_the_gas_of_a_trade_with_each(
    buyer: Node, dear: FakeChain
) -> None:
    held, purse = 10 * ETHER, purse_of(buyer)
    both = BID_HEADROOM * (2 * DEPOSIT + DISPUTE + SLASHING)
    assert await purse.left(SELLER, BROKER) == held - both - GAS_RESERVE


# ── before the deposit ──


async def test_a_deposit_is_begun_only_with_the_money_for_its_dispute(
    buyer: Node, dear: FakeChain
) -> None:
    record = bought(0)
    purse = purse_of(buyer, record)
    dear.balances[BUYER] = enough = ETHER + FUND_HEADROOM * BOTH
    await purse.require(record)
    dear.balances[BUYER] -= 1
    with pytest.raises(UnfundedAccountError, match=f"holds {enough - 1} wei and needs {enough}"):
        await purse.require(record)
    dear.balances[BUYER], dear.base_fee = enough, dear.base_fee + 1  # fees rose since the bid
    with pytest.raises(UnfundedAccountError):
        await purse.require(record)


async def test_a_deposit_takes_nothing_of_what_other_purchases_need(
    buyer: Node, dear: FakeChain
) -> None:
    """Those that fetch ask for themselves, or each of two could wait for the other."""
    record, funding = bought(0), bought(1, PurchaseState.FUNDING)
    revealed, fetching = bought(2, PurchaseState.REVEALED), bought(3)
    purse = purse_of(buyer, record, funding, revealed, fetching)
    needed = 2 * ETHER + FUND_HEADROOM * (2 * BOTH + DISPUTE)
    dear.balances[BUYER] = needed
    await purse.require(record)
    dear.balances[BUYER] -= 1
    with pytest.raises(UnfundedAccountError):
        await purse.require(record)


async def test_of_two_purchases_that_ask_at_one_time_only_one_is_paid_from_the_same_money(
    buyer: Node, dear: FakeChain
) -> None:
    """What the other began while the chain was asked counts."""
    record, other = bought(0), bought(1)
    purse = purse_of(buyer, record, other)
    dear.balances[BUYER] = ETHER + FUND_HEADROOM * BOTH
    trades = purse._desk.open_trades()

    def begin_the_other(name: str) -> None:
        if name == "balance":
            trades[1].machine.state = PurchaseState.FUNDING

    await purse.require(record)
    buyer.escrow.after = begin_the_other
    with pytest.raises(UnfundedAccountError):
        await purse.require(record)
