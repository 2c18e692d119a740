"""Deposits that wait for one another are one payment: whole, once, and never at another's cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from node.chain.codec import GAS_LIMITS
from node.chain.port import Fund, FundMany
from node.chronicle import Saved, Sent, TransactionRefused
from node.observe import Event
from node.protocol.events import GoodsVerified, PurchaseEvent, Step
from node.protocol.purchase import PurchaseRecord
from node.protocol.quote import Quote
from node.protocol.types import Digest, UnixTime
from node.settlement.errand import Errand
from node.settlement.gathering import GATHER_SECONDS
from node.settlement.treasury import MOST_TOGETHER, Ending
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, down
from tests.settlement.trades import (
    BUYER,
    FUND_BY,
    START,
    Bench,
    DeathError,
    Node,
    always,
    long_quote_of,
    only_died,
    quote_of,
    wall,
)
from tests.settlement.world import World, dies_once


async def never_wait() -> None:
    await trio.lowlevel.checkpoint()


async def fund_all(
    node: Node, quotes: list[Quote], wanted: Callable[[], bool] = always
) -> dict[Digest, Ending]:
    """Have a treasury make these deposits; all are there before the first has its turn."""
    endings: dict[Digest, Ending] = {}

    async def one(quote: Quote) -> None:
        endings[quote.trade_id] = await node.treasury.carry_out(
            quote.trade_id, Step.FUND, Fund(quote, b"b" * 65), wanted=wanted, gather=never_wait
        )

    async with trio.open_nursery() as nursery:
        for quote in quotes:
            nursery.start_soon(one, quote)
    return endings


def quotes_of(count: int, *, price: int = ETHER // 100) -> list[Quote]:
    return [quote_of(number, price=price, fee=1) for number in range(count)]


def paid_in(chain: FakeChain) -> int:
    return chain.balances.get(DOMAIN.escrow, 0)


# ── one transaction ──


async def test_deposits_that_wait_for_one_another_are_one_transaction(
    buyer: Node, chain: FakeChain
) -> None:
    quotes = quotes_of(3)
    assert set((await fund_all(buyer, quotes)).values()) == {Ending.DONE}
    (mined,) = chain.history
    assert isinstance(mined.call, FundMany)
    assert {one.quote for one in mined.call.deposits} == set(quotes)
    assert mined.gas == 3 * GAS_LIMITS[FundMany]
    assert paid_in(chain) == sum(quote.price for quote in quotes)
    rows = [buyer.journal.transactions(quote.trade_id, "fund") for quote in quotes]
    assert [(len(each), each[0].shared, each[0].succeeded) for each in rows] == [(1, 3, True)] * 3
    assert sum(each[0].share for each in rows) == 60_000


async def test_one_transaction_makes_so_many_deposits_and_no_more(
    buyer: Node, chain: FakeChain
) -> None:
    quotes = quotes_of(MOST_TOGETHER + 2)
    assert set((await fund_all(buyer, quotes)).values()) == {Ending.DONE}
    (many, fewer) = chain.history
    assert isinstance(many.call, FundMany)
    assert isinstance(fewer.call, FundMany)
    assert [len(many.call.deposits), len(fewer.call.deposits)] == [MOST_TOGETHER, 2]


async def test_a_deposit_that_is_made_already_or_not_wanted_joins_no_other(
    buyer: Node, chain: FakeChain
) -> None:
    made, unwanted, wanted = quotes_of(3)
    buyer.escrow.broadcast(buyer.escrow.sign(Fund(made, b""), 0).raw)  # by another wallet
    await trio.sleep(5)
    buyer.treasury._gathered[unwanted.trade_id] = dataclasses.replace(
        _errand(unwanted), wanted=lambda: False
    )
    buyer.treasury._gathered[made.trade_id] = _errand(made)
    await fund_all(buyer, [wanted])
    assert [type(t.call) for t in chain.history] == [Fund, Fund]
    assert not buyer.journal.transactions(unwanted.trade_id)


def _errand(quote: Quote) -> Errand:
    return Errand(quote.trade_id, Step.FUND, Fund(quote, b"b" * 65), always, lambda: None)


# ── deaths ──


@pytest.mark.parametrize("kind", [Saved, Sent])
async def test_what_a_death_left_of_several_deposits_is_sent_as_it_was_by_any_of_them(
    buyer: Node, chain: FakeChain, kind: type[Event]
) -> None:
    quotes = quotes_of(3)
    buyer.on_event = lambda event: _dies(event, kind)
    with only_died():
        await fund_all(buyer, quotes)
    buyer.on_event = lambda _: None
    buyer.journal.close()
    buyer.wake()
    chain.base_fee += 3  # signing anew would give other bytes
    assert (await fund_all(buyer, [quotes[2]])) == {quotes[2].trade_id: Ending.DONE}
    assert (await fund_all(buyer, quotes[:2])) == {
        quote.trade_id: Ending.DONE for quote in quotes[:2]
    }
    assert len(chain.published) == len(chain.history) == 1
    assert paid_in(chain) == sum(quote.price for quote in quotes)


async def test_two_trades_that_are_killed_at_any_event_are_each_paid_for_once(
    memory: Path,
) -> None:
    world = World(memory / "whole", trades=2)
    count = dies_once(world.nodes["buyer"], at=0)
    await world.settle()
    world.check_paid()
    assert isinstance(world.chain.history[0].call, FundMany)
    for at in range(1, count() + 1):
        world = World(memory / str(at), trades=2)
        dies_once(world.nodes["buyer"], at)
        await world.settle()
        world.check_paid()
        assert world.nodes["buyer"].deaths == 1


@pytest.mark.parametrize("call", ["trade_state", "next_nonce", "sign", "broadcast", "receipt"])
async def test_an_answer_that_is_lost_makes_no_second_payment_of_any(
    buyer: Node, chain: FakeChain, call: str
) -> None:
    quotes, failures = quotes_of(3), 3

    def cut(name: str) -> None:
        nonlocal failures
        if name == call and failures:
            failures -= 1
            down(name)

    buyer.escrow.after = cut
    assert set((await fund_all(buyer, quotes)).values()) == {Ending.DONE}
    assert paid_in(chain) == sum(quote.price for quote in quotes)
    assert not [t for t in chain.history if not chain.mined[t.hash].succeeded]


async def test_a_nonce_that_somebody_took_makes_no_second_payment_of_any(
    buyer: Node, chain: FakeChain
) -> None:
    *quotes, other = quotes_of(4)
    buyer.on_event = _dies
    with only_died():
        await fund_all(buyer, quotes)
    buyer.on_event = lambda _: None
    buyer.journal.close()
    buyer.wake()
    buyer.escrow.broadcast(buyer.escrow.sign(Fund(other, b""), 0).raw)
    await trio.sleep(5)
    assert set((await fund_all(buyer, quotes)).values()) == {Ending.DONE}
    assert paid_in(chain) == sum(quote.price for quote in (*quotes, other))
    assert not [t for t in chain.history if not chain.mined[t.hash].succeeded]


async def test_a_deposit_of_which_something_may_still_be_mined_joins_no_other(
    buyer: Node, chain: FakeChain
) -> None:
    """It lies in the pool; made again with another, it would take both with it, and their gas."""
    pending, other = quotes_of(2)
    chain.paused = True
    buyer.on_event = lambda event: _dies(event, Sent)
    with only_died():
        await fund_all(buyer, [pending])
    buyer.on_event = lambda _: None
    buyer.treasury._gathered[pending.trade_id] = _errand(pending)

    async def mine_again() -> None:
        await trio.sleep(5)
        chain.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine_again)
        await fund_all(buyer, [other])
    assert [(type(t.call), chain.mined[t.hash].succeeded) for t in chain.history] == [
        (Fund, True),
        (Fund, True),
    ]
    assert len(buyer.journal.transactions(pending.trade_id)) == 1


def _dies(event: Event, kind: type[Event] = Saved) -> None:
    if isinstance(event, kind):
        raise DeathError


# ── where one of several is bad ──


def spoilt(quote: Quote) -> Quote:
    """One that the escrow refuses."""
    return dataclasses.replace(quote, leaf_count=7)


@pytest.mark.parametrize("simulates", [True, False], ids=["refused at once", "mined in vain"])
async def test_a_quote_that_the_escrow_refuses_keeps_no_other_from_being_paid(
    buyer: Node, chain: FakeChain, simulates: bool
) -> None:
    chain.simulates = simulates
    first, second, third = quotes_of(3)
    bad = spoilt(second)
    endings = await fund_all(buyer, [first, bad, third])
    assert endings == {
        first.trade_id: Ending.DONE,
        bad.trade_id: Ending.REVERTED,
        third.trade_id: Ending.DONE,
    }
    assert paid_in(chain) == first.price + third.price
    assert len([t for t in chain.history if isinstance(t.call, FundMany)]) == (not simulates)
    assert bool(buyer.told(TransactionRefused)) == simulates


async def test_several_that_are_too_dear_together_are_paid_for_as_far_as_the_money_goes(
    buyer: Node, chain: FakeChain
) -> None:
    """No more than one can be paid for: that one is, and the other waits for money in vain."""
    quotes = [
        dataclasses.replace(quote_of(n, price=ETHER, fee=1), fund_by=UnixTime(START + FUND_BY))
        for n in range(2)
    ]
    chain.balances[BUYER] = ETHER + ETHER // 2
    endings = await fund_all(buyer, quotes, lambda: wall() < START + FUND_BY)
    assert sorted(one.value for one in endings.values()) == ["done", "unwanted"]
    assert paid_in(chain) == ETHER


async def test_several_deposits_that_are_stuck_are_outbid_together(
    buyer: Node, chain: FakeChain
) -> None:
    quotes = [long_quote_of(number, price=ETHER // 100) for number in range(2)]

    async def fees_rise() -> None:
        await trio.sleep(0.01)
        chain.base_fee *= 5

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fees_rise)
        assert set((await fund_all(buyer, quotes)).values()) == {Ending.DONE}
    (mined,) = chain.history
    assert isinstance(mined.call, FundMany)
    assert {row.nonce for q in quotes for row in buyer.journal.transactions(q.trade_id)} == {0}


# ── waiting for one another ──


class Slow(Bench):
    """The goods of trade 1 come later than those of trade 0, or never."""

    late: float = 3.0

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        if purchase.trade_id == quote_of(1).trade_id:
            await trio.sleep(self.late)
        return GoodsVerified()


def slowed(memory: Path, late: float) -> World:
    world = World(memory, trades=2)
    for node in world.nodes.values():
        node.journal.close()
    world.nodes["buyer"].bench = Slow()
    world.nodes["buyer"].bench.late = late
    for node in world.nodes.values():
        node.wake()
    return world


async def test_a_deposit_waits_for_goods_that_are_still_on_their_way(memory: Path) -> None:
    world = slowed(memory, late=3)
    await world.settle()
    world.check_paid()
    assert len([t for t in world.chain.history if isinstance(t.call, FundMany)]) == 1


async def test_a_seller_that_keeps_its_goods_back_holds_up_no_other_deposit_for_long(
    memory: Path,
) -> None:
    world = slowed(memory, late=GATHER_SECONDS + 10)
    await world.settle()
    world.check_paid()
    first, second = world.chain.calls(Fund)
    blocks = [world.chain.mined[t.hash].block * world.chain.block_seconds for t in (first, second)]
    assert GATHER_SECONDS <= blocks[0] <= GATHER_SECONDS + 6
    assert blocks[1] >= GATHER_SECONDS + 10


async def test_while_more_is_agreed_on_deposits_are_held_back_and_no_other_step(
    memory: Path,
) -> None:
    world = World(memory, trades=2)
    with world.nodes["buyer"].desk.gathering.open():
        async with trio.open_nursery() as nursery:
            for node in world.nodes.values():
                nursery.start_soon(node.live)
            await trio.sleep(GATHER_SECONDS - 2)
            assert not world.chain.history
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    world.check_paid()
