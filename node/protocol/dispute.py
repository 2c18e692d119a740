"""The proof that one leaf of a delivery is bad.

The buyer shows a leaf of the ciphertext under `goods_root`, and the hash of the leaf that was
offered at the same index under `offer_root`; it opens the secret, which is public by then, and
the dh that only buyer and encryptor know. The court derives the key from these, decrypts the
leaf and hashes it: another hash than the one that was offered convicts. `proves_bad` says what
the court will say, so that no evidence is sent that would be refused, whatever our disk did.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from node.protocol import merkle
from node.protocol.delivery import apply_to_leaf, delivery_key, dh_commitment, secret_commitment
from node.protocol.quote import Quote
from node.protocol.schema import Message
from node.protocol.types import Digest, UnixTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(Message):
    """What the escrow is shown in a dispute, in the order of the contract's struct."""

    secret: Digest = field(repr=False)
    """What the seller revealed."""
    dh: Digest = field(repr=False)
    """What buyer and encryptor share; its commitment is in the quote."""
    index: int
    leaf: bytes = field(repr=False)
    """The bytes of the goods at this index, as they were delivered."""
    goods_path: tuple[Digest, ...] = field(repr=False)
    offered: Digest
    """The hash of the leaf that was offered at this index."""
    offer_path: tuple[Digest, ...] = field(repr=False)


def proves_bad(quote: Quote, evidence: Evidence) -> bool:
    """Whether the evidence shows a leaf of the goods that does not open to what was offered.

    Total: False for whatever is not such a leaf.
    """
    index, leaves, length = evidence.index, quote.leaf_count, quote.byte_length
    if length == 0 or leaves != merkle.leaf_count(length) or not 0 <= index < leaves:
        return False
    if len(evidence.leaf) != merkle.leaf_length(index, length):
        return False
    if secret_commitment(evidence.secret) != quote.secret_commitment:
        return False
    if dh_commitment(evidence.dh, quote.trade_id) != quote.dh_commitment:
        return False
    for root, leaf, path in (
        (quote.goods_root, merkle.leaf_hash(index, evidence.leaf), evidence.goods_path),
        (quote.offer_root, evidence.offered, evidence.offer_path),
    ):
        if not merkle.verify_proof(root, leaf, index, path, leaves, length):
            return False
    key = delivery_key(evidence.secret, evidence.dh, quote.trade_id)
    opened = apply_to_leaf(key, index, evidence.leaf)
    return merkle.leaf_hash(index, opened) != evidence.offered


def disputable_until(quote: Quote, revealed_at: UnixTime) -> UnixTime:
    """Return the last moment, by the chain's clock, at which the escrow hears a dispute.

    Where it is not known when the trade was revealed (a record of an older version: 0), that is
    the last one that could be; the escrow itself knows better.
    """
    if revealed_at == 0:
        return quote.lapses_after
    return UnixTime(revealed_at + quote.dispute_window)
