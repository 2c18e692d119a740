"""The broker's side of one trade: a quote it answers for, and a fee that may come.

| state      | event                   | next       | effects           |
|------------|-------------------------|------------|-------------------|
| proposed   | countersigned           | quoted     |                   |
| proposed   | funded                  | funded     |                   |
| proposed   | revealed                | revealed   |                   |
| proposed   | chain is past fund_by   | expired    |                   |
| quoted     | funded                  | funded     |                   |
| quoted     | revealed                | revealed   |                   |
| quoted     | paid                    | credited   | publish, withdraw |
| quoted     | refunded                | refunded   |                   |
| quoted     | chain is past fund_by   | expired    |                   |
| funded     | revealed                | revealed   |                   |
| funded     | paid                    | credited   | publish, withdraw |
| funded     | refunded                | refunded   |                   |
| funded     | chain is past the lapse | lapsed     |                   |
| revealed   | payment is long due     | finalizing | finalize          |
| revealed   | paid                    | credited   | publish, withdraw |
| revealed   | disputed                | disputed   |                   |
| finalizing | paid                    | credited   | publish, withdraw |
| finalizing | disputed                | disputed   |                   |
| credited   | withdrawn               | paid       |                   |

The whole deal is in the record, and the quote is saved before the seller sees it: a buyer
that asks again is given the same quote, since two for one trade id are evidence against the
broker. One that was never countersigned is not proposed again; the buyer takes a new nonce.
A seller that vanishes after its reveal costs the broker no fee: some minutes after the payment
could have been finalized the broker does it. A trade that nobody reveals or refunds lapses.
A disputed trade pays no fee, and its receipt is never published: nothing was sold.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Final

from node.protocol.events import (
    BrokerageEvent,
    Disputed,
    Effect,
    Funded,
    Paid,
    PublishReceipt,
    Refunded,
    Revealed,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.messages import Deal
from node.protocol.schema import Message
from node.protocol.types import Digest, UnixTime


class BrokerageState(enum.Enum):
    PROPOSED = "proposed"
    QUOTED = "quoted"
    FUNDED = "funded"
    REVEALED = "revealed"
    FINALIZING = "finalizing"
    CREDITED = "credited"
    PAID = "paid"
    REFUNDED = "refunded"
    DISPUTED = "disputed"
    EXPIRED = "expired"
    LAPSED = "lapsed"


S = BrokerageState
BROKERAGE_ENDS: Final = frozenset({S.PAID, S.REFUNDED, S.DISPUTED, S.EXPIRED, S.LAPSED})
COLLECT_SECONDS: Final = 600
"""The seller finalizes its own payment; so long after the broker does it for its fee."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerageRecord(Message):
    """All that a broker must not forget of a quote; what the journal keeps."""

    state: str
    note: str
    deal: Deal
    revealed_at: UnixTime = UnixTime(0)
    notice: bytes = b""
    """Our terms under which was measured, as we signed them."""

    @property
    def trade_id(self) -> Digest:
        return self.deal.quote.trade_id


class Brokerage:
    """One trade, as its broker lives it."""

    def __init__(self, record: BrokerageRecord) -> None:
        self.record = record
        self.state = BrokerageState(record.state)

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.state in BROKERAGE_ENDS

    @property
    def settled(self) -> bool:
        """Nobody waits for the broker any more."""
        return self.over

    def resume(self, now: UnixTime) -> list[Effect]:
        """Return what this state owes the world; asked for after a restart."""
        return self._effects_of(self.state)

    def expire(self, now: UnixTime) -> list[Effect]:
        """A quote ends by the chain's clock only."""
        return []

    def may_send(self, step: Step, now: UnixTime) -> bool:
        """Whether `step` is still wanted."""
        if step is Step.FINALIZE:
            return self.state is S.FINALIZING
        return step is Step.WITHDRAW and self.state is S.CREDITED

    def countersigned(self, seller_signature: bytes) -> None:
        """Take the signature of the seller, which the shell has checked."""
        if self.state is S.PROPOSED:
            deal = dataclasses.replace(self.record.deal, seller_signature=seller_signature)
            self.record = dataclasses.replace(self.record, deal=deal)
            self._go(S.QUOTED)

    def receive(self, event: BrokerageEvent, now: UnixTime) -> list[Effect]:
        """Take one event. An event that says nothing new in this state changes nothing."""
        quote = self.record.deal.quote
        match self.state, event:
            case ((S.PROPOSED | S.QUOTED), Funded()):
                return self._go(S.FUNDED)
            case ((S.PROPOSED | S.QUOTED | S.FUNDED), Revealed(_, at)):
                self.record = dataclasses.replace(self.record, revealed_at=at)
                return self._go(S.REVEALED)
            case ((S.PROPOSED | S.QUOTED), Tick(time)) if time > quote.fund_by:
                return self._go(S.EXPIRED)
            case S.FUNDED, Tick(time) if time > quote.lapses_after:
                return self._go(S.LAPSED)
            case S.REVEALED, Tick(time) if time > self._long_due():
                return self._go(S.FINALIZING)
            case ((S.QUOTED | S.FUNDED | S.REVEALED | S.FINALIZING), Paid()):
                return self._go(S.CREDITED)
            case ((S.QUOTED | S.FUNDED), Refunded()):
                return self._go(S.REFUNDED)
            case ((S.REVEALED | S.FINALIZING), Disputed()):
                return self._go(S.DISPUTED)
            case S.CREDITED, Withdrawn():
                return self._go(S.PAID)
            case _:
                return []

    def _long_due(self) -> UnixTime:
        quote = self.record.deal.quote
        return UnixTime(self.record.revealed_at + quote.dispute_window + COLLECT_SECONDS)

    def _go(self, state: BrokerageState) -> list[Effect]:
        self.state = state
        self.record = dataclasses.replace(self.record, state=state.value)
        return self._effects_of(state)

    def _effects_of(self, state: BrokerageState) -> list[Effect]:
        match state:
            case S.FINALIZING:
                return [Transact(Step.FINALIZE)]
            case S.CREDITED:
                return [PublishReceipt(self.record.deal.receipt), Transact(Step.WITHDRAW)]
            case _:
                return []
