"""The buyer's side of one trade.

It begins when a signed deal has been checked, and holds the buyer's promise: *weights or
money*. Before any money moves the buyer holds the ciphertext and the leaf hashes and has
seen that both hash to the quote's roots; after the money moved, either the secret appears
on chain and opens that ciphertext, or the escrow gives the money back.

| state     | event                             | next      | effects  |
|-----------|-----------------------------------|-----------|----------|
| fetching  | goods verified, in time           | funding   | fund     |
| fetching  | goods verified, too late          | abandoned |          |
| fetching  | goods refused                     | abandoned |          |
| fetching  | clock is past fund_by             | abandoned |          |
| funding   | funded                            | funded    |          |
| funding   | revealed                          | revealed  | deliver  |
| funding   | chain is past fund_by             | abandoned |          |
| funded    | revealed                          | revealed  | deliver  |
| funded    | chain is past reveal_by + grace   | refunding | refund   |
| funded    | refunded                          | credited  | withdraw |
| refunding | revealed                          | revealed  | deliver  |
| refunding | refunded                          | credited  | withdraw |
| revealed  | paid                              | revealed  |          |
| revealed  | delivered                         | delivered |          |
| revealed  | delivered, paid before            | complete  |          |
| revealed  | bad goods, in time                | disputing | dispute  |
| revealed  | bad goods, too late               | cheated   |          |
| revealed  | disputed                          | credited  | withdraw |
| disputing | disputed                          | credited  | withdraw |
| disputing | paid                              | cheated   |          |
| disputing | chain is past the dispute window  | cheated   |          |
| delivered | paid                              | complete  |          |
| delivered | chain is past the lapse           | complete  |          |
| credited  | withdrawn                         | refunded  |          |

A reveal is good news however late it comes: the escrow takes one until somebody refunds.
Where the payment is final before the goods are decrypted, the record remembers it.
Funding is *abandoned* only on the chain's own clock: the escrow refuses a deposit after
`fund_by`, so once everything up to a later block has been told, none can come.
A delivered trade whose seller never collects its payment is over for the buyer in the end.

Goods of which one leaf is proved to be bad are *disputed*, for as long as the escrow hears it:
until the dispute window of the reveal is over on the chain's clock, all that was done in it
told, and nobody has finalized. Then the buyer is *cheated*, and keeps the proof. The evidence
is in the record before it is sent, so that neither a restart nor our disk can lose it.
Deadlines before the money moves are the buyer's own clock's; all later ones the chain's.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Final

from node.protocol.dispute import Evidence, disputable_until
from node.protocol.errors import LocalProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.events import (
    BadGoods,
    Deliver,
    Delivered,
    Disputed,
    Effect,
    FetchGoods,
    Funded,
    GoodsRefused,
    GoodsVerified,
    Paid,
    PurchaseEvent,
    Refunded,
    Revealed,
    Step,
    Tick,
    Transact,
    Withdrawn,
)
from node.protocol.quote import Quote
from node.protocol.schema import Message
from node.protocol.types import Digest, PeerId, UnixTime

FUND_MARGIN: Final = 2
"""No deposit is begun in the last seconds before `fund_by`: it would only cost gas."""


class PurchaseState(enum.Enum):
    FETCHING = "fetching"
    FUNDING = "funding"
    FUNDED = "funded"
    REFUNDING = "refunding"
    REVEALED = "revealed"
    DISPUTING = "disputing"
    DELIVERED = "delivered"
    CREDITED = "credited"
    COMPLETE = "complete"
    REFUNDED = "refunded"
    CHEATED = "cheated"
    ABANDONED = "abandoned"


S = PurchaseState
PURCHASE_ENDS: Final = frozenset({S.COMPLETE, S.REFUNDED, S.CHEATED, S.ABANDONED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PurchaseRecord(Message):
    """All that a buyer must not forget; what the journal keeps."""

    state: str
    note: str
    quote: Quote
    broker_signature: bytes
    seller_signature: bytes
    offer_digest: Digest
    seller_peer: PeerId
    seller_addresses: tuple[str, ...]
    seller_key: Digest
    private_key: Digest = field(repr=False)
    """X25519, for this trade alone."""
    evaluation: Evaluation
    layers: tuple[int, ...] = ()
    """Which layers of the evaluation's architecture the goods are; empty means all."""
    recipe: bytes
    receipt: bytes
    secret: Digest | None = field(repr=False)
    paid: bool
    """Whether the escrow credited the seller while we were still decrypting."""
    revealed_at: UnixTime = UnixTime(0)
    """0 before, and in a record of an older version."""
    evidence: Evidence | None = field(default=None, repr=False)
    """Why the goods are bad, if they are."""
    notice: bytes = b""
    """The terms under which was measured, as their broker signed them."""
    tried_on: str = ""
    """The architecture of our own weights, where it is not the evaluation's: adapters of one base
    differ in their ranks. Empty: it is."""

    @property
    def own_architecture(self) -> str:
        """The text of what our own weights are of; the evaluation's is that of what is sold."""
        return self.tried_on or self.evaluation.architecture

    @property
    def trade_id(self) -> Digest:
        return self.quote.trade_id


