"""Goods of one leaf that are not what was offered, and what proves it."""

from __future__ import annotations

from typing import Any

from contracts.batch import secret_of
from contracts.stage import Quote, Stage
from node.protocol import delivery, merkle
from tests.contracts.batching import leg
from tests.contracts.deliveries import DH, Evidence, noise


def spoilt(stage: Stage, number: int, buyer: str, seller: str, **changes: Any) -> Quote:
    """Return a trade whose goods of one leaf are noise."""
    quote = leg(stage, number, buyer, seller, **changes)
    return quote._replace(
        offer_root=merkle.root_of(noise(100)),
        goods_root=merkle.root_of(bytes(100)),
        leaf_count=1,
        byte_length=100,
        dh_commitment=delivery.dh_commitment(DH, quote.trade_id),
    )


def evidence_of(quote: Quote) -> Evidence:
    offered = merkle.leaf_hash(0, noise(100))
    return Evidence(secret_of(quote.trade_id), DH, 0, bytes(100), (), offered, ())
