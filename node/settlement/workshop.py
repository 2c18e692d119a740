"""What a node does for its trades besides transactions, and goods that are disputed at first sight.

A dispute window begins in the block of the reveal, and may be over before that block is as deep
as the node's confirmations. So a buyer opens its goods as soon as it sees the secret, and
disputes bad ones at once. Its machine is told nothing of that: it hears of the reveal, and of
the dispute, when they are deep. A reveal that is undone has cost nothing then: the chain is asked
before a dispute is sent, and one that is mined without its reveal reverts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

import trio

from node.chain.port import Dispute, RevealedEvent
from node.chronicle import OurFault
from node.journal import JournalError
from node.observe import Observer
from node.protocol.errors import MarketError
from node.protocol.events import BadGoods, PurchaseEvent, Step
from node.protocol.purchase import Purchase, PurchaseRecord, PurchaseState
from node.protocol.types import Digest
from node.settlement.trade import Trade
from node.settlement.treasury import FIRST_BACKOFF, LONGEST_BACKOFF, Ending, Treasury

LONGEST_REPAIR: Final = 60.0
"""Between two tries to open goods that our own disk withholds."""
_NOT_DISPUTING_YET: Final = frozenset(
    {PurchaseState.FUNDING, PurchaseState.FUNDED, PurchaseState.REFUNDING, PurchaseState.REVEALED}
)


class Workshop(Protocol):
    """What a node does for its trades besides transactions."""

    async def fetch_goods(self, purchase: PurchaseRecord) -> PurchaseEvent:
        """Return `GoodsVerified` or `GoodsRefused`; keep trying while that can still help."""

    async def deliver(self, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
        """Return `Delivered` or `BadGoods`. May be asked again for the same goods."""

    async def publish_receipt(self, receipt: bytes) -> None:
        """Tell the market."""


class Unpacking:
    """Opens the goods of purchases, once at a time for each."""

    def __init__(self, treasury: Treasury, workshop: Workshop, observer: Observer) -> None:
        self._treasury = treasury
        self._workshop = workshop
        self._observer = observer

    async def deliver(
        self, trade: Trade, secret: Digest, *, wanted: Callable[[], bool] = lambda: True
    ) -> PurchaseEvent | None:
        """Open what was paid for. A fault of our own must be mended, and ends nothing.

        None once that is not `wanted` any more.
        """
        pause = FIRST_BACKOFF
        while wanted():
            record = trade.machine.record
            assert isinstance(record, PurchaseRecord)
            try:
                async with trade.opening:
                    return await self._workshop.deliver(record, secret)
            except JournalError:
                raise
            except MarketError as error:
                self._observer.emit(OurFault(during="deliver", reason=str(error)))
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_REPAIR)
        return None

    @staticmethod
    def may_dispute(trade: Trade, event: RevealedEvent) -> bool:
        """Whether a reveal that is not deep yet is news to this trade's buyer."""
        machine, quote = trade.machine, trade.quote
        return (
            isinstance(machine, Purchase)
            and quote is not None
            and not trade.glimpsed
            and machine.state in _NOT_DISPUTING_YET - {PurchaseState.REVEALED}
            and hashlib.sha256(event.secret).digest() == quote.secret_commitment
        )

    async def dispute_early(self, trade: Trade, secret: Digest) -> None:
        """Open the goods, and dispute them if they are bad, until the machine does so itself."""
        machine = trade.machine
        assert isinstance(machine, Purchase)

        def wanted() -> bool:
            return machine.state in _NOT_DISPUTING_YET

        opened = await self.deliver(trade, secret, wanted=wanted)
        if not isinstance(opened, BadGoods):
            return
        call = Dispute(machine.record.quote, opened.evidence)
        while wanted():
            ending = await self._treasury.carry_out(
                machine.record.trade_id, Step.DISPUTE, call, wanted=wanted
            )
            if ending is Ending.DONE:
                return
            await trio.sleep(LONGEST_BACKOFF)  # undone: it may be mined once more