class Purchase:
    """One trade, as its buyer lives it. Only `receive` and `expire` change its state."""

    def __init__(self, record: PurchaseRecord) -> None:
        self.record = record
        self.state = PurchaseState(record.state)
        self.chain_time = UnixTime(0)

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.state in PURCHASE_ENDS

    @property
    def settled(self) -> bool:
        """The buyer has its weights or its money (or never gave any)."""
        return self.over or self.state is S.DELIVERED

    @property
    def deadline(self) -> UnixTime | None:
        """When `expire` is due by the buyer's own clock."""
        if self.state is S.FETCHING:
            return UnixTime(self.record.quote.fund_by - FUND_MARGIN)
        return None

    @property
    def disputable_until(self) -> UnixTime:
        """When, by the chain's clock, a dispute is heard for the last time."""
        return disputable_until(self.record.quote, self.record.revealed_at)

    def resume(self, now: UnixTime) -> list[Effect]:
        """Return what this state owes the world; asked for after a restart."""
        late = self.expire(now)
        return late if self.over else self._effects_of(self.state)

    def may_send(self, step: Step, now: UnixTime) -> bool:
        """Whether `step` is still wanted; the shell asks right before each send."""
        match step:
            case Step.FUND:
                return self.state is S.FUNDING and now <= self.record.quote.fund_by - FUND_MARGIN
            case Step.REFUND:
                return self.state is S.REFUNDING
            case Step.DISPUTE:
                return self.state is S.DISPUTING
            case _:
                return step is Step.WITHDRAW and self.state is S.CREDITED

    def expire(self, now: UnixTime) -> list[Effect]:
        """Give up what the buyer's clock has run out for."""
        if self.deadline is not None and now > self.deadline:
            return self._go(S.ABANDONED, note="the goods came too late to fund")
        return []

    def receive(self, event: PurchaseEvent, now: UnixTime) -> list[Effect]:
        """Take one event. An event that says nothing new in this state changes nothing."""
        quote = self.record.quote
        if isinstance(event, Tick):
            self.chain_time = max(self.chain_time, event.chain_time)
        match self.state, event:
            case S.FETCHING, GoodsVerified():
                late = self.expire(now)
                return late if self.over else self._go(S.FUNDING)
            case S.FETCHING, GoodsRefused(reason):
                return self._go(S.ABANDONED, note=reason)
            case S.FUNDING, Funded():
                return self._go(S.FUNDED)
            case S.FUNDING, Tick(chain_time) if chain_time > quote.fund_by:
                return self._go(S.ABANDONED, note="not funded in time")
            case ((S.FUNDING | S.FUNDED | S.REFUNDING), Revealed(secret, at)):
                self.record = dataclasses.replace(self.record, secret=secret, revealed_at=at)
                return self._go(S.REVEALED)
            case S.FUNDED, Tick(chain_time) if chain_time > quote.refund_from:
                return self._go(S.REFUNDING)
            case ((S.FUNDED | S.REFUNDING), Refunded()):
                return self._go(S.CREDITED)
            case S.REVEALED, Paid():
                self.record = dataclasses.replace(self.record, paid=True)
                return []
            case S.REVEALED, Delivered(note):
                return self._go(S.COMPLETE if self.record.paid else S.DELIVERED, note=note)
            case S.REVEALED, BadGoods(evidence):
                return self._accuse(evidence)
            case ((S.REVEALED | S.DISPUTING), Disputed()):
                return self._go(S.CREDITED, note=self.record.note)
            case S.DISPUTING, Paid():
                self.record = dataclasses.replace(self.record, paid=True)
                return self._go(S.CHEATED, note=self.record.note)
            case S.DISPUTING, Tick(chain_time) if chain_time > self.disputable_until:
                return self._go(S.CHEATED, note=self.record.note)
            case S.DELIVERED, Paid():
                return self._go(S.COMPLETE, note=self.record.note)
            case S.DELIVERED, Tick(chain_time) if chain_time > quote.lapses_after:
                return self._go(S.COMPLETE, note="the payment was never collected")
            case S.CREDITED, Withdrawn():
                return self._go(S.REFUNDED, note=self.record.note)
            case _:
                return []

    def _accuse(self, evidence: Evidence) -> list[Effect]:
        """Begin the dispute, unless the seller has its money, or the window is over."""
        self.record = dataclasses.replace(self.record, evidence=evidence)
        late = self.record.paid or self.chain_time > self.disputable_until
        note = f"leaf {evidence.index} is not the offer's"
        return self._go(S.CHEATED if late else S.DISPUTING, note=note)

    def _go(self, state: PurchaseState, *, note: str = "") -> list[Effect]:
        self.state = state
        self.record = dataclasses.replace(self.record, state=state.value, note=note[:1_000])
        return self._effects_of(state)

    def _effects_of(self, state: PurchaseState) -> list[Effect]:
        match state:
            case S.FETCHING:
                return [FetchGoods()]
            case S.FUNDING:
                return [Transact(Step.FUND)]
            case S.REFUNDING:
                return [Transact(Step.REFUND)]
            case S.DISPUTING:
                return [Transact(Step.DISPUTE)]
            case S.CREDITED:
                return [Transact(Step.WITHDRAW)]
            case S.REVEALED:
                if self.record.secret is None:
                    raise LocalProtocolError(f"{self.record.trade_id.hex()}: revealed, no secret")
                return [Deliver(self.record.secret)]
            case _:
                return []
