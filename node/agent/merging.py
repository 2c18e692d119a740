"""The weights that a purchase gave, which may be made again of what they were made of.

What was bought stays in the store, and so do the weights that it was tried on for as long as the
round is not over. So a merge that the disk has spoilt in the meantime is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from node.params.architecture import layout, parse_architecture, part_of
from node.params.encoding import decode_file, encode_tensors
from node.params.errors import StoreError
from node.params.fusion import fuse_merges
from node.params.recipe import Recipe, apply_recipe
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.parameters import encoded_length
from node.protocol.purchase import PurchaseRecord
from node.protocol.types import Digest

PASSING: Final = frozenset({"unreadable", "disk", "disk-full", "busy"})
"""What a disk may do once and not again; anything else is of the bytes that lie there."""


class LostMergeError(MarketError):
    """What a purchase gave lies spoilt on our disk, and so does what it was made of."""


def read_tensors(blobs: BlobStore, architecture: str, root: Digest) -> dict[str, torch.Tensor]:
    """Return the tensors of a blob, of the architecture of this text.

    Raises `RemoteProtocolError` (most often `ProfileError`) if the blob does not hold them.
    """
    return decode_file(blobs.path(root), layout(parse_architecture(architecture)))


def merged_weights(blobs: BlobStore, record: PurchaseRecord) -> dict[str, torch.Tensor]:
    """Return what a purchase gave; if its blob cannot be read, it is made again in its place.

    Raises `LostMergeError` if neither can be done, and deletes the blob then. `StoreError` and
    ``unreadable`` are of a disk that may yet do it.
    """
    measured = record.evaluation
    try:
        return read_tensors(blobs, measured.architecture, measured.merged_root)
    except RemoteProtocolError as error:
        unread = error
    try:
        _merge_again(blobs, record)
        return read_tensors(blobs, measured.architecture, measured.merged_root)
    except (RemoteProtocolError, StoreError) as error:
        if error.reason in PASSING:
            raise
        missing = error
    if unread.reason in PASSING:
        raise unread
    blobs.delete(measured.merged_root)
    raise LostMergeError(
        f"trade {record.trade_id.hex()}: its merged weights are lost ({unread}), and cannot be "
        f"made again ({missing})"
    )


def merge(blobs: BlobStore, record: PurchaseRecord) -> Digest:
    """Apply the recipe of a purchase to what it was tried on and to what was bought.

    Returns the root of what came of it, which is in the store. Raises `RemoteProtocolError`.
    """
    measured = record.evaluation
    architecture = parse_architecture(measured.architecture)
    base = decode_file(blobs.path(measured.base_root), layout(architecture))
    sold = decode_file(blobs.path(record.quote.offer_root), layout(architecture, record.layers))
    merged = apply_recipe(architecture, base, sold, Recipe.decode(record.recipe))
    return blobs.put_bytes(encode_tensors(merged)).root


def check_recipe(record: PurchaseRecord) -> None:
    """Raise `RemoteProtocolError` unless the recipe is the one that was measured."""
    recipe = Recipe.decode(record.recipe)
    if recipe.hash != record.evaluation.recipe_hash or recipe.alpha != record.evaluation.alpha:
        raise RemoteProtocolError("wrong-recipe", "not the one that was measured")
    if record.quote.leaf_count != merkle.leaf_count(record.quote.byte_length):
        raise RemoteProtocolError("wrong-size", f"{record.quote.leaf_count} leaves")


def check_length(record: PurchaseRecord) -> None:
    """Raise `RemoteProtocolError` unless the goods are as long as the layers that they are to be.

    Other layers of that length show themselves only when they are decrypted.
    """
    architecture = parse_architecture(record.evaluation.architecture)
    expected = encoded_length(layout(architecture, record.layers))
    if record.quote.byte_length != expected:
        raise RemoteProtocolError(
            "wrong-layout", f"{record.quote.byte_length} bytes, its layers have {expected}"
        )


def fuse_bought(
    blobs: BlobStore, merged: Sequence[tuple[PurchaseRecord, dict[str, torch.Tensor]]]
) -> tuple[dict[str, torch.Tensor], Digest]:
    """Fuse what several purchases on the same weights gave; returns it, and its root in the store.

    They are taken in the order of what was sold, which a restart does not change.
    """
    measured = merged[0][0].evaluation
    architecture = parse_architecture(measured.architecture)
    own = read_tensors(blobs, measured.architecture, measured.base_root)
    in_order = sorted(merged, key=lambda one: one[0].quote.offer_root)
    sold = [part_of(architecture, tensors, record.layers) for record, tensors in in_order]
    fused = fuse_merges(own, sold)
    return fused, blobs.put_bytes(encode_tensors(fused)).root


def _merge_again(blobs: BlobStore, record: PurchaseRecord) -> None:
    """Put the merge under its root, in place of what lies there."""
    for root in (record.evaluation.base_root, record.quote.offer_root):
        blobs.verify(root)
    root = merge(blobs, record)
    if root != record.evaluation.merged_root:
        raise RemoteProtocolError("wrong-merge", f"{root.hex()} is not what was measured")
