"""Trades that do not come off: nobody loses more than time and gas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trio

from node.chain.errors import AnswerLostError, TransactionRefusedError
from node.chain.port import (
    EscrowEvent,
    Fund,
    FundedEvent,
    Refund,
    Reveal,
    RevealedEvent,
    Withdraw,
)
from node.chronicle import OurFault, Sent, TradeChanged
from node.journal import JournalError, TradeRow
from node.observe import Event
from node.protocol import cbor
from node.protocol.brokerage import COLLECT_SECONDS, BrokerageRecord
from node.protocol.purchase import PurchaseRecord
from node.protocol.quote import Quote
from node.protocol.sale import SaleRecord
from node.protocol.types import UnixTime, Wei
from node.settlement.desk import RECONCILE_SECONDS
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeEscrow, down
from tests.settlement.trades import (
    BUYER,
    DISPUTE_WINDOW,
    FUND_BY,
    GRACE,
    REVEAL_BY,
    SELLER,
    DeathError,
    quote_of,
    secret_of,
    wall,
)
from tests.settlement.world import World, dies_once

# ── trades that do not come off ──


async def test_a_seller_that_never_reveals_costs_the_buyer_its_time_and_its_gas(
    memory: Path,
) -> None:
    world = World(memory)
    await world.settle(without=("seller",))
    assert world.states() == [("refunded", "countersigned", "refunded")]
    await world.settle()
    assert world.states() == [("refunded", "refunded", "refunded")]
    chain = world.chain
    assert chain.balances[BUYER] == 10 * ETHER - world.gas(BUYER)
    assert chain.balances[DOMAIN.escrow] == 0
    assert [type(t.call) for t in chain.history] == [Fund, Refund, Withdraw]


async def test_a_buyer_may_die_at_any_event_of_a_refund(memory: Path) -> None:
    world = World(memory / "whole")
    count = dies_once(world.nodes["buyer"], -1)
    await world.settle(without=("seller",))
    for at in range(4, count() + 1):
        world = World(memory / str(at))
        dies_once(world.nodes["buyer"], at, rewind=at % 2 == 0)
        await world.settle(without=("seller",))
        assert world.nodes["buyer"].deaths == 1
        assert world.nodes["buyer"].state(world.quotes[0]) == "refunded"
        assert [type(t.call) for t in world.chain.history] == [Fund, Refund, Withdraw]


async def test_a_seller_that_comes_back_after_reveal_by_keeps_its_secret(memory: Path) -> None:
    """Its reveal was journalled, signed even, and then the process was gone."""
    world = World(memory)
    seller, quote = world.nodes["seller"], world.quotes[0]

    def die(name: str) -> None:
        if name == "broadcast":
            seller.escrow.before = lambda _: None
            raise DeathError

    seller.escrow.before = die
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.nodes["buyer"].live)
        with pytest.RaisesGroup(DeathError, flatten_subgroups=True, allow_unwrapped=True):
            await seller.desk.run()
        assert seller.journal.transactions(quote.trade_id, "reveal")
        assert seller.state(quote) == "revealing"
        await trio.sleep(quote.reveal_by - wall())
        seller.journal.close()
        seller.wake()
        nursery.start_soon(seller.live)
        while not (seller.over() and world.nodes["buyer"].over()):
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert (world.nodes["buyer"].state(quote), seller.state(quote)) == ("refunded", "refunded")
    assert not [t for t in world.chain.published if isinstance(t.call, Reveal)]


async def test_a_secret_that_had_left_is_pursued_by_a_seller_that_comes_back_late(
    memory: Path,
) -> None:
    """Whoever watched the pool knows it: what is left to do is to be paid for it."""
    world = World(memory)
    seller, quote = world.nodes["seller"], world.quotes[0]

    def die(event: Event) -> None:
        if isinstance(event, Sent) and event.step == "reveal":
            seller.on_event = lambda _: None
            world.chain.pool.clear()
            raise DeathError

    seller.on_event = die
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.nodes["buyer"].live)
        nursery.start_soon(world.nodes["broker"].live)
        with pytest.RaisesGroup(DeathError, flatten_subgroups=True, allow_unwrapped=True):
            await seller.desk.run()
        await trio.sleep(quote.reveal_by + 2 - wall())
        seller.journal.close()
        seller.wake()
        nursery.start_soon(seller.live)
        while not all(node.over() for node in world.nodes.values()):
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    world.check_paid()


async def test_a_secret_whose_broadcast_was_not_answered_is_pursued_as_one_that_left(
    memory: Path,
) -> None:
    world = World(memory)
    seller, quote = world.nodes["seller"], world.quotes[0]

    def lose(name: str) -> None:
        if name == "broadcast":
            seller.escrow.before, seller.escrow.after = down, lambda _: None
            world.chain.pool.clear()
            raise AnswerLostError("no answer")

    seller.escrow.after = lose
    async with trio.open_nursery() as nursery:
        for node in world.nodes.values():
            nursery.start_soon(node.live)
        await trio.sleep(quote.reveal_by + 2 - wall())
        seller.escrow.before = lambda _: None
        while not all(node.over() for node in world.nodes.values()):
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    world.check_paid()


async def test_a_reveal_that_is_refused_for_a_while_is_tried_while_there_is_time(
    memory: Path,
) -> None:
    world = World(memory)
    seller = world.nodes["seller"]

    def refuse(name: str) -> None:
        if name == "broadcast" and wall() - 1_700_000_000 < FUND_BY:
            raise TransactionRefusedError("replacement transaction underpriced")

    seller.escrow.before = refuse
    await world.settle()
    world.check_paid()


async def test_one_trade_that_cannot_be_told_does_not_stop_the_clock_of_the_others(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(memory, trades=2)
    lost, good = world.quotes
    buyer = world.nodes["buyer"]
    whole = buyer.escrow.events

    def lossy(first: int, last: int) -> list[EscrowEvent]:
        return [
            e for e in whole(first, last)
            if not (isinstance(e, FundedEvent) and e.trade_id == lost.trade_id)
        ]  # fmt: skip

    monkeypatch.setattr(buyer.escrow, "events", lossy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buyer.live)
        await trio.sleep(good.refund_from + 20 - wall())
        assert buyer.state(good) == "refunded"  # nobody revealed; its refund began in time
        assert len(buyer.escrow.asked) < 3_000
        nursery.cancel_scope.cancel()


async def test_a_seller_that_vanishes_after_its_reveal_costs_the_broker_no_fee(
    memory: Path,
) -> None:
    world = World(memory)
    seller = world.nodes["seller"]
    gone = trio.CancelScope()

    def vanish(event: Event) -> None:
        if isinstance(event, TradeChanged) and event.state == "revealed":
            gone.cancel()

    seller.on_event = vanish
    async with trio.open_nursery() as nursery:
        for side in ("buyer", "broker"):
            nursery.start_soon(world.nodes[side].live)
        with gone:
            await seller.live()
        with trio.fail_after(2 * COLLECT_SECONDS):
            while not all(world.nodes[side].over() for side in ("buyer", "broker")):
                await trio.sleep(1)
        assert world.states() == [("complete", "revealed", "paid")]
        seller.journal.close()
        seller.wake()
        seller.on_event = lambda _: None
        nursery.start_soon(seller.live)
        while not seller.over():
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    world.check_paid()


def a_day_passes(world: World, quote: Quote) -> None:
    """On the chain alone: the next block is of the day after, and later ones come when needed."""
    world.chain.instant = True
    world.chain.mine(UnixTime(quote.lapses_after + 1))


async def test_trades_whose_buyer_has_vanished_lapse_and_what_comes_later_is_collected(
    memory: Path,
) -> None:
    world = World(memory)
    quote = world.quotes[0]
    wallet = FakeEscrow(world.chain, BUYER)
    await trio.sleep(1)
    world.nodes["seller"].escrow.before = down
    wallet.broadcast(wallet.sign(Fund(quote, b""), wallet.next_nonce()).raw)
    async with trio.open_nursery() as nursery:
        for side in ("seller", "broker"):
            nursery.start_soon(world.nodes[side].live)
        await trio.sleep(REVEAL_BY)
        world.nodes["seller"].escrow.before = lambda _: None
        await trio.sleep(10)
        assert world.states() == [("fetching", "withheld", "funded")]
        a_day_passes(world, quote)
        await trio.sleep(1)
        assert world.states() == [("fetching", "lapsed", "lapsed")]
        world.chain.credits[SELLER] = 5  # for a trade that this journal never knew to its end
        world.chain.balances[DOMAIN.escrow] += 5
        await trio.sleep(2 * RECONCILE_SECONDS)
        assert not world.chain.credits.get(SELLER)
        nursery.cancel_scope.cancel()
    assert not [t for t in world.chain.published if isinstance(t.call, Reveal)]


async def test_no_trade_lapses_of_which_a_log_was_missed(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(memory)
    quote, broker = world.quotes[0], world.nodes["broker"]
    seller = FakeEscrow(world.chain, SELLER)
    whole = broker.escrow.events
    missed = True

    def lossy(first: int, last: int) -> list[EscrowEvent]:
        return [e for e in whole(first, last) if not (missed and isinstance(e, RevealedEvent))]

    monkeypatch.setattr(broker.escrow, "events", lossy)
    async with trio.open_nursery() as nursery:
        for side in ("buyer", "broker"):
            nursery.start_soon(world.nodes[side].live)
        await trio.sleep(10)
        seller.broadcast(seller.sign(Reveal(quote, secret_of(0)), 0).raw)
        await trio.sleep(4)
        assert broker.state(quote) == "funded"
        missed = False
        a_day_passes(world, quote)
        await trio.sleep(10)
        assert broker.state(quote) == "paid"
        nursery.cancel_scope.cancel()


async def test_a_buyer_whose_seller_never_collects_is_done_in_the_end(memory: Path) -> None:
    world = World(memory)
    seller = FakeEscrow(world.chain, SELLER)
    quote = world.quotes[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.nodes["buyer"].live)
        await trio.sleep(10)
        seller.broadcast(seller.sign(Reveal(quote, secret_of(0)), 0).raw)
        await trio.sleep(10)
        assert world.nodes["buyer"].state(quote) == "delivered"
        a_day_passes(world, quote)
        await trio.sleep(1)
        assert world.nodes["buyer"].state(quote) == "complete"
        nursery.cancel_scope.cancel()


async def test_a_secret_that_is_told_late_but_first_is_used_and_paid_for(memory: Path) -> None:
    world = World(memory)
    quote = world.quotes[0]
    late = FakeEscrow(world.chain, SELLER)

    async def reveal_late() -> None:
        await trio.sleep(REVEAL_BY + 4)
        late.broadcast(late.sign(Reveal(quote, secret_of(0)), late.next_nonce()).raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reveal_late)
        with trio.fail_after(200):
            async with trio.open_nursery() as nodes:
                for side in ("buyer", "broker"):
                    nodes.start_soon(world.nodes[side].live)
                await trio.sleep(REVEAL_BY + 8)
                nodes.start_soon(world.nodes["seller"].live)
                while not all(node.over() for node in world.nodes.values()):
                    await trio.sleep(1)
                nodes.cancel_scope.cancel()
    assert world.states() == [("complete", "paid", "paid")]
    assert world.chain.balances[DOMAIN.escrow] == 0


async def test_a_buyer_that_never_funds_costs_the_seller_nothing(memory: Path) -> None:
    world = World(memory)
    await world.settle(without=("buyer",))
    assert world.states() == [("fetching", "expired", "expired")]
    assert not world.chain.published
    assert wall() - 1_700_000_000 >= FUND_BY


async def test_a_deposit_that_cannot_be_made_in_time_ends_the_trade(memory: Path) -> None:
    world = World(memory)
    world.chain.balances[BUYER] = 1
    await world.settle()
    assert world.states() == [("abandoned", "expired", "expired")]
    assert not world.chain.published


async def test_a_disk_that_is_full_before_the_payment_ends_that_trade_alone(memory: Path) -> None:
    world = World(memory, trades=2)
    world.nodes["buyer"].bench.full = 1
    await world.settle()
    assert sorted(world.states()) == [
        ("abandoned", "expired", "expired"),
        ("complete", "paid", "paid"),
    ]
    (fault,) = world.nodes["buyer"].told(OurFault)
    assert "disk-full" in fault.reason  # type: ignore[attr-defined]


async def test_a_disk_that_is_full_after_the_payment_is_waited_for(memory: Path) -> None:
    world = World(memory)
    buyer = world.nodes["buyer"]

    def fill(event: Event) -> None:
        if isinstance(event, TradeChanged) and event.state == "revealed":
            buyer.bench.full = 5

    buyer.on_event = fill
    await world.settle()
    world.check_paid()
    assert len(buyer.told(OurFault)) == 5


# ── what is not ours ──


async def test_events_of_other_peoples_trades_change_nothing(memory: Path) -> None:
    world = World(memory)
    stranger = FakeEscrow(world.chain, BUYER)
    other = quote_of(99)

    async def trade() -> None:
        for call in (Fund(other, b""), Reveal(other, secret_of(99))):
            stranger.broadcast(stranger.sign(call, stranger.next_nonce()).raw)
            await trio.sleep(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trade)
        await world.settle(without=("buyer",))
    assert world.nodes["seller"].state(world.quotes[0]) == "expired"


async def fund_other_terms(world: World, other: Quote) -> None:
    """A buyer in league with the broker pays for another quote of the same trade id."""
    assert other.trade_id == world.quotes[0].trade_id
    wallet = FakeEscrow(world.chain, BUYER)
    wallet.broadcast(wallet.sign(Fund(other, b""), wallet.next_nonce()).raw)
    with trio.move_on_after(REVEAL_BY + GRACE):
        await world.nodes["seller"].live()


async def test_a_deposit_of_another_price_buys_no_secret(memory: Path) -> None:
    world = World(memory)
    await fund_other_terms(world, dataclasses.replace(world.quotes[0], price=Wei(1), fee=Wei(0)))
    assert not [t for t in world.chain.published if isinstance(t.call, Reveal)]
    assert world.nodes["seller"].state(world.quotes[0]) == "expired"


async def test_a_deposit_under_other_terms_of_the_same_price_buys_no_secret(memory: Path) -> None:
    """`reveal` reverts with WrongTerms then, but the secret is in its calldata, unpaid."""
    world = World(memory)
    other = dataclasses.replace(world.quotes[0], dispute_window=DISPUTE_WINDOW + 1)
    await fund_other_terms(world, other)
    assert not [t for t in world.chain.published if isinstance(t.call, Reveal)]


async def test_rows_of_an_older_journal_are_read_with_what_they_could_not_say(
    memory: Path,
) -> None:
    world = World(memory)
    for side, kind in (
        ("buyer", PurchaseRecord),
        ("seller", SaleRecord),
        ("broker", BrokerageRecord),
    ):
        later = [
            field.name
            for field in dataclasses.fields(kind)
            if field.default is not dataclasses.MISSING
        ]
        assert "revealed_at" in later
        journal = world.nodes[side].journal
        row = journal.trade(world.quotes[0].trade_id, side)
        assert row is not None
        record = cbor.decode(row.record)
        assert isinstance(record, dict)
        for name in later:
            del record[name]
        journal.save_trade(dataclasses.replace(row, record=cbor.encode(record)))
    await world.settle()
    world.check_paid()


async def test_a_row_that_is_damaged_is_named_and_nothing_is_guessed(memory: Path) -> None:
    world = World(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    buyer.journal.save_trade(
        TradeRow(trade_id=quote.trade_id, role="buyer", state="funded", over=False, record=b"\xff")
    )
    with pytest.RaisesGroup(
        pytest.RaisesExc(JournalError, match=f"{quote.trade_id.hex()[:16]} is damaged"),
        flatten_subgroups=True,
        allow_unwrapped=True,
    ):
        await buyer.desk.run()
