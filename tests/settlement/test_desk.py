"""Trades of three nodes on one chain: each is seen to its end, whoever dies and whatever is cut."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from node.chain.port import Finalize, Fund, Refund, Reveal, Withdraw
from node.chronicle import OurFault, TradeChanged
from node.journal import JournalError, TradeRow
from node.observe import Event
from node.protocol import cbor
from node.protocol.brokerage import Brokerage
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase
from node.protocol.quote import Quote
from node.protocol.sale import Sale
from node.protocol.schema import to_map
from node.protocol.types import Wei
from node.settlement.desk import Machine
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, FakeEscrow, down
from tests.settlement.trades import (
    BROKER,
    BUYER,
    DISPUTE_WINDOW,
    FUND_BY,
    GRACE,
    REVEAL_BY,
    SELLER,
    DeathError,
    Node,
    begin,
    brokerage,
    purchase,
    quote_of,
    sale,
    secret_of,
    wall,
)

SIDES = {"buyer": BUYER, "seller": SELLER, "broker": BROKER}


class World:
    """A buyer, a seller and a broker, and the trades that they have agreed on."""

    def __init__(self, folder: Path, trades: int = 1) -> None:
        begin()
        folder.mkdir(parents=True, exist_ok=True)
        self.chain = FakeChain(wall)
        for account in SIDES.values():
            self.chain.balances[account] = 10 * ETHER
        self.quotes = [quote_of(number) for number in range(trades)]
        self.nodes = {side: Node(folder, self.chain, who) for side, who in SIDES.items()}
        for number, quote in enumerate(self.quotes):
            machines: dict[str, Machine] = {
                "buyer": Purchase(purchase(quote)),
                "seller": Sale(sale(quote, number)),
                "broker": Brokerage(brokerage(quote)),
            }
            for side, machine in machines.items():
                promise(self.nodes[side], side, machine)
        for node in self.nodes.values():
            node.journal.close()
            node.wake()

    async def settle(self, *, without: tuple[str, ...] = (), seconds: float = 200) -> None:
        """Run every node until all their trades are over; the others stay dead."""
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                alive = [node for side, node in self.nodes.items() if side not in without]
                for node in alive:
                    nursery.start_soon(node.live)
                while not all(node.over() for node in alive):
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()

    def states(self) -> list[tuple[str | None, ...]]:
        return [tuple(node.state(q) for node in self.nodes.values()) for q in self.quotes]

    def check_paid(self) -> None:
        """Everybody has what it was promised, to the wei, and nothing was sent in vain."""
        count = len(self.quotes)
        assert self.states() == [("complete", "paid", "paid")] * count
        chain = self.chain
        assert chain.balances[DOMAIN.escrow] == 0
        assert not any(chain.credits.values())
        assert chain.total == 30 * ETHER
        price = sum(q.price for q in self.quotes)
        fees = sum(q.fee for q in self.quotes)
        spent = {who: self.gas(who) for who in SIDES.values()}
        assert chain.balances[BUYER] == 10 * ETHER - price - spent[BUYER]
        assert chain.balances[SELLER] == 10 * ETHER + price - fees - spent[SELLER]
        assert chain.balances[BROKER] == 10 * ETHER + fees - spent[BROKER]
        for kind in (Fund, Reveal, Finalize):
            assert len(chain.calls(kind)) == count
        vain = [t for t in chain.history if not chain.mined[t.hash].succeeded]
        # two trades may both ask for what is owed to the account; that costs gas at worst
        assert count > 1 or not vain
        assert {chain.mined[t.hash].revert for t in vain} <= {"NothingOwed"}
        assert set(self.nodes["buyer"].bench.delivered) == {secret_of(n) for n in range(count)}
        assert self.nodes["broker"].bench.published

    def gas(self, account: str) -> int:
        return sum(self.chain.mined[t.hash].fee for t in self.chain.history if t.sender == account)


def promise(node: Node, side: str, machine: Machine) -> None:
    """Write a trade into a node's journal, as it was when the node last lived."""
    node.journal.remember("watermark", 0)
    node.journal.save_trade(
        TradeRow(
            trade_id=machine.record.trade_id,
            role=side,
            state=machine.state.value,
            over=False,
            record=cbor.encode(to_map(machine.record)),
        )
    )


