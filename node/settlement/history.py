"""What the journal says of a node's trades, for people and for reports."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from node.journal import Journal, JournalError
from node.settlement.trade import Trade, machine_of


class TradeSummary(TypedDict):
    trade_id: str
    side: str
    state: str
    over: bool
    price: str | None
    fee: str | None
    note: str
    transactions: dict[str, str]
    gas: dict[str, int]


def trade_rows(path: Path) -> list[TradeSummary]:
    """Return every trade in the journal at `path`. Raises `JournalError` if there is none."""
    if not path.exists():
        raise JournalError(f"there is no journal at {path}")
    journal = Journal(path, read_only=True)
    try:
        rows: list[TradeSummary] = []
        for row in journal.trades():
            trade = Trade(machine_of(row))
            sent = [t for t in journal.transactions(row.trade_id) if t.succeeded]
            rows.append(
                TradeSummary(
                    trade_id="0x" + row.trade_id.hex(),
                    side=row.role,
                    state=row.state,
                    over=row.over,
                    price=str(trade.quote.price) if trade.quote else None,
                    fee=str(trade.quote.fee) if trade.quote else None,
                    note=trade.machine.record.note,
                    transactions={t.step: "0x" + t.hash.hex() for t in sent},
                    gas={t.step: t.share for t in sent},
                )
            )
        return rows
    finally:
        journal.close()
