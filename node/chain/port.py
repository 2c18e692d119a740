"""The settlement chain in the market's words: the one seam through which money moves.

`Escrow` is synchronous and thread-safe; shells call it from worker threads. Reading never
changes anything. Writing is split so that a shell can save before it sends: `sign` gives
bytes that are the same each time for the same call, nonce and fees (but see there for a
dispute that the account can hardly pay for); the shell journals them; `broadcast` may then
be repeated for ever and pays once.

    transaction = escrow.sign(Reveal(quote, secret), escrow.next_nonce())
    journal.save(transaction)
    escrow.broadcast(transaction.raw)
    outcome = escrow.receipt(transaction.hash)  # None until it is mined

Every method raises `ChainUnavailableError` when nothing can be known now.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from node.protocol.dispute import Evidence
from node.protocol.eip712 import Domain
from node.protocol.quote import Quote
from node.protocol.types import Address, Digest, UnixTime, Wei

DEVELOPMENT_CHAIN_ID: Final = 131277322940537
"""Of our own development chain, and of eth-tester: what is signed for it is play money."""

DEVELOPMENT_CLIENT: Final = "pm-node-development-chain/"
"""How our development chain names itself, before its version."""


class EscrowState(enum.Enum):
    """Where a trade stands, numbered as the contract's own enum."""

    NONE = 0
    FUNDED = 1
    REVEALED = 2
    PAID = 3
    REFUNDED = 4
    DISPUTED = 5


class Seat(enum.Enum):
    """What an account is to the market, numbered as the contract's own enum."""

    STRANGER = 0
    EMPTY = 1
    """One of its brokers, whose signature does not count: it has no bond, or gave notice."""
    TAKEN = 2


@dataclass(frozen=True, slots=True)
class Block:
    """The newest block that the endpoint knows."""

    number: int
    time: UnixTime


@dataclass(frozen=True, slots=True)
class TradeState:
    """A trade as the contract sees it; `since` is when it came to this state (0 for NONE)."""

    state: EscrowState
    since: UnixTime


# --- calls: what an account may ask of the escrow


@dataclass(frozen=True, slots=True)
class Fund:
    """The buyer locks the quote's price; the value travels with the transaction."""

    quote: Quote
    broker_signature: bytes
    """Of each broker of a quorum 65 bytes, in the order of their accounts."""


@dataclass(frozen=True, slots=True)
class FundMany:
    """The buyer locks the prices of several quotes: all of them, or none."""

    deposits: tuple[Fund, ...]


@dataclass(frozen=True, slots=True)
class Reveal:
    """The seller publishes the secret; the payment becomes pending."""

    quote: Quote
    secret: bytes


@dataclass(frozen=True, slots=True)
class Finalize:
    """Anyone turns a pending payment into the seller's credit, after the dispute window."""

    quote: Quote


@dataclass(frozen=True, slots=True)
class Refund:
    """Anyone turns an unrevealed payment back into the buyer's credit, after the grace."""

    quote: Quote


@dataclass(frozen=True, slots=True)
class Dispute:
    """Whoever holds the proof of a bad leaf turns a pending payment into the buyer's credit."""

    quote: Quote
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Anyone pays out an account's credit, in ether, to that account."""

    account: Address


Call = Fund | FundMany | Reveal | Finalize | Refund | Dispute | Withdraw


# --- events: what the escrow said


@dataclass(frozen=True, slots=True)
class FundedEvent:
    block: int
    transaction: Digest
    trade_id: Digest
    buyer: Address
    seller: Address
    price: Wei


@dataclass(frozen=True, slots=True)
class RevealedEvent:
    block: int
    transaction: Digest
    trade_id: Digest
    secret: bytes


@dataclass(frozen=True, slots=True)
class PaidEvent:
    block: int
    transaction: Digest
    trade_id: Digest
    to_seller: Wei
    fee: Wei


@dataclass(frozen=True, slots=True)
class RefundedEvent:
    block: int
    transaction: Digest
    trade_id: Digest
    amount: Wei


