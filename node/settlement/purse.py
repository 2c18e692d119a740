"""What a buyer may still bid: its ether, less what is promised, and what its budget leaves."""

from __future__ import annotations

from typing import Final

from node.journal import Journal
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.types import Wei
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury

GAS_RESERVE: Final = Wei(10**15)
"""Kept back for gas: a deposit that cannot be sent in time ends its trade."""
_PROMISED: Final = frozenset({PurchaseState.FETCHING, PurchaseState.FUNDING})
_UNSPENT: Final = frozenset({PurchaseState.ABANDONED, PurchaseState.REFUNDED})


class Purse:
    """The money of one account, as its purchases see it."""

    def __init__(
        self, treasury: Treasury, desk: TradeDesk, journal: Journal, *, budget: Wei | None
    ) -> None:
        """`budget`: most to spend on purchases in all; None for what the account holds."""
        self._treasury = treasury
        self._desk = desk
        self._journal = journal
        self._budget = budget

    async def left(self) -> Wei:
        """Return the most that a bid may be now. Raises `ChainUnavailableError`."""
        account = self._treasury.escrow.account
        held = await self._treasury.ask(lambda escrow: escrow.balance(account))
        # asked for after the balance: what was promised meanwhile must count
        open_now = [t.machine for t in self._desk.open_trades() if isinstance(t.machine, Purchase)]
        promised = sum(m.record.quote.price for m in open_now if m.state in _PROMISED)
        left = held - promised - GAS_RESERVE
        if self._budget is not None:
            left = min(left, self._budget - self._spent())
        return Wei(max(0, left))

    def _spent(self) -> int:
        """Add up every purchase whose money is away, or about to be."""
        total = 0
        for row in self._journal.trades(role="buyer"):
            trade = self._desk.find(row.trade_id, "buyer")
            if trade is not None and isinstance(trade.machine, Purchase):
                state = trade.machine.state
                total += 0 if state in _UNSPENT else trade.machine.record.quote.price
        return total
