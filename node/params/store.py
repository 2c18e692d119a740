"""Blobs on disk, each under its Merkle root: encoded parameter sets, and goods.

A blob is two files, ``<root in hex>`` and ``<root in hex>.hashes``, the list of its leaf
hashes. The list may be there without the blob: a buyer must hold it before it pays. Both
come to be by a rename of a finished file, so that what has a name is whole; still, disks
rot, and nothing is sold, nor anybody accused, on a byte that was not hashed again. A blob
on its way in has files of its own (`node.params.partial`); what is left of one that nobody
fetches any more is a leftover.

All methods are synchronous, and what they hold in memory does not grow with the blob, but for
`hashes`, a list of 32 bytes for each KiB. A store may be used from several threads at once.
Every method raises `StoreError` for what the disk does.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final, NoReturn

from node.params.disk import (
    DRAFT_PREFIX,
    HASHES_SUFFIX,
    PARTIAL_SUFFIX,
    RECEIVED_SUFFIX,
    STREAM_BYTES,
    BlobDraft,
    BlobRef,
    Draft,
    chunks,
    drafting,
    named,
    prepare_directory,
    reading,
    sync_directory,
)
from node.params.errors import BadGoodsError, StoreError
from node.params.goods import make_goods
from node.params.partial import PartialBlob
from node.protocol import merkle
from node.protocol.delivery import Keystream
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.merkle import LEAF_BYTES
from node.protocol.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path


_SUFFIXES: Final = ("", PARTIAL_SUFFIX, RECEIVED_SUFFIX, HASHES_SUFFIX)
"""Of the files of one blob, which are deleted in this order: the list goes last."""


class BlobStore:
    """The blobs in one directory, which it makes private to its owner (0700, files 0600)."""

    def __init__(self, directory: Path) -> None:
        prepare_directory(directory)
        self._directory = directory
        self._writing: Counter[Digest] = Counter()
        """Blobs whose files come to be at this moment, and downloads that are open."""
        self._lock = Lock()
        """Held while `_writing` changes, and while leftovers are looked for and deleted."""

    # -- what is there -------------------------------------------------------------------

    def path(self, root: Digest) -> Path:
        """Where the blob is, or would be."""
        if len(root) != DIGEST_BYTES:
            raise LocalProtocolError(f"a root has {DIGEST_BYTES} bytes, got {len(root)}")
        return self._directory / root.hex()

    def roots(self) -> frozenset[Digest]:
        """The roots of all blobs that are wholly here."""
        with named(self._directory):
            names = [path.name for path in self._directory.iterdir() if not path.suffix]
        found = {Digest(bytes.fromhex(name)) for name in names if _is_root(name)}
        return frozenset(root for root in found if self.has(root))

    def leftovers(self) -> frozenset[Digest]:
        """The roots of which something is here, but not the whole blob.

        That is a hash list, a part that has arrived, or both. What is being written by this
        store, in whichever thread, is none: neither is an open download.
        """
        with self._lock:
            return self._leftovers()

    def _leftovers(self) -> frozenset[Digest]:
        with named(self._directory):
            paths = [path for path in self._directory.iterdir() if path.suffix in _SUFFIXES]
        found = {Digest(bytes.fromhex(path.stem)) for path in paths if _is_root(path.stem)}
        return frozenset(root for root in found - self._writing.keys() if not self.has(root))

    def has(self, root: Digest) -> bool:
        """Whether the blob and its hash list are both here."""
        path = self.path(root)
        with named(path):
            return path.is_file() and path.with_suffix(HASHES_SUFFIX).is_file()

    def ref(self, root: Digest) -> BlobRef:
        """The size of a blob that is here; ``missing-blob`` if it is not."""
        with reading(self.path(root)) as descriptor:
            size = os.fstat(descriptor).st_size
        if size == 0:
            raise StoreError("corrupt-blob", f"{root.hex()} is empty")
        return BlobRef(root=root, leaf_count=merkle.leaf_count(size), byte_length=size)

    def read(self, root: Digest, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; ``bad-range`` if the blob has no such range."""
        return _read_exactly(self.path(root), offset, length)

    def hashes(self, root: Digest, first: int = 0, count: int | None = None) -> bytes:
        """The leaf hashes, concatenated: all, or `count` from leaf `first` on.

        Raises ``missing-hashes``, and ``bad-range`` if there are not so many.
        """
        path = self._hashes_path(root)
        if count is None:
            with named(path):
                count = path.stat().st_size // DIGEST_BYTES - first
        return _read_exactly(path, first * DIGEST_BYTES, count * DIGEST_BYTES)

    def leaf(self, root: Digest, index: int) -> bytes:
        """The bytes of one leaf, the last of which may be short."""
        length = merkle.leaf_length(index, self.ref(root).byte_length)
        return self.read(root, index * LEAF_BYTES, length)

    def proof(self, root: Digest, index: int) -> tuple[bytes, ...]:
        """The Merkle path of one leaf, from the hash list alone."""
        return merkle.proof(self.hashes(root), index)

    def verify(self, root: Digest) -> None:
        """Hash the blob again; ``corrupt-blob`` or ``corrupt-hashes`` if the disk changed it."""
        ref = self.ref(root)
        self._require_hashes(root, ref.byte_length)
        stream = merkle.StreamingRoot()
        for chunk in self._chunks(ref):
            stream.update(chunk)
        if stream.finish()[0] != root:
            raise StoreError("corrupt-blob", root.hex())

    # -- putting and taking away ---------------------------------------------------------

    def put_bytes(self, data: bytes | memoryview) -> BlobRef:
        """Keep `data` under its root; `LocalProtocolError` if it is empty."""
        return self.put_chunks([data])

    def put_chunks(self, chunks: Iterable[bytes | memoryview]) -> BlobRef:
        """Keep a blob that comes in pieces of any size."""
        with drafting(self._directory) as draft:
            for chunk in chunks:
                draft.write(chunk)
            ref, _ = draft.finish()
            self._keep(draft, ref)
        return ref

    def put_hashes(self, root: Digest, byte_length: int, hashes: bytes) -> BlobRef:
        """Keep the hash list of a blob that is not here, or not yet.

        Raises `RemoteProtocolError("wrong-hash-list")` unless it is the list under `root`.
        """
        try:
            computed = merkle.root_of_hashes(hashes, byte_length)
        except LocalProtocolError as error:
            raise RemoteProtocolError("wrong-hash-list", str(error)) from error
        if computed != root:
            raise RemoteProtocolError("wrong-hash-list", f"not the list under {root.hex()}")
        path = self.path(root).with_suffix(HASHES_SUFFIX)
        with named(path):
            draft = Draft(self._directory)
            try:
                draft.write(hashes)
                draft.keep(path)
                sync_directory(self._directory)
            finally:
                draft.discard()
        return BlobRef(
            root=root, leaf_count=merkle.leaf_count(byte_length), byte_length=byte_length
        )

    def writer(self, root: Digest, byte_length: int, hashes: bytes | None = None) -> PartialBlob:
        """The writing end of a transfer, which goes on where an earlier one was cut off.

        `hashes` may be left out if `put_hashes` has been here. Raises as `put_hashes` does,
        and ``missing-hashes`` or ``corrupt-hashes``.
        """
        path = self.path(root)
        self._hold(root)
        try:
            if hashes is not None:
                self.put_hashes(root, byte_length, hashes)
            else:
                self._require_hashes(root, byte_length)
            leaves = merkle.leaf_count(byte_length)
            ref = BlobRef(root=root, leaf_count=leaves, byte_length=byte_length)
            closed = partial(self._let_go, root)
            return PartialBlob(path, self._hashes_path(root), ref, closed)
        except BaseException:
            self._let_go(root)
            raise

    def delete(self, root: Digest) -> None:
        """Forget a blob, its hash list, and any part of it; no error if there is none."""
        self._unlink(root, *_SUFFIXES)

    def delete_leftovers(self, kept: Collection[Digest]) -> frozenset[Digest]:
        """Delete all `leftovers` but those of `kept`; return the roots of what was deleted.

        Only for the owner of the directory: another process's downloads look abandoned.
        """
        with self._lock:
            found = self._leftovers().difference(kept)
            for root in found:
                self.delete(root)
        return found

    def sweep(self) -> int:
        """Remove drafts that a killed process left, and return how many.

        Only for the owner of the directory, as it starts: a live draft looks the same.
        """
        with named(self._directory):
            drafts = list(self._directory.glob(f"{DRAFT_PREFIX}*"))
            for path in drafts:
                path.unlink(missing_ok=True)
        return len(drafts)

    # -- goods ---------------------------------------------------------------------------

    def encrypt(self, root: Digest, key: bytes, processes: int | None = None) -> BlobRef:
        """Encrypt a blob into a new one, the goods of one trade; one key for one delivery.

        The plaintext is hashed as it is read: an encryptor whose disk changed a byte would be
        convicted for it. Raises ``corrupt-blob`` then. `processes` is 1 or 2; unless it is
        said, a large blob is made by two of them.
        """
        source = self.ref(root)
        with drafting(self._directory) as draft:
            goods, hashes = draft.paths
            made = make_goods(
                self.path(root), goods, hashes, source.byte_length, key, processes=processes
            )
            if made.offered != root:
                raise StoreError("corrupt-blob", root.hex())
            ref = replace(source, root=made.goods)
            self._keep(draft, ref)
        return ref

    def decrypt_to(self, cipher_root: Digest, key: bytes, plain_root: Digest) -> BlobRef:
        """Decrypt goods into the blob that was offered, whose hash list is here already.

        Raises `BadGoodsError` with the first leaf that differs from the list, the evidence of
        a dispute, and only after it has made sure that no file of our own is at fault:
        ``corrupt-blob`` and ``corrupt-hashes`` are those. Nothing is kept then.
        """
        source, keystream = self.ref(cipher_root), Keystream(key)
        with drafting(self._directory) as draft, reading(self._hashes_path(plain_root)) as wanted:
            at = 0
            for chunk in self._chunks(source):
                got = draft.write(keystream.apply(chunk))
                self._compare(wanted, at, got, cipher_root, plain_root)
                at += len(got)
            ref, got = draft.finish()
            self._compare(wanted, at, got, cipher_root, plain_root)
            if ref.root != plain_root:
                raise StoreError("corrupt-hashes", plain_root.hex())
            self._keep(draft, ref)
        return ref

    def bad_leaf(self, cipher_root: Digest, key: bytes, plain_root: Digest) -> int | None:
        """The first leaf of goods that came as it was sold, and opens to another than was offered.

        As `decrypt_to` finds it, but nothing is written: it is found on a full disk too. Raises
        ``corrupt-hashes`` for a list of ours that is.
        """
        source, keystream = self.ref(cipher_root), Keystream(key)
        for root in (cipher_root, plain_root):
            self._require_hashes(root, source.byte_length)
        first = 0
        for chunk in self._chunks(source):
            count = merkle.leaf_count(len(chunk))
            opened = merkle.leaf_hashes(keystream.apply(chunk), first)
            if opened != (offered := self.hashes(plain_root, first, count)):
                came, sold = (
                    merkle.leaf_hashes(chunk, first),
                    self.hashes(cipher_root, first, count),
                )
                for at in range(0, len(opened), DIGEST_BYTES):
                    leaf = slice(at, at + DIGEST_BYTES)
                    if opened[leaf] != offered[leaf] and came[leaf] == sold[leaf]:
                        return first + at // DIGEST_BYTES
            first += count
        return None

    def _compare(
        self, wanted: int, at: int, got: bytes, cipher_root: Digest, plain_root: Digest
    ) -> None:
        want = os.pread(wanted, len(got), at)
        if want == got:
            return
        for position in range(0, len(got), DIGEST_BYTES):
            if got[position : position + DIGEST_BYTES] != want[position : position + DIGEST_BYTES]:
                self._blame((at + position) // DIGEST_BYTES, cipher_root, plain_root)

    def _blame(self, index: int, cipher_root: Digest, plain_root: Digest) -> NoReturn:
        """A leaf is wrong: raise whose fault it is."""
        byte_length = self.ref(cipher_root).byte_length
        self._require_hashes(plain_root, byte_length)
        self._require_hashes(cipher_root, byte_length)
        received = merkle.leaf_hash(index, self.leaf(cipher_root, index))
        if received != self.hashes(cipher_root, index, 1):
            raise StoreError("corrupt-blob", f"leaf {index} of {cipher_root.hex()}")
        raise BadGoodsError(index)

    # -- files ---------------------------------------------------------------------------

    def _hashes_path(self, root: Digest) -> Path:
        path = self.path(root).with_suffix(HASHES_SUFFIX)
        with named(path):
            if not path.is_file():
                raise StoreError("missing-hashes", path.name)
        return path

    def _require_hashes(self, root: Digest, byte_length: int) -> None:
        """Raise ``corrupt-hashes`` unless the list is that of a blob of this root and size."""
        path = self._hashes_path(root)
        top = merkle.TreeTop()
        with reading(path) as descriptor:
            at = 0
            while piece := os.pread(descriptor, STREAM_BYTES, at):
                top.update(piece)
                at += len(piece)
        if at != merkle.leaf_count(byte_length) * DIGEST_BYTES or top.root(byte_length) != root:
            raise StoreError("corrupt-hashes", path.name)

    def _chunks(self, ref: BlobRef) -> Iterator[bytes]:
        return chunks(self.path(ref.root), 0, ref.byte_length)

    def _keep(self, draft: BlobDraft, ref: BlobRef) -> None:
        """Put a blob in its place; its list, which comes first, is no leftover meanwhile."""
        self._hold(ref.root)
        try:
            draft.keep(ref)
        finally:
            self._let_go(ref.root)

    def _hold(self, root: Digest) -> None:
        with self._lock:
            self._writing[root] += 1

    def _let_go(self, root: Digest) -> None:
        with self._lock:
            self._writing[root] -= 1
            if not self._writing[root]:
                del self._writing[root]

    def _unlink(self, root: Digest, *suffixes: str) -> None:
        path = self.path(root)
        with named(path):
            for suffix in suffixes:
                path.with_suffix(suffix).unlink(missing_ok=True)


def _read_exactly(path: Path, offset: int, length: int) -> bytes:
    with reading(path) as descriptor:
        if offset < 0 or length < 0 or offset + length > os.fstat(descriptor).st_size:
            raise StoreError("bad-range", f"{length} bytes at {offset} of {path.name}")
        pieces = []
        while length > 0 and (piece := os.pread(descriptor, length, offset)):
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
    return b"".join(pieces)


def _is_root(name: str) -> bool:
    return len(name) == 2 * DIGEST_BYTES and set(name) <= set("0123456789abcdef")
