"""What is said to the whole market: offers, revocations, a broker's notice, receipts.

Each is signed twice, by the account that answers for it on chain and by the peer that
speaks for that account, so that both keys vouch for each other however it is relayed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from node.protocol.errors import LocalProtocolError
from node.protocol.fees import MAX_FEE_BASIS_POINTS
from node.protocol.schema import Message
from node.protocol.types import UINT256_MAX, Address, Digest, PeerId, UnixTime, Wei

MAX_LIFETIME: Final = 24 * 3600
"""The longest that anything said to the market may stay good, in seconds."""

MAX_CLOCK_SKEW: Final = 60
"""How far ahead of ours a peer's clock may be, in seconds."""


NOT_FOR_SALE: Final = Wei(UINT256_MAX)
"""A reserve that nobody can pay. What its seller submits at that price is there for its own
trials, and for nobody to buy: the whole model of one who sells some layers of it."""


def _check_lifetime(issued_at: UnixTime, expires_at: UnixTime) -> None:
    if not issued_at < expires_at <= issued_at + MAX_LIFETIME:
        raise LocalProtocolError(
            f"expires_at must be within {MAX_LIFETIME} s after issued_at, "
            f"got {expires_at - issued_at} s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Message):
    """A promise to deliver the tensors under `weights_root` for `reserve` or more."""

    seller: Address
    peer_id: PeerId
    addresses: tuple[str, ...]
    """Multiaddresses at which the seller listens now."""
    task: str
    """What the model does; only offers of one task are comparable."""
    architecture: str
    """Canonical JSON of a registered architecture; code never travels."""
    layers: tuple[int, ...]
    """Which layers are on offer, rising; empty means all."""
    weights_root: Digest
    leaf_count: int
    byte_length: int
    reserve: Wei
    """The lowest price the seller will sign; public, unlike what it is worth to them."""
    issued_at: UnixTime
    expires_at: UnixTime
    nonce: int

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        _check_lifetime(self.issued_at, self.expires_at)
        if any(left >= right for left, right in itertools.pairwise(self.layers)):
            raise LocalProtocolError(f"layers must rise, got {list(self.layers[:10])}")

    @property
    def issuer(self) -> Address:
        return self.seller

    @property
    def for_sale(self) -> bool:
        """Whether there is a price at all; what is not for sale is tried upon, and not tried."""
        return self.reserve < NOT_FOR_SALE


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation(Message):
    """The seller takes one of its offers back."""

    seller: Address
    peer_id: PeerId
    offer_digest: Digest
    issued_at: UnixTime
    expires_at: UnixTime
    nonce: int

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        _check_lifetime(self.issued_at, self.expires_at)

    @property
    def issuer(self) -> Address:
        return self.seller


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerNotice(Message):
    """A broker's terms, and its validation set committed before it sees any weights."""

    broker: Address
    peer_id: PeerId
    addresses: tuple[str, ...]
    task: str
    fee_basis_points: int
    validation_root: Digest
    validation_rows: int
    seed: Digest
    """Drawn by the broker; with both weight roots it draws the rows of each trial."""
    issued_at: UnixTime
    expires_at: UnixTime
    nonce: int

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        _check_lifetime(self.issued_at, self.expires_at)
        if self.fee_basis_points > MAX_FEE_BASIS_POINTS:
            raise LocalProtocolError(
                f"fee_basis_points is at most {MAX_FEE_BASIS_POINTS}, got {self.fee_basis_points}"
            )

    @property
    def issuer(self) -> Address:
        return self.broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Message):
    """What a trade came to: the public price history. Its digest stands in the quote.

    What was measured stays private to the parties: `evaluation_hash` commits to it.
    """

    broker: Address
    peer_id: PeerId
    trade_id: Digest
    task: str
    buyer: Address
    seller: Address
    offer_digest: Digest
    offer_root: Digest
    notice_digest: Digest
    price: Wei
    fee: Wei
    evaluation_hash: Digest
    issued_at: UnixTime
    expires_at: UnixTime
    nonce: int

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        _check_lifetime(self.issued_at, self.expires_at)

    @property
    def issuer(self) -> Address:
        return self.broker


Statement = Offer | Revocation | BrokerNotice | Receipt
STATEMENTS: Final[dict[str, type[Statement]]] = {
    "offer": Offer,
    "revocation": Revocation,
    "notice": BrokerNotice,
    "receipt": Receipt,
}