def dies_once(node: Node, at: int, *, rewind: bool = False) -> Callable[[], int]:
    """Kill `node` at its event number `at`; returns how many events there were."""
    seen = 0

    def hook(_: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            if rewind:
                node.journal.remember("watermark", 0)
            raise DeathError

    node.on_event = hook
    return lambda: seen


# ── good trades ──


async def test_a_trade_is_seen_to_its_end_by_all_three(memory: Path) -> None:
    world = World(memory)
    await world.settle()
    world.check_paid()
    assert len(world.chain.history) == 5  # fund, reveal, finalize and two withdrawals


async def test_many_trades_go_on_beside_one_another(memory: Path) -> None:
    world = World(memory, trades=6)
    await world.settle()
    world.check_paid()


async def test_a_trade_that_is_opened_lives_as_one_that_was_resumed(memory: Path) -> None:
    world = World(memory, trades=0)
    quote = quote_of()
    world.quotes.append(quote)
    nodes = world.nodes
    async with trio.open_nursery() as nursery:
        for node in nodes.values():
            nursery.start_soon(node.live)
            await node.desk.running.wait()
        nodes["seller"].desk.open(Sale(sale(quote)))
        nodes["broker"].desk.open(Brokerage(brokerage(quote)))
        trade = nodes["buyer"].desk.open(Purchase(purchase(quote)))
        assert [t.machine for t in nodes["buyer"].desk.open_trades()] == [trade.machine]
        with pytest.raises(LocalProtocolError, match="known already as buyer"):
            nodes["buyer"].desk.open(Purchase(purchase(quote)))
        await trade.settled.wait()
        assert nodes["buyer"].state(quote) == "delivered"
        while not all(node.over() for node in nodes.values()):
            await trio.sleep(1)
        with pytest.raises(LocalProtocolError, match="known already"):
            nodes["buyer"].desk.open(Purchase(purchase(quote)))
        nursery.cancel_scope.cancel()
    world.check_paid()


async def test_a_payment_that_comes_while_the_goods_are_opened_is_not_missed(
    memory: Path,
) -> None:
    world = World(memory)
    world.nodes["buyer"].bench.delivering = 25  # the dispute window is 5 s
    await world.settle()
    world.check_paid()


@pytest.mark.parametrize("confirmations", [1, 4])
async def test_confirmations_delay_a_trade_and_change_nothing_else(
    memory: Path, confirmations: int
) -> None:
    world = World(memory)
    for node in world.nodes.values():
        node.confirmations = confirmations
        node.wake()
    fund_block = reveal_block = 0
    await world.settle()
    world.check_paid()
    fund_block = world.chain.mined[world.chain.calls(Fund)[0].hash].block
    reveal_block = world.chain.mined[world.chain.calls(Reveal)[0].hash].block
    assert reveal_block - fund_block > confirmations


# ── deaths ──


@pytest.mark.parametrize("rewind", [False, True], ids=["told on", "told all again"])
@pytest.mark.parametrize("side", SIDES)
async def test_a_node_may_die_at_any_of_its_events(memory: Path, side: str, rewind: bool) -> None:
    world = World(memory / "whole")
    count = dies_once(world.nodes[side], -1)
    await world.settle()
    assert count() >= 6
    for at in range(1, count() + 1):
        world = World(memory / str(at))
        node = world.nodes[side]
        dies_once(node, at, rewind=rewind)
        await world.settle()
        assert node.deaths == 1
        world.check_paid()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("side", SIDES)
async def test_a_node_may_die_at_any_call_that_changes_something(
    memory: Path, side: str, when: str
) -> None:
    """After `broadcast` and before the answer is the moment that no log can tell from before."""
    deaths = 0
    for at in range(1, 20):
        world = World(memory / str(at))
        node = world.nodes[side]
        seen = 0

        def hook(name: str, at: int = at) -> None:
            nonlocal seen
            if name in {"sign", "broadcast"}:
                seen += 1
                if seen == at:
                    raise DeathError

        setattr(node.escrow, when, hook)
        await world.settle()
        world.check_paid()
        deaths += node.deaths
        if node.deaths == 0:
            break
    assert deaths >= 2


async def test_all_three_may_die_again_and_again(memory: Path) -> None:
    world = World(memory, trades=3)
    for number, node in enumerate(world.nodes.values()):
        seen = 0

        def hook(_: Event, every: int = 3 + number) -> None:
            nonlocal seen
            seen += 1
            if seen % every == 0:
                raise DeathError

        node.on_event = hook
    await world.settle()
    deaths = [node.deaths for node in world.nodes.values()]
    assert min(deaths) >= 1
    assert sum(deaths) >= 6
    world.check_paid()


# ── outages ──


@pytest.mark.parametrize("side", SIDES)
async def test_an_endpoint_may_be_down_for_a_while_at_any_time(memory: Path, side: str) -> None:
    for at in range(0, 24, 2):
        world = World(memory / str(at))
        escrow = world.nodes[side].escrow

        def cut(name: str, begins: int = at) -> None:
            now = wall() - 1_700_000_000
            if begins <= now < begins + 9:
                down(name)

        escrow.before = cut
        await world.settle()
        world.check_paid()


async def test_an_endpoint_that_loses_a_tenth_of_all_words_costs_nobody_anything(
    memory: Path,
) -> None:
    world = World(memory, trades=3)
    calls = 0

    def lossy(name: str) -> None:
        nonlocal calls
        calls += 1
        if hashlib.sha256(calls.to_bytes(4, "big")).digest()[0] < 26:
            down(name)

    for node in world.nodes.values():
        node.escrow.before = node.escrow.after = lossy
    await world.settle()
    world.check_paid()


async def test_no_trade_is_opened_before_the_chain_has_answered_once(
    buyer: Node, chain: FakeChain
) -> None:
    """Or a deposit could be mined below the block from which the node is told."""
    quote = quote_of()

    def no_head(name: str) -> None:
        if name == "head":
            down(name)

    buyer.escrow.before = no_head
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buyer.desk.run)
        await trio.sleep(6)
        with pytest.raises(LocalProtocolError, match="not running"):
            buyer.desk.open(Purchase(purchase(quote)))
        assert not buyer.desk.running.is_set()
        assert not buyer.journal.trades()
        buyer.escrow.before = lambda _: None
        await buyer.desk.running.wait()
        trade = buyer.desk.open(Purchase(purchase(quote)))
        await trio.sleep(10)
        assert trade.machine.state.value == "funded"
        nursery.cancel_scope.cancel()


