"""Goods as an encryptor makes them, honest or not, and what their buyer can show of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from contracts.stage import SECRET, Quote, Stage
from node.protocol import delivery, merkle

DH = hashlib.sha256(b"what buyer and encryptor share").digest()


class Evidence(NamedTuple):
    """What a dispute shows, in the order of the Solidity struct."""

    secret: bytes
    dh: bytes
    place: int
    leaf: bytes
    goods_path: tuple[bytes, ...]
    offered: bytes
    offer_path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A quote, and the bytes that its roots stand for."""

    quote: Quote
    goods: bytes
    offered_hashes: bytes

    def evidence(self, index: int, **changes: Any) -> Evidence:
        """Return what the buyer would show of a leaf, with what a test wants to be different."""
        start = index * merkle.LEAF_BYTES
        shown = Evidence(
            secret=SECRET,
            dh=DH,
            place=index,
            leaf=self.goods[start : start + merkle.LEAF_BYTES],
            goods_path=merkle.proof(merkle.leaf_hashes(self.goods), index),
            offered=self.offered_hashes[32 * index : 32 * index + 32],
            offer_path=merkle.proof(self.offered_hashes, index),
        )
        return shown._replace(**changes)


def deliver(
    stage: Stage,
    plain: bytes,
    spoil: Callable[[bytes], bytes] = lambda goods: goods,
    **changes: Any,
) -> Delivery:
    """Encrypt `plain` as the trade's key says, and let the encryptor spoil what came of it."""
    quote = stage.quote(**changes)
    key = delivery.delivery_key(SECRET, DH, quote.trade_id)
    goods = spoil(delivery.Keystream(key).apply(plain))
    hashes = merkle.leaf_hashes(plain)
    quote = quote._replace(
        offer_root=merkle.root_of(plain),
        goods_root=merkle.root_of(goods),
        leaf_count=merkle.leaf_count(len(plain)),
        byte_length=len(plain),
        dh_commitment=delivery.dh_commitment(DH, quote.trade_id),
    )
    return Delivery(quote=quote, goods=goods, offered_hashes=hashes)


def flipped(at: int) -> Callable[[bytes], bytes]:
    """Return what changes one byte of the goods."""
    return lambda goods: goods[:at] + bytes([goods[at] ^ 1]) + goods[at + 1 :]


def noise(length: int) -> bytes:
    """Return so many bytes that look like parameters."""
    return hashlib.shake_256(b"parameters").digest(length)
