"""What crosses the stream `/pm/broker/2`: requests, and their answers.

An agent asks a broker to list the book, to take its weights, to try a pair, to quote; a
broker asks a seller for its ask, for the goods, for its countersignature; brokers of a quorum
ask each other to measure again, to open what they sealed, and to sign. What is said of a round of
a clearing house is in `pooling`. Every message is
``[kind, {field: value}]`` in canonical CBOR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.protocol import cbor
from node.protocol.attestation import Attest, Attested
from node.protocol.bids import BidAndAsk
from node.protocol.call import Allocation, BudgetBid
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.pooling import (
    AskCleared,
    AskHouse,
    Cleared,
    Heard,
    House,
    Invited,
    JoinRound,
    NotInvited,
    Objection,
)
from node.protocol.quorum import BELOW_QUORUM, Commitment, Opening
from node.protocol.quote import Quote
from node.protocol.schema import Message, from_map, to_map
from node.protocol.types import Address, Digest, Millionths, Wei

BROKER_PROTOCOL: Final = "/pm/broker/2"
PARAMS_PROTOCOL: Final = "/pm/params/1"
GOODS_PROTOCOL: Final = "/pm/goods/1"
SELLER_UNREACHABLE: Final = "seller-unreachable"
"""The reason of a broker that cannot have what it needs from an offer's seller just now."""
FAILING: Final = frozenset(
    {"truncated", "stream-reset", "too-slow", "busy", "banned", "internal-error", "no-notice",
     "chain-away", "unknown-trial", "figures-differ", "recipe-differs", "not-of-the-quorum",
     BELOW_QUORUM}
)  # fmt: skip
"""What a broker says, or does, that another broker may do better."""
TRIAL_SECONDS: Final = 60.0
QUOTE_SECONDS: Final = 60.0
"""How long a buyer waits for each; the broker is done before."""
MAX_CALL_SECONDS: Final = 600
"""How long a call may wait for bids, and a buyer for its end."""
PLAIN_HASHES: Final = "plain-hashes"
"""The part of a trade's goods that is the leaf hashes of what the ciphertext opens to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListBook(Message):
    """Agent → broker: what is on offer, and your notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Message):
    """Agent → broker: these are my weights, for trials only. Signed like an offer."""

    statement: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Message):
    """Broker → agent: fetched and verified."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest(Message):
    """Buyer → broker: what would this offer do for that submission of mine?"""

    base_digest: Digest
    offer_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult(Message):
    """Broker → buyer, private; under the disclosure policy of the broker."""

    trial_id: Digest
    gain: Millionths
    bound: Millionths
    alpha: Millionths


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteRequest(Message):
    """Buyer → broker: its valuation of the trial, sealed from the seller, and keys."""

    trial_id: Digest
    valuation: Wei
    buyer_nonce: Digest
    buyer_key: Digest
    """X25519, for this trade alone."""
    signature: bytes
    """Of the buyer's account over its `Bid`, whose trade id is derived from the nonce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceBid(Message):
    """Buyer → broker: my bid in the call that is open."""

    bid: BudgetBid
    signature: bytes
    """Of the buyer's account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StayOut(Message):
    """Buyer → broker: do not wait for a bid of mine in the call that is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAllocations(Message):
    """Buyer → broker: what did this bid of mine come to? Asked until it is `Allocated`."""

    bid: Digest
    """Its digest, as it was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Message):
    """Broker → buyer: so be it; and of a bid, that its call is still open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocated(Message):
    """Broker → buyer, once the call is closed: what you may have, at the prices of all."""

    call: Digest
    """SHA-256 over all bids of the call, by rising account: the same for each who bid."""
    allocations: tuple[Allocation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoDeal(Message):
    """Broker → buyer: there is no price that both prefer to no trade."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(Message):
    """Broker → buyer: the whole trade, signed by broker and seller."""

    quote: Quote
    broker_signature: bytes
    """Of each broker of a quorum 65 bytes, by rising account."""
    seller_signature: bytes
    seller_key: Digest
    """X25519, for this trade alone."""
    receipt: bytes
    evaluation: Evaluation
    recipe: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRequest(Message):
    """Broker → seller: somebody wants this offer; what do you ask?"""

    trade_id: Digest
    offer_digest: Digest
    fee_basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Message):
    """Seller → broker, sealed from the buyer: the least that must reach the seller."""

    ask: Wei
    signature: bytes
    """Of the seller's account over its `AskingPrice`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareGoods(Message):
    """Broker → seller: encrypt your offered tensors for this buyer."""

    trade_id: Digest
    offer_digest: Digest
    buyer: Address
    buyer_key: Digest
    buyer_nonce: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodsPrepared(Message):
    """Seller → broker: what the quote commits to."""

    goods_root: Digest
    leaf_count: int
    byte_length: int
    secret_commitment: Digest
    dh_commitment: Digest
    seller_key: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Countersign(Message):
    """Broker → seller: the quote, and the receipt that its hash names."""

    quote: Quote
    broker_signature: bytes
    receipt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Countersigned(Message):
    """Seller → broker."""

    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Book(Message):
    """Broker → agent: live statements, each as it was gossiped."""

    statements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduce(Message):
    """Broker → agent: I measure what your broker asks me to; these are my terms."""

    notice: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduced(Message):
    """Agent → broker: then you may fetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay(Message):
    """Broker → broker: measure this again, and seal what you find.

    Statements as they were signed: the asker's notice, the base, the offer.
    """

    notice: bytes
    base: bytes
    offer: bytes
    subject: Evaluation
    """Without figures, which are not to be known yet."""
    recipe: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed(Message):
    """Broker → broker: the hash of what I found, signed."""

    commitment: Commitment


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFigure(Message):
    """Broker → broker: these have sealed theirs; open yours."""

    case: Digest
    """As in `node.protocol.quorum.case_of`."""
    commitments: tuple[Commitment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Message):
    """Broker → broker."""

    opening: Opening


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosign(Message):
    """Broker → broker: sign this quote, which follows from these figures."""

    case: Digest
    openings: tuple[Opening, ...]
    quote: Quote
    receipt: bytes
    bids: BidAndAsk
    """Of which the price is made, each as it was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned(Message):
    """Broker → broker."""

    signature: bytes


StreamMessage = (
    ListBook | Book | Submit | Submitted | TrialRequest | TrialResult | QuoteRequest | NoDeal | Deal
    | AskRequest | Ask | PrepareGoods | GoodsPrepared | Countersign | Countersigned
    | Introduce | Introduced | Replay | Sealed | OpenFigure | Opened | Cosign | Cosigned
    | PlaceBid | AskAllocations | StayOut | Noted | Allocated
    | AskHouse | House | JoinRound | NotInvited | Invited | AskCleared | Cleared
    | Objection | Heard | Attest | Attested
)  # fmt: skip
_KINDS: Final[dict[str, type[StreamMessage]]] = {
    "list-book": ListBook,
    "book": Book,
    "submit": Submit,
    "submitted": Submitted,
    "trial-request": TrialRequest,
    "trial-result": TrialResult,
    "quote-request": QuoteRequest,
    "no-deal": NoDeal,
    "deal": Deal,
    "ask-request": AskRequest,
    "ask": Ask,
    "prepare-goods": PrepareGoods,
    "goods-prepared": GoodsPrepared,
    "countersign": Countersign,
    "countersigned": Countersigned,
    "introduce": Introduce,
    "introduced": Introduced,
    "replay": Replay,
    "sealed": Sealed,
    "open-figure": OpenFigure,
    "opened": Opened,
    "cosign": Cosign,
    "cosigned": Cosigned,
    "place-bid": PlaceBid,
    "ask-allocations": AskAllocations,
    "stay-out": StayOut,
    "noted": Noted,
    "allocated": Allocated,
    "ask-house": AskHouse,
    "house": House,
    "join-round": JoinRound,
    "not-invited": NotInvited,
    "invited": Invited,
    "ask-cleared": AskCleared,
    "cleared": Cleared,
    "objection": Objection,
    "heard": Heard,
    "attest": Attest,
    "attested": Attested,
}
_KIND_OF: Final = {cls: kind for kind, cls in _KINDS.items()}


def encode(message: StreamMessage) -> bytes:
    """Return the bytes of one message, without its length prefix."""
    return cbor.encode([_KIND_OF[type(message)], to_map(message)])


def decode(data: bytes) -> StreamMessage:
    """Return the message in `data`, or raise `RemoteProtocolError`."""
    value = cbor.decode(data)
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
        raise RemoteProtocolError("malformed", "a message is a kind and a map")
    if value[0] not in _KINDS:
        raise RemoteProtocolError("unknown-kind", value[0][:64])
    return from_map(_KINDS[value[0]], value[1])
