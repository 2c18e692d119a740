"""Three nodes on one chain, with trades that they have agreed on, and ways to kill them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from node.chain.port import Finalize, Reveal
from node.journal import TradeRow
from node.observe import Event
from node.protocol import cbor
from node.protocol.brokerage import Brokerage
from node.protocol.purchase import Purchase
from node.protocol.sale import Sale
from node.protocol.schema import to_map
from node.settlement.trade import Machine
from tests.settlement.fake_chain import DOMAIN, ETHER, FakeChain, deposits
from tests.settlement.trades import (
    BROKER,
    BUYER,
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
        paid = [one.quote.trade_id for t in chain.history for one in deposits(t.call)]
        assert sorted(paid) == sorted(quote.trade_id for quote in self.quotes)
        for kind in (Reveal, Finalize):
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
