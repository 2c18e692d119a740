"""A small delivery of which one leaf is bad, and the evidence of it."""

from __future__ import annotations

import dataclasses
from typing import Final

from node.protocol import delivery, merkle
from node.protocol.dispute import Evidence
from node.protocol.quote import Quote
from node.protocol.types import Digest

BUYER_PRIVATE: Final = b"\x41" * 32
SELLER_PRIVATE: Final = b"\x42" * 32


@dataclasses.dataclass(frozen=True)
class Goods:
    """What was offered, and what was delivered instead, under one secret."""

    offered: bytes
    delivered: bytes
    """Encrypted."""
    secret: Digest
    trade_id: Digest
    dh: Digest = Digest(delivery.shared_secret(BUYER_PRIVATE, delivery.public_key(SELLER_PRIVATE)))

    def terms(self, quote: Quote) -> Quote:
        """Return a quote for these goods."""
        return dataclasses.replace(
            quote,
            trade_id=self.trade_id,
            offer_root=merkle.root_of(self.offered),
            goods_root=merkle.root_of(self.delivered),
            leaf_count=merkle.leaf_count(len(self.offered)),
            byte_length=len(self.offered),
            secret_commitment=delivery.secret_commitment(self.secret),
            dh_commitment=delivery.dh_commitment(self.dh, self.trade_id),
        )

    def show(self, index: int) -> Evidence:
        """Show a leaf, whether it is bad or not."""
        plain, cipher = merkle.leaf_hashes(self.offered), merkle.leaf_hashes(self.delivered)
        return Evidence(
            secret=self.secret,
            dh=self.dh,
            index=index,
            leaf=self.delivered[index * merkle.LEAF_BYTES :][: merkle.LEAF_BYTES],
            goods_path=_path(cipher, index),
            offered=Digest(plain[32 * index :][:32]),
            offer_path=_path(plain, index),
        )


def bad_goods(secret: Digest, trade_id: Digest, *, length: int = 2_500, bad: int = 1) -> Goods:
    """Offer zeros, and deliver them with one bit of leaf `bad` changed."""
    good = Goods(bytes(length), b"", secret, trade_id)
    key = delivery.delivery_key(secret, good.dh, trade_id)
    garbled = bytearray(length)
    garbled[bad * merkle.LEAF_BYTES] ^= 1
    return dataclasses.replace(good, delivered=delivery.Keystream(key).apply(bytes(garbled)))


def _path(hashes: bytes, index: int) -> tuple[Digest, ...]:
    return tuple(Digest(each) for each in merkle.proof(hashes, index))
