"""Finds a trade whose chain has gone further than its machine was told.

Events come from an endpoint's logs, and an endpoint can answer for a block that its own logs
have not reached. So now and then each open trade's state on chain is held against the one
that its machine believes in, and before a trade is given up it always is. What
differs is mended by telling the last blocks again: machines take no notice of what they know.
"""

from __future__ import annotations

from typing import Final

from node.chain.port import EscrowState
from node.protocol.brokerage import Brokerage, BrokerageRecord, BrokerageState
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.sale import Sale, SaleState
from node.protocol.types import UnixTime

Machine = Purchase | Sale | Brokerage
State = PurchaseState | SaleState | BrokerageState

REWIND_BLOCKS: Final = 2_000

_NONE, _FUNDED, _REVEALED = EscrowState.NONE, EscrowState.FUNDED, EscrowState.REVEALED
_BELIEVED: Final[dict[State, frozenset[EscrowState]]] = {
    PurchaseState.FETCHING: frozenset({_NONE}),
    PurchaseState.FUNDING: frozenset({_NONE}),
    PurchaseState.FUNDED: frozenset({_FUNDED}),
    PurchaseState.REFUNDING: frozenset({_FUNDED}),
    PurchaseState.DELIVERED: frozenset({_REVEALED}),
    SaleState.PREPARED: frozenset({_NONE}),
    SaleState.COUNTERSIGNED: frozenset({_NONE}),
    SaleState.REVEALING: frozenset({_FUNDED}),
    SaleState.WITHHELD: frozenset({_FUNDED}),
    SaleState.REVEALED: frozenset({_REVEALED}),
    SaleState.FINALIZING: frozenset({_REVEALED}),
    BrokerageState.PROPOSED: frozenset({_NONE}),
    BrokerageState.QUOTED: frozenset({_NONE}),
    BrokerageState.FUNDED: frozenset({_FUNDED}),
    BrokerageState.REVEALED: frozenset({_REVEALED}),
    BrokerageState.FINALIZING: frozenset({_REVEALED}),
}

_UNFUNDED: Final[frozenset[State]] = frozenset(
    {
        PurchaseState.FUNDING,
        SaleState.COUNTERSIGNED,
        BrokerageState.PROPOSED,
        BrokerageState.QUOTED,
    }
)
_LAPSING: Final[frozenset[State]] = frozenset(
    {
        PurchaseState.DELIVERED,
        SaleState.REVEALING,
        SaleState.WITHHELD,
        BrokerageState.FUNDED,
    }
)


def agrees(machine: Machine, on_chain: EscrowState) -> bool:
    """Return whether the machine knows where its trade stands; states of ours alone agree."""
    believed = _BELIEVED.get(machine.state)
    return believed is None or on_chain in believed


def gives_up(machine: Machine, chain_time: UnixTime) -> bool:
    """Return whether a tick at `chain_time` ends the trade: never funded, or lapsed."""
    record = machine.record
    quote = record.deal.quote if isinstance(record, BrokerageRecord) else record.quote
    if quote is None:
        return False
    late, lapsed = chain_time > quote.fund_by, chain_time > quote.lapses_after
    return (late and machine.state in _UNFUNDED) or (lapsed and machine.state in _LAPSING)
