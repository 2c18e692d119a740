"""The ledger of a market, from the chain's own events: wei in = wei out, or it says where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, assert_never

from node.chain.port import (
    DisputedEvent,
    Escrow,
    EscrowState,
    FundedEvent,
    PaidEvent,
    RefundedEvent,
    RevealedEvent,
    WithdrawnEvent,
)
from node.protocol.types import Digest, Wei

OPEN_STATES: Final = (EscrowState.FUNDED, EscrowState.REVEALED)
BLOCKS_A_CALL: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Every amount in wei."""

    deposited: Wei
    paid_out: Wei
    """To sellers, whether they have drawn it yet or not."""
    fees: Wei
    """To brokers, likewise."""
    refunded: Wei
    """Back to buyers, likewise, for want of a key or for a leaf that was bad."""
    credited: Wei
    """What of these three was not drawn yet."""
    held: Wei
    """In trades that are still open."""
    stuck: int
    """What the escrow holds beyond that, or lacks."""
    open_trades: int
    states: dict[Digest, EscrowState]

    @property
    def balances(self) -> bool:
        """Whether every wei that came in went out, and no trade is open."""
        return self.stuck == 0 and self.open_trades == 0 and self.credited == 0 and self.held == 0

    def document(self) -> dict[str, object]:
        """Return the ledger as JSON: wei as decimal strings."""
        amounts = ("deposited", "paid_out", "fees", "refunded", "credited", "held", "stuck")
        return {
            **{name: str(getattr(self, name)) for name in amounts},
            "open_trades": self.open_trades,
            "balances": self.balances,
        }


def read_ledger(escrow: Escrow) -> Ledger:
    """Add up every event of the escrow, and hold it against what it held at that very block.

    A market that goes on meanwhile changes nothing. Raises `ChainUnavailableError`.
    """
    deposits: dict[Digest, Wei] = {}
    states: dict[Digest, EscrowState] = {}
    owed: Counter[str] = Counter()
    withdrawn = 0
    last = escrow.head().number
    for first in range(0, last + 1, BLOCKS_A_CALL):
        for event in escrow.events(first, min(last, first + BLOCKS_A_CALL - 1)):
            match event:
                case FundedEvent():
                    deposits[event.trade_id] = event.price
                    states[event.trade_id] = EscrowState.FUNDED
                case RevealedEvent():
                    states[event.trade_id] = EscrowState.REVEALED
                case PaidEvent():
                    states[event.trade_id] = EscrowState.PAID
                    owed["paid_out"] += event.to_seller
                    owed["fees"] += event.fee
                case RefundedEvent():
                    states[event.trade_id] = EscrowState.REFUNDED
                    owed["refunded"] += event.amount
                case DisputedEvent():
                    states[event.trade_id] = EscrowState.DISPUTED
                    owed["refunded"] += event.amount
                case WithdrawnEvent():
                    withdrawn += event.amount
                case _:
                    assert_never(event)
    held = sum(deposits[i] for i, state in states.items() if state in OPEN_STATES)
    deposited, settled = sum(deposits.values()), sum(owed.values())
    credited = settled - withdrawn
    unexplained = escrow.balance(escrow.domain.escrow, block=last) - held - credited
    unaccounted = deposited - held - settled
    return Ledger(
        deposited=Wei(deposited),
        paid_out=Wei(owed["paid_out"]),
        fees=Wei(owed["fees"]),
        refunded=Wei(owed["refunded"]),
        credited=Wei(credited),
        held=Wei(held),
        stuck=abs(unexplained) + abs(unaccounted),
        open_trades=sum(state in OPEN_STATES for state in states.values()),
        states=states,
    )
