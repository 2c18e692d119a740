"""The seller's side of one trade.

It begins when the goods are encrypted for one buyer, and holds the seller's promise to
itself: *money or an unrevealed key*. The secret leaves only in a `reveal` transaction, only
for a trade that is funded as deep as the node's confirmations, and never once the chain is
past `reveal_by`: what is sent earlier the escrow accepts until somebody has refunded.

| state         | event                            | next          | effects  |
|---------------|----------------------------------|---------------|----------|
| prepared      | countersigned                    | countersigned |          |
| prepared      | clock is past prepared_until     | expired       |          |
| countersigned | funded, in time                  | revealing     | reveal   |
| countersigned | funded, too late                 | withheld      |          |
| countersigned | revealed                         | revealed      |          |
| countersigned | refunded                         | refunded      |          |
| countersigned | chain is past fund_by            | expired       |          |
| revealing     | secret sent                      | revealing     |          |
| revealing     | revealed                         | revealed      |          |
| revealing     | refunded                         | refunded      |          |
| revealing     | restarted, too late              | withheld      |          |
| revealing     | chain is past the lapse          | lapsed        |          |
| withheld      | revealed                         | revealed      |          |
| withheld      | refunded                         | refunded      |          |
| withheld      | chain is past the lapse          | lapsed        |          |
| revealed      | chain is past the dispute window | finalizing    | finalize |
| revealed      | paid                             | credited      | withdraw |
| revealed      | disputed                         | disputed      |          |
| finalizing    | paid                             | credited      | withdraw |
| finalizing    | disputed                         | disputed      |          |
| credited      | withdrawn                        | paid          |          |

A secret that has left, or may have, cannot be held back: the record says so, and its payment
is pursued however late it is, until somebody has refunded. (Only a process that dies in the
instant between its broadcast and this note does not know.) A withheld trade may yet be
revealed: by a transaction that left just before the process died. It lapses where the buyer
does not even take its money back. Once a trade is revealed, only a leaf that was proved to be bad
gives the buyer its money back: the seller has told its secret, and is not paid.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Final

from node.protocol.errors import LocalProtocolError
from node.protocol.events import (
    Disputed,
    Effect,
    Funded,
    Paid,
    Refunded,
    Revealed,
    SaleEvent,
    SecretSent,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.quote import Quote
from node.protocol.schema import Message
from node.protocol.types import Address, Digest, UnixTime, Wei

REVEAL_MARGIN: Final = 1
"""No reveal is begun in the last second before `reveal_by`."""


class SaleState(enum.Enum):
    PREPARED = "prepared"
    COUNTERSIGNED = "countersigned"
    REVEALING = "revealing"
    WITHHELD = "withheld"
    REVEALED = "revealed"
    FINALIZING = "finalizing"
    CREDITED = "credited"
    PAID = "paid"
    REFUNDED = "refunded"
    DISPUTED = "disputed"
    EXPIRED = "expired"
    LAPSED = "lapsed"


S = SaleState
SALE_ENDS: Final = frozenset({S.PAID, S.REFUNDED, S.DISPUTED, S.EXPIRED, S.LAPSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleRecord(Message):
    """All that a seller must not forget; what the journal keeps."""

    state: str
    note: str
    trade_id: Digest
    offer_digest: Digest
    offer_root: Digest
    buyer: Address
    buyer_key: Digest
    ask: Wei
    private_key: Digest = field(repr=False)
    """X25519, for this trade alone."""
    secret: Digest = field(repr=False)
    goods_root: Digest
    leaf_count: int
    byte_length: int
    prepared_until: UnixTime
    """When a quote that never came is given up."""
    quote: Quote | None
    broker_signature: bytes
    signature: bytes
    receipt: bytes
    told: bool = False
    """Whether the secret has left, and may be known."""
    revealed_at: UnixTime = UnixTime(0)


class Sale:
    """One trade, as its seller lives it. Only `receive`, `expire`, `countersign` change it."""

    def __init__(self, record: SaleRecord) -> None:
        self.record = record
        self.state = SaleState(record.state)
        self.chain_time = UnixTime(0)

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.state in SALE_ENDS

    @property
    def settled(self) -> bool:
        """The seller has its money, or lost it, or its key was never shown."""
        return self.over

    @property
    def deadline(self) -> UnixTime | None:
        """When `expire` is due by the seller's own clock."""
        return self.record.prepared_until if self.state is S.PREPARED else None

    def resume(self, now: UnixTime) -> list[Effect]:
        """Return what this state owes the world; asked for after a restart.

        A reveal that was journalled but perhaps never sent is owed only in time.
        """
        if self.state is S.REVEALING and not self._may_tell(now):
            return self._go(S.WITHHELD, note="restarted after reveal_by")
        self.expire(now)
        return self._effects_of(self.state)

    def expire(self, now: UnixTime) -> list[Effect]:
        """Give up what the seller's clock has run out for."""
        if self.deadline is not None and now > self.deadline:
            return self._go(S.EXPIRED, note="no quote came")
        return []

    def countersign(
        self, quote: Quote, *, broker_signature: bytes, signature: bytes, receipt: bytes
    ) -> None:
        """Take the quote that the shell has checked and signed. A second, other one is refused."""
        if self.state is not S.PREPARED and self.record.quote != quote:
            raise LocalProtocolError(f"sale {quote.trade_id.hex()[:16]} is {self.state.value}")
        if self.state is S.PREPARED:
            self.record = dataclasses.replace(
                self.record,
                quote=quote,
                broker_signature=broker_signature,
                signature=signature,
                receipt=receipt,
            )
            self._go(S.COUNTERSIGNED)

    def receive(self, event: SaleEvent, now: UnixTime) -> list[Effect]:
        """Take one event. An event that says nothing new in this state changes nothing."""
        if isinstance(event, Tick):
            self.chain_time = max(self.chain_time, event.chain_time)
        if self.record.quote is None:
            return []
        match self.state, event:
            case S.COUNTERSIGNED, Funded():
                if self._too_late(now):
                    return self._go(S.WITHHELD, note="funded too late to reveal")
                return self._go(S.REVEALING)
            case S.COUNTERSIGNED, Tick(chain_time) if chain_time > self.record.quote.fund_by:
                return self._go(S.EXPIRED, note="never funded")
            case S.REVEALING, SecretSent():
                if not self.record.told:
                    self.record = dataclasses.replace(self.record, told=True)
                return []
            case ((S.COUNTERSIGNED | S.REVEALING | S.WITHHELD), Revealed(_, at)):
                self.record = dataclasses.replace(self.record, revealed_at=at)
                return self._go(S.REVEALED)
            case ((S.COUNTERSIGNED | S.REVEALING | S.WITHHELD), Refunded()):
                return self._go(S.REFUNDED)
            case ((S.REVEALING | S.WITHHELD), Tick(chain_time)) if self._lapsed(chain_time):
                return self._go(S.LAPSED, note="neither revealed nor refunded")
            case S.REVEALED, Tick(chain_time) if chain_time > self._payable_from():
                return self._go(S.FINALIZING)
            case ((S.REVEALED | S.FINALIZING), Paid()):
                return self._go(S.CREDITED)
            case ((S.REVEALED | S.FINALIZING), Disputed()):
                return self._go(S.DISPUTED, note="a leaf was proved to be bad")
            case S.CREDITED, Withdrawn():
                return self._go(S.PAID)
            case _:
                return []

    def may_send(self, step: Step, now: UnixTime) -> bool:
        """Whether `step` is still wanted; the shell asks right before each send."""
        match step:
            case Step.REVEAL:
                return self.state is S.REVEALING and self._may_tell(now)
            case Step.FINALIZE:
                return self.state is S.FINALIZING
            case _:
                return step is Step.WITHDRAW and self.state is S.CREDITED

    def _payable_from(self) -> UnixTime:
        quote = self.record.quote
        assert quote is not None
        return UnixTime(self.record.revealed_at + quote.dispute_window)

    def _lapsed(self, chain_time: UnixTime) -> bool:
        quote = self.record.quote
        assert quote is not None
        return not self.record.told and chain_time > quote.lapses_after

    def _may_tell(self, now: UnixTime) -> bool:
        return self.record.told or not self._too_late(now)

    def _too_late(self, now: UnixTime) -> bool:
        quote = self.record.quote
        return quote is None or max(now, self.chain_time) > quote.reveal_by - REVEAL_MARGIN

    def _go(self, state: SaleState, *, note: str = "") -> list[Effect]:
        self.state = state
        self.record = dataclasses.replace(self.record, state=state.value, note=note[:1_000])
        return self._effects_of(state)

    def _effects_of(self, state: SaleState) -> list[Effect]:
        match state:
            case S.REVEALING:
                return [Transact(Step.REVEAL)]
            case S.FINALIZING:
                return [Transact(Step.FINALIZE)]
            case S.CREDITED:
                return [Transact(Step.WITHDRAW)]
            case _:
                return []
