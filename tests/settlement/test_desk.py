"""Trades of three nodes on one chain: each is seen to its end, whoever dies and whatever is cut."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from node.chain.port import EscrowEvent, Fund, Reveal
from node.observe import Event
from node.protocol.brokerage import Brokerage
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase
from node.protocol.sale import Sale
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, down
from tests.settlement.trades import (
    DeathError,
    Node,
    brokerage,
    purchase,
    quote_of,
    sale,
    wall,
)
from tests.settlement.world import SIDES, World, dies_once

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


@pytest.mark.parametrize("side", SIDES)
async def test_an_endpoint_whose_logs_lag_behind_its_head_costs_nobody_anything(
    memory: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers for a block that its logs have not reached yet: what was in it is not told."""
    world = World(memory)
    escrow, chain = world.nodes[side].escrow, world.chain
    whole = escrow.events

    def lagging(first: int, last: int) -> list[EscrowEvent]:
        reached = chain.blocks[-1].number - 2
        return [event for event in whole(first, last) if event.block <= reached]

    monkeypatch.setattr(escrow, "events", lagging)
    await world.settle()
    assert world.states()[0] in {("complete", "paid", "paid"), ("refunded", "refunded", "refunded")}
    assert chain.balances[DOMAIN.escrow] == 0
    assert not any(chain.credits.values())
    assert chain.total == 30 * ETHER
