"""What the chain did is told in order, deep enough, and never skipped: over outages and deaths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio

from node.chain.port import Block, EscrowEvent, Fund
from node.chronicle import ChainAway, ChainBack
from node.protocol.types import Digest
from node.settlement.watch import BLOCKS_A_CALL
from tests.settlement.fake_chain import FakeChain, FakeEscrow, down
from tests.settlement.trades import BUYER, SELLER, DeathError, Node, long_quote_of


@dataclass
class Listener:
    """Hears a watch, and checks what must hold at every word."""

    chain: FakeChain
    confirmations: int
    events: list[EscrowEvent] = field(default_factory=list)
    ticks: list[Block] = field(default_factory=list)
    dies_at: int = -1

    @property
    def head(self) -> int:
        return self.chain.blocks[-1].number

    @property
    def trades(self) -> list[Digest]:
        return [event.trade_id for event in self.events]  # type: ignore[union-attr]

    async def tell(self, event: EscrowEvent) -> None:
        assert self.head - event.block >= self.confirmations
        if len(self.events) == self.dies_at:
            self.dies_at = -1
            raise DeathError
        await trio.sleep(0.01)
        self.events.append(event)

    async def tick(self, block: Block) -> None:
        assert self.head - block.number >= self.confirmations
        assert block == self.chain.blocks[block.number]
        happened = [e for e in self.chain.events if e.block <= block.number]
        assert set(happened) <= set(self.events), "a tick ran ahead of the events"
        self.ticks.append(block)


async def trade_on(chain: FakeChain, times: int, pause: float = 1.3) -> list[Digest]:
    """Fund so many trades, one after the other, from a wallet of its own."""
    wallet = FakeEscrow(chain, BUYER)
    quotes = [long_quote_of(number, price=1_000) for number in range(times)]
    for quote in quotes:
        wallet.broadcast(wallet.sign(Fund(quote, b""), wallet.next_nonce()).raw)
        await trio.sleep(pause)
    return [quote.trade_id for quote in quotes]


def flapping(every: int) -> Callable[[str], None]:
    calls = 0

    def hook(name: str) -> None:
        nonlocal calls
        calls += 1
        if calls % every == 0:
            down(name)

    return hook


@pytest.mark.parametrize("confirmations", [0, 1, 3])
@pytest.mark.parametrize("flaps", [False, True], ids=["steady", "flapping"])
async def test_only_what_is_deep_enough_is_told_and_no_tick_runs_ahead(
    node_of: Callable[..., Node], chain: FakeChain, confirmations: int, flaps: bool
) -> None:
    node = node_of(SELLER, confirmations=confirmations)
    listener = Listener(chain, confirmations)
    if flaps:
        node.escrow.before, node.escrow.after = flapping(3), flapping(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.watch.run, listener.tell, listener.tick)
        await node.watch.up.wait()
        traded = await trade_on(chain, 12)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert listener.trades == traded
    assert len(listener.ticks) > 12
    times = [block.time for block in listener.ticks]
    assert times == sorted(times)
    assert listener.ticks[-1].time >= chain.blocks[-1 - confirmations].time - 10


@pytest.mark.parametrize("confirmations", [0, 2])
async def test_a_node_that_died_is_told_again_and_nothing_is_skipped(
    node_of: Callable[..., Node], chain: FakeChain, confirmations: int
) -> None:
    node = node_of(SELLER, confirmations=confirmations)
    listener = Listener(chain, confirmations)
    deaths = [0, 1, 3, 3, 5]

    async def live() -> None:
        while True:
            listener.dies_at = deaths[0] if deaths else -1
            try:
                await node.watch.run(listener.tell, listener.tick)
            except DeathError:
                deaths.pop(0)
                node.journal.close()
                node.wake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await node.watch.up.wait()
        traded = await trade_on(chain, 6)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert not deaths
    assert [i for n, i in enumerate(listener.trades) if i not in listener.trades[:n]] == traded


async def test_a_death_between_the_telling_and_the_watermark_tells_twice_and_skips_nothing(
    node_of: Callable[..., Node], chain: FakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_of(SELLER)
    listener = Listener(chain, 0)
    with trio.move_on_after(3):
        await node.watch.run(listener.tell, listener.tick)
    traded = await trade_on(chain, 1)
    await trio.sleep(3)
    journal = node.journal

    def die(name: str, value: object) -> None:
        raise DeathError

    monkeypatch.setattr(journal, "remember", die)
    with pytest.raises(DeathError):
        await node.watch.run(listener.tell, listener.tick)
    journal.close()
    node.wake()
    with trio.move_on_after(3):
        await node.watch.run(listener.tell, listener.tick)
    assert listener.trades == traded * 2


async def test_a_new_node_is_not_told_of_times_before_its_own(
    seller: Node, chain: FakeChain
) -> None:
    await trade_on(chain, 3)
    await trio.sleep(5)
    chain.advance()
    listener = Listener(chain, 0)
    listener.events = list(chain.events)  # it need not hear them
    before = len(listener.events)
    with trio.move_on_after(5):
        await seller.watch.run(listener.tell, listener.tick)
    assert len(listener.events) == before
    assert listener.ticks


async def test_a_long_absence_is_caught_up_with_in_bounded_questions(
    seller: Node, chain: FakeChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(chain, 0)
    with trio.move_on_after(1):
        await seller.watch.run(listener.tell, listener.tick)
    traded = await trade_on(chain, 3, pause=1.0 * BLOCKS_A_CALL)
    asked: list[tuple[int, int]] = []
    events = seller.escrow.events

    def ask(first: int, last: int) -> list[EscrowEvent]:
        asked.append((first, last))
        return events(first, last)

    monkeypatch.setattr(seller.escrow, "events", ask)
    with trio.move_on_after(1):
        await seller.watch.run(listener.tell, listener.tick)
    assert listener.trades == traded
    assert len(asked) >= 2
    assert all(last - first < BLOCKS_A_CALL for first, last in asked)
    assert [first for first, _ in asked[1:]] == [last + 1 for _, last in asked[:-1]]


async def test_a_rewind_that_is_asked_for_while_a_block_is_told_is_not_forgotten(
    seller: Node, chain: FakeChain
) -> None:
    """Or what an endpoint left out stays unknown until the next doubt, and then again."""
    listener = Listener(chain, 0)

    async def tell(event: EscrowEvent) -> None:
        await listener.tell(event)
        if len(listener.events) == 3:
            seller.watch.rewind(1_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(seller.watch.run, tell, listener.tick)
        await seller.watch.up.wait()
        traded = await trade_on(chain, 3)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert listener.trades == traded * 2


async def test_an_outage_is_told_once_and_its_end_too(seller: Node, chain: FakeChain) -> None:
    listener = Listener(chain, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seller.watch.run, listener.tell, listener.tick)
        await trio.sleep(3)
        for _ in range(2):
            seller.escrow.before = down
            await trio.sleep(60)
            assert len(seller.escrow.asked) < 100  # it backs off
            seller.escrow.before = lambda _: None
            await trio.sleep(10)
            seller.escrow.asked.clear()
        nursery.cancel_scope.cancel()
    told = [type(event) for event in seller.heard]
    assert told == [ChainAway, ChainBack, ChainAway, ChainBack]
    assert "connection refused" in seller.told(ChainAway)[0].reason  # type: ignore[attr-defined]
