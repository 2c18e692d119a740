"""The weights that a purchase gave, which may be made again of what they were made of.

What was bought stays in the store, and so do the weights that it was tried on for as long as the
round is not over. So a merge that the disk has spoilt in the meantime is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from node.params.architecture import Architecture, layout, parse_architecture, part_of
from node.params.encoding import decode_file, encode_tensors
from node.params.errors import StoreError
from node.params.fusion import fuse_merges
from node.params.merges import (
    architecture_after,
    mean_of_merges,
    merge_bought,
    require_applicable,
)
from node.params.recipe import Recipe
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.kinship import is_adapter, require_kin
from node.protocol.parameters import encoded_length
from node.protocol.purchase import PurchaseRecord
from node.protocol.types import ONE, Digest, Millionths

HALF: Final = Millionths(ONE // 2)
"""Of two adapters every share but none and all gives one architecture."""
PASSING: Final = frozenset({"unreadable", "disk", "disk-full", "busy"})
"""What a disk may do once and not again; anything else is of the bytes that lie there."""


class LostMergeError(MarketError):
    """What a purchase gave lies spoilt on our disk, and so does what it was made of."""


class Held(NamedTuple):
    """Weights in the store, and the text of what they are of."""

    architecture: str
    root: Digest


Given = tuple[PurchaseRecord, dict[str, torch.Tensor]]
"""A purchase, and its merged weights."""


def read_tensors(blobs: BlobStore, architecture: str, root: Digest) -> dict[str, torch.Tensor]:
    """Return the tensors of a blob, of the architecture of this text.

    Raises `RemoteProtocolError` (most often `ProfileError`) if the blob does not hold them.
    """
    return decode_file(blobs.path(root), layout(parse_architecture(architecture)))


def require_mergeable(own: str, sold: str) -> None:
    """Raise `RemoteProtocolError` unless what is `sold` can be merged into what is our `own`.

    Their texts alone are looked at: ``wrong-base`` or ``architecture-mismatch``, and
    ``bad-architecture`` for adapters that are too large together.
    """
    require_kin(own, sold)
    if is_adapter(own):
        architecture_after(parse_architecture(own), parse_architecture(sold), HALF)


def merge_of(record: PurchaseRecord) -> Held:
    """Return as what the merged weights of a purchase are held; raises `RemoteProtocolError`."""
    measured, text = record.evaluation, record.own_architecture
    if is_adapter(text):
        own, sold = map(parse_architecture, (text, measured.architecture))
        text = architecture_after(own, sold, measured.alpha).text
    return Held(text, measured.merged_root)


def merged_weights(blobs: BlobStore, record: PurchaseRecord) -> dict[str, torch.Tensor]:
    """Return what a purchase gave; if its blob cannot be read, it is made again in its place.

    Raises `LostMergeError` if neither can be done, and deletes the blob then. `StoreError` and
    ``unreadable`` are of a disk that may yet do it.
    """
    held = merge_of(record)
    try:
        return read_tensors(blobs, *held)
    except RemoteProtocolError as error:
        unread = error
    try:
        _merge_again(blobs, record)
        return read_tensors(blobs, *held)
    except (RemoteProtocolError, StoreError) as error:
        if error.reason in PASSING:
            raise
        missing = error
    if unread.reason in PASSING:
        raise unread
    blobs.delete(held.root)
    raise LostMergeError(
        f"trade {record.trade_id.hex()}: its merged weights are lost ({unread}), and cannot be "
        f"made again ({missing})"
    )


def merge(blobs: BlobStore, record: PurchaseRecord) -> Digest:
    """Apply the recipe of a purchase to what it was tried on and to what was bought.

    Returns the root of what came of it, which is in the store. Raises `RemoteProtocolError`.
    """
    own, sold = map(parse_architecture, (record.own_architecture, record.evaluation.architecture))
    base = decode_file(blobs.path(record.evaluation.base_root), layout(own))
    bought = decode_file(blobs.path(record.quote.offer_root), layout(sold, record.layers))
    _, merged = merge_bought((own, base), (sold, bought), Recipe.decode(record.recipe))
    return blobs.put_bytes(encode_tensors(merged)).root


def check_recipe(record: PurchaseRecord) -> None:
    """Raise `RemoteProtocolError` unless the recipe was measured, and can be applied by us.

    ``bad-recipe`` for other groups of units, or other sizes, than our own architecture has. To
    derive those of a module takes of the order of a second a block, so that this belongs in a
    thread.
    """
    recipe = Recipe.decode(record.recipe)
    if recipe.hash != record.evaluation.recipe_hash or recipe.alpha != record.evaluation.alpha:
        raise RemoteProtocolError("wrong-recipe", "not the one that was measured")
    if record.quote.leaf_count != merkle.leaf_count(record.quote.byte_length):
        raise RemoteProtocolError("wrong-size", f"{record.quote.leaf_count} leaves")
    own, sold = map(parse_architecture, (record.own_architecture, record.evaluation.architecture))
    require_applicable(own, layout(sold, record.layers), recipe)


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
    blobs: BlobStore, merged: Sequence[Given]
) -> tuple[dict[str, torch.Tensor], Held, tuple[str, ...]]:
    """Fuse what purchases on the same weights gave; returns it, and as what it is in the store.

    Where all of it cannot be fused, what can is, the most gain first, and what was left out is
    named: nothing that was paid keeps a round from its end. Raises `RemoteProtocolError`, and
    `StoreError`, of a disk that may yet do it (`PASSING`).
    """
    try:
        return *_fused(blobs, merged), ()
    except MarketError as error:
        _require_lasting(error)
    in_order = sorted(merged, key=lambda g: (-g[0].evaluation.gain, g[0].quote.offer_root))
    fitting, unfit = in_order[:1], []
    found = _fused(blobs, fitting)
    for one in in_order[1:]:
        try:
            found = _fused(blobs, [*fitting, one])
            fitting.append(one)
        except MarketError as error:
            _require_lasting(error)
            unfit.append(f"trade {one[0].trade_id.hex()}: cannot be fused with the rest ({error})")
    return *found, tuple(unfit)


def _require_lasting(error: MarketError) -> None:
    """Raise an error again that is not of what is to be fused, but of a disk."""
    if getattr(error, "reason", "") in PASSING:
        raise error


def _fused(blobs: BlobStore, merged: Sequence[Given]) -> tuple[dict[str, torch.Tensor], Held]:
    """Fuse all of it, in the order of what was sold, which a restart does not change."""
    first = merged[0][0]
    if len(merged) == 1:
        return merged[0][1], merge_of(first)
    architecture = parse_architecture(first.own_architecture)
    own = _there(blobs, first.own_architecture, first.evaluation.base_root)
    in_order = sorted(merged, key=lambda one: one[0].quote.offer_root)
    if is_adapter(first.own_architecture):
        bought = [_bought(blobs, record) for record, _ in in_order]
        architecture, fused = mean_of_merges((architecture, own), bought)
    else:
        sold = [part_of(architecture, tensors, record.layers) for record, tensors in in_order]
        fused = fuse_merges(own, sold)
    return fused, Held(architecture.text, blobs.put_bytes(encode_tensors(fused)).root)


def _bought(
    blobs: BlobStore, record: PurchaseRecord
) -> tuple[Architecture, dict[str, torch.Tensor], Millionths]:
    text, root = record.evaluation.architecture, record.quote.offer_root
    return parse_architecture(text), _there(blobs, text, root), record.evaluation.alpha


def _there(blobs: BlobStore, text: str, root: Digest) -> dict[str, torch.Tensor]:
    """Return tensors as `read_tensors`; ``missing-blob`` of what no later reading can bring."""
    if not blobs.has(root):
        raise StoreError("missing-blob", root.hex())
    return read_tensors(blobs, text, root)


def _merge_again(blobs: BlobStore, record: PurchaseRecord) -> None:
    """Put the merge under its root, in place of what lies there."""
    for root in (record.evaluation.base_root, record.quote.offer_root):
        blobs.verify(root)
    root = merge(blobs, record)
    if root != record.evaluation.merged_root:
        raise RemoteProtocolError("wrong-merge", f"{root.hex()} is not what was measured")