@dataclass(frozen=True, slots=True)
class DisputedEvent:
    block: int
    transaction: Digest
    trade_id: Digest
    leaf: int
    amount: Wei


@dataclass(frozen=True, slots=True)
class WithdrawnEvent:
    block: int
    transaction: Digest
    asset: Address
    account: Address
    recipient: Address
    amount: Wei


EscrowEvent = (
    FundedEvent | RevealedEvent | PaidEvent | RefundedEvent | DisputedEvent | WithdrawnEvent
)


# --- transactions


@dataclass(frozen=True, slots=True)
class Fees:
    """EIP-1559 prices of one unit of gas."""

    max_fee: Wei
    """Most that is paid for a unit, tip included."""
    tip: Wei


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """Bytes to journal, then to broadcast as often as needed."""

    hash: Digest
    raw: bytes
    nonce: int


@dataclass(frozen=True, slots=True)
class TransactionOutcome:
    """A mined transaction."""

    succeeded: bool
    block: int
    gas_used: int
    revert: str | None
    """Why it failed: a custom error's name, a revert message, or ``unknown``; None on success."""
    fee: Wei = Wei(0)
    """What the sender paid for gas."""
    values: Mapping[str, object] | None = None
    """What the custom error says, by name; None where it is none."""


class Escrow(Protocol):
    """One account's view of one escrow contract."""

    @property
    def domain(self) -> Domain:
        """Chain and contract: what EIP-712 signatures of this market are bound to."""
        ...

    @property
    def account(self) -> Address:
        """The account that `sign` signs for."""
        ...

    @property
    def threshold(self) -> int:
        """How many seated brokers must sign a quote; fixed in the contract."""
        ...

    def seat(self, account: Address) -> Seat:
        """Return what an account is to this market: quotes of seated brokers can be funded."""
        ...

    def head(self) -> Block:
        """Return the newest block; its time is what the contract's deadlines are held to."""
        ...

    def trade_state(self, trade_id: Digest) -> TradeState:
        """Return where a trade stands."""
        ...

    def terms(self, trade_id: Digest) -> bytes:
        """Return the first 26 bytes of the digest of the quote that was funded; zeros if none.

        A trade id alone does not say under which terms: who reveals a secret compares these.
        """
        ...

    def credit(self, account: Address) -> Wei:
        """Return what `Withdraw` would pay to `account`, in ether."""
        ...

    def balance(self, account: Address, *, block: int | None = None) -> Wei:
        """Return the account's ether on the chain: now, or after that block, if it is recent."""
        ...

    def next_nonce(self) -> int:
        """Return the first nonce of `account` that is neither mined nor pending."""
        ...

    def events(self, first_block: int, last_block: int) -> list[EscrowEvent]:
        """Return the escrow's events of these blocks, both included, in chain order."""
        ...

    def fees(self) -> Fees:
        """Return what `sign` would sign with now.

        Raises `FeeTooHighError` if the chain's fees are above the ceiling.
        """
        ...

    def gas_limit(self, kind: type[Call], encryptor: Address) -> int:
        """Return the most gas that a call of this kind is signed with; of many, each of them.

        A dispute takes more where the encryptor is one of the market's brokers.
        """
        ...

    def sign(self, call: Call, nonce: int, fees: Fees | None = None) -> SignedTransaction:
        """Sign a call, with the chain's present fees unless they are given.

        A dispute for which the account cannot pay with the gas of `gas_limit` is signed with
        what the chain measures that it takes, and a quarter more: its bytes may differ each
        time. Raises `FeeTooHighError` if the chain's fees are above the ceiling, and
        `TransactionRefusedError` where the chain measures that a dispute would revert.
        """
        ...

    def broadcast(self, raw: bytes) -> None:
        """Hand a signed transaction to the chain; once it is known, again is fine.

        Raises `NonceTooLowError`, `UnfundedAccountError` or `TransactionRefusedError`.
        """
        ...

    def receipt(self, transaction: Digest) -> TransactionOutcome | None:
        """Return how a transaction ended, None while it has not been mined."""
        ...