async def test_a_desk_with_open_trades_goes_on_though_the_chain_is_down(memory: Path) -> None:
    world = World(memory)
    buyer = world.nodes["buyer"]
    buyer.escrow.before = down
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buyer.live)
        with trio.fail_after(2):
            await buyer.desk.running.wait()
        await trio.sleep(2)
        assert buyer.state(world.quotes[0]) == "funding"
        nursery.cancel_scope.cancel()


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


async def test_bad_goods_end_the_purchase_with_the_leaf_and_leave_the_payment_pending(
    memory: Path,
) -> None:
    world = World(memory)
    buyer, quote = world.nodes["buyer"], world.quotes[0]
    buyer.bench.bad_leaf = 7
    with trio.move_on_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(buyer.live)
            nursery.start_soon(world.nodes["seller"].live)
    row = buyer.journal.trade(quote.trade_id, "buyer")
    assert row is not None
    assert (row.state, row.over) == ("cheated", True)
    assert "leaf 7" in str(buyer.heard[-1])


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


@pytest.mark.xfail(strict=True, reason="the port does not tell which terms were funded")
async def test_a_deposit_under_other_terms_of_the_same_price_buys_no_secret(memory: Path) -> None:
    """`reveal` reverts with WrongTerms then, but the secret is in its calldata, unpaid."""
    world = World(memory)
    other = dataclasses.replace(world.quotes[0], dispute_window=DISPUTE_WINDOW + 1)
    await fund_other_terms(world, other)
    assert not [t for t in world.chain.published if isinstance(t.call, Reveal)]


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
