"""Opens goods that were paid for: decrypts, checks, applies the recipe, or proves them bad."""

from __future__ import annotations

from typing import Final

from node.agent.merging import merge
from node.params.errors import BadGoodsError, StoreError
from node.params.store import BlobStore
from node.protocol import delivery
from node.protocol.dispute import Evidence, proves_bad
from node.protocol.errors import RemoteProtocolError
from node.protocol.events import BadGoods, Delivered, PurchaseEvent
from node.protocol.purchase import PurchaseRecord
from node.protocol.types import Digest

SPOILT: Final = frozenset({"missing-blob", "missing-hashes", "corrupt-blob", "corrupt-hashes"})
"""What may be wrong with goods on our disk, that another fetch can mend."""


def clear_spoilt(blobs: BlobStore, root: Digest) -> None:
    """Delete goods that are not what they were, so that they are fetched once more."""
    try:
        blobs.verify(root)
    except StoreError as error:
        if error.reason not in SPOILT:
            raise
        blobs.delete(root)


def unseal(blobs: BlobStore, purchase: PurchaseRecord, secret: Digest) -> PurchaseEvent:
    """Decrypt, check, apply the recipe. Raises `StoreError` for what may be mended."""
    quote, evaluation = purchase.quote, purchase.evaluation
    key = delivery.delivery_key(secret, _dh(purchase), quote.trade_id)
    try:
        blobs.decrypt_to(quote.goods_root, key, quote.offer_root)
    except BadGoodsError as error:
        return BadGoods(_prove(blobs, purchase, secret, error.index))
    try:
        root = merge(blobs, purchase)
    except RemoteProtocolError as error:
        return Delivered(f"the recipe does not apply: {error}")
    if root != evaluation.merged_root:
        return Delivered("the recipe does not give the weights that were measured")
    return Delivered()


def accuse(blobs: BlobStore, purchase: PurchaseRecord, secret: Digest) -> BadGoods | None:
    """Look for a bad leaf, and write nothing."""
    quote = purchase.quote
    key = delivery.delivery_key(secret, _dh(purchase), quote.trade_id)
    index = blobs.bad_leaf(quote.goods_root, key, quote.offer_root)
    return None if index is None else BadGoods(_prove(blobs, purchase, secret, index))


def _prove(blobs: BlobStore, purchase: PurchaseRecord, secret: Digest, index: int) -> Evidence:
    """Show a bad leaf, from our own files. Raises `StoreError` if these do not prove it."""
    quote = purchase.quote
    evidence = Evidence(
        secret=secret,
        dh=_dh(purchase),
        index=index,
        leaf=blobs.leaf(quote.goods_root, index),
        goods_path=_digests(blobs.proof(quote.goods_root, index)),
        offered=Digest(blobs.hashes(quote.offer_root, index, 1)),
        offer_path=_digests(blobs.proof(quote.offer_root, index)),
    )
    if not proves_bad(quote, evidence):  # the disk changed a byte since it was checked
        raise StoreError("corrupt-blob", f"leaf {index} of {quote.goods_root.hex()}")
    return evidence


def _dh(purchase: PurchaseRecord) -> Digest:
    return Digest(delivery.shared_secret(purchase.private_key, purchase.seller_key))


def _digests(path: tuple[bytes, ...]) -> tuple[Digest, ...]:
    return tuple(Digest(each) for each in path)
