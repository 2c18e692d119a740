"""Finds a trade whose chain has gone further than its machine was told.

Events come from an endpoint's logs, and an endpoint can answer for a block that its own logs
have not reached. So now and then each open trade's state on chain is held against the one
that its machine believes in, and before a trade is given up it always is. What
differs is mended by telling the last blocks again: machines take no notice of what they know.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

from node.chain.port import EscrowState
from node.protocol.brokerage import Brokerage, BrokerageRecord, BrokerageState
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.sale import Sale, SaleState
from node.protocol.types import UnixTime

Machine = Purchase | Sale | Brokerage
State = PurchaseState | SaleState | BrokerageState

REWIND_BLOCKS: Final = 2_000
AGAIN_SECONDS: Final = 30.0

_NONE, _FUNDED, _REVEALED = EscrowState.NONE, EscrowState.FUNDED, EscrowState.REVEALED
_BELIEVED: Final[dict[State, frozenset[EscrowState]]] = {
    PurchaseState.FETCHING: frozenset({_NONE}),
    PurchaseState.FUNDING: frozenset({_NONE}),
    PurchaseState.FUNDED: frozenset({_FUNDED}),
    PurchaseState.REFUNDING: frozenset({_FUNDED}),
    PurchaseState.DISPUTING: frozenset({_REVEALED}),
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
    """Return whether a tick at `chain_time` ends the trade: never funded, lapsed, or too late
    to be disputed.
    """
    record = machine.record
    quote = record.deal.quote if isinstance(record, BrokerageRecord) else record.quote
    if quote is None:
        return False
    if machine.state is PurchaseState.DISPUTING:
        assert isinstance(machine, Purchase)
        return chain_time > machine.disputable_until
    late, lapsed = chain_time > quote.fund_by, chain_time > quote.lapses_after
    return (late and machine.state in _UNFUNDED) or (lapsed and machine.state in _LAPSING)


class View(enum.Enum):
    """What a machine believes of its trade, beside what the chain says."""

    AGREES = "agrees"
    NOT_YET = "not-yet"
    """The chain has gone further, and nobody was to be told of it so far."""
    MISSED = "missed"
    """Something was to be told, and was not."""


class Doubts:
    """Has the last blocks told once more: further back each time, and not all the time."""

    def __init__(self, rewind: Callable[[int], None]) -> None:
        self._rewind = rewind
        self._count = 0
        self._again_from = -math.inf
        self.told_until = UnixTime(0)
        """The chain's time up to which all was told: as deep as the confirmations."""

    def about(self, since: UnixTime) -> View:
        """Judge a difference by when the chain came to be where it is."""
        return View.NOT_YET if since > self.told_until else View.MISSED

    def tell_again(self, now: float) -> None:
        """Rewind, unless that was done a moment ago; `now` is trio's clock."""
        if now >= self._again_from:
            self._again_from = now + AGAIN_SECONDS
            self._rewind(REWIND_BLOCKS << min(self._count, 20))
            self._count += 1

    def settle(self) -> None:
        """Nothing differs any more: a later doubt begins with few blocks again."""
        self._count = 0
