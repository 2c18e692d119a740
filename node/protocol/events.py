"""What a trade's machines are told, and what they ask their shell to do.

Both machines (`purchase`, `sale`) take these events with `now` and return these effects.
Every effect is safe to repeat: a shell that died half-way through one is given it again
by `resume` when it comes back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from node.protocol.dispute import Evidence
from node.protocol.types import Digest, UnixTime


class Step(enum.Enum):
    """A transaction that a trade may need; one of each kind at most."""

    FUND = "fund"
    REVEAL = "reveal"
    FINALIZE = "finalize"
    REFUND = "refund"
    DISPUTE = "dispute"
    WITHDRAW = "withdraw"


# ── events: the chain, as deep as the node's confirmations ──


@dataclass(frozen=True, slots=True)
class Funded:
    """The buyer's money is in the escrow."""


@dataclass(frozen=True, slots=True)
class Revealed:
    """The secret is public; the payment is pending since `at`."""

    secret: Digest
    at: UnixTime


@dataclass(frozen=True, slots=True)
class Paid:
    """The escrow credited the seller."""


@dataclass(frozen=True, slots=True)
class Refunded:
    """The escrow credited the buyer."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """A leaf of the goods was proved to be bad; the escrow credited the buyer."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Everything the chain did up to `chain_time` has been told."""

    chain_time: UnixTime


@dataclass(frozen=True, slots=True)
class SecretSent:
    """The transaction that holds the secret has left: whoever sees the pool may know it."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The escrow owes this account nothing any more."""


# ── events: what became of an effect ──


@dataclass(frozen=True, slots=True)
class GoodsVerified:
    """Ciphertext and leaf hashes are here, and hash to the quote's roots."""


@dataclass(frozen=True, slots=True)
class GoodsRefused:
    """They cannot be had, or are not what the quote says."""

    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """Decrypted, checked, and the recipe applied; `note` says if the merge is not as measured."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class BadGoods:
    """What the secret opens is not what was offered: one leaf proves it."""

    evidence: Evidence


PurchaseEvent = (
    Funded | Revealed | Paid | Refunded | Disputed | Tick | Withdrawn | GoodsVerified
    | GoodsRefused | Delivered | BadGoods
)  # fmt: skip
SaleEvent = Funded | SecretSent | Revealed | Paid | Refunded | Disputed | Tick | Withdrawn
BrokerageEvent = Funded | Revealed | Paid | Refunded | Disputed | Tick | Withdrawn


# ── effects ──


@dataclass(frozen=True, slots=True)
class FetchGoods:
    """Fetch ciphertext and leaf hashes from the seller; verify both."""


@dataclass(frozen=True, slots=True)
class Transact:
    """Send this transaction and see it mined, unless the chain shows that it is done."""

    step: Step


@dataclass(frozen=True, slots=True)
class Deliver:
    """Derive the key, decrypt, check against the offer's root, apply the recipe."""

    secret: Digest


@dataclass(frozen=True, slots=True)
class PublishReceipt:
    """Tell the market what the trade came to."""

    receipt: bytes


Effect = FetchGoods | Transact | Deliver | PublishReceipt
