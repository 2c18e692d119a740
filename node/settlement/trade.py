"""One open trade of a node: its machine, whoever waits for it, and its row in the journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from node.journal import JournalError, TradeRow
from node.protocol import cbor
from node.protocol.brokerage import Brokerage, BrokerageRecord
from node.protocol.errors import RemoteProtocolError
from node.protocol.purchase import Purchase, PurchaseRecord
from node.protocol.quote import Quote
from node.protocol.sale import Sale, SaleRecord
from node.protocol.schema import from_map
from node.protocol.types import Digest

Machine = Purchase | Sale | Brokerage
Record = PurchaseRecord | SaleRecord | BrokerageRecord
_SIDES: Final[dict[type[Machine], str]] = {
    Purchase: "buyer",
    Sale: "seller",
    Brokerage: "broker",
}

_SINCE: Final[dict[str, dict[str, cbor.Value]]] = {
    "buyer": {"layers": [], "revealed_at": 0, "evidence": None, "notice": b"", "tried_on": ""},
    "seller": {"told": False, "revealed_at": 0},
    "broker": {"revealed_at": 0, "notice": b""},
}
"""Fields that older records do not have yet: each that has a default."""


@dataclass
class Trade:
    """One open trade and whoever waits for it."""

    machine: Machine
    settled: trio.Event = field(default_factory=trio.Event)
    opening: trio.Lock = field(default_factory=trio.Lock)
    """Held by whoever opens its goods."""
    glimpsed: bool = False
    """Whether its goods were opened at the first sight of the secret."""

    @property
    def side(self) -> str:
        return _SIDES[type(self.machine)]

    @property
    def quote(self) -> Quote | None:
        record = self.machine.record
        return record.deal.quote if isinstance(record, BrokerageRecord) else record.quote


def roots_of(trade: Trade) -> set[Digest]:
    """Return the roots of the blobs that an open trade may still need."""
    match trade.machine.record:
        case PurchaseRecord() as record:
            measured = record.evaluation
            return {
                record.quote.offer_root,
                record.quote.goods_root,
                measured.base_root,
                measured.merged_root,
            }
        case SaleRecord() as record:
            return {record.offer_root, record.goods_root}
        case _:
            return set()


def machine_of(row: TradeRow) -> Machine:
    """Make a trade's machine again. Raises `JournalError` for a row that is not one of ours."""
    makers: dict[str, Callable[[cbor.Value], Machine]] = {
        "buyer": lambda v: Purchase(from_map(PurchaseRecord, v)),
        "seller": lambda v: Sale(from_map(SaleRecord, v)),
        "broker": lambda v: Brokerage(from_map(BrokerageRecord, v)),
    }
    try:
        record = cbor.decode(row.record)
        if isinstance(record, dict):
            record = {**_SINCE.get(row.role, {}), **record}
        return makers[row.role](record)
    except (KeyError, ValueError, RemoteProtocolError) as error:
        raise JournalError(f"trade {row.trade_id.hex()[:16]} is damaged: {error}") from error
