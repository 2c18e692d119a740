"""A blob on its way in: what has arrived is checked before it is written, and is not lost.

Each leaf is compared with the hash list, which was compared with the root. Chunks of 4 MiB
are ticked off in a file of one byte each, after the chunk itself is safe on the disk; on the
way back from a crash each ticked chunk is hashed again, so the ticks need not be believed.
Whatever of an unfinished chunk had arrived is asked for again.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from node.params.disk import (
    CHUNK_BYTES,
    PARTIAL_SUFFIX,
    RECEIVED_SUFFIX,
    BlobRef,
    named,
    open_private,
    reading,
    sync_directory,
    write_all,
)
from node.params.errors import StoreError
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.merkle import LEAF_BYTES, leaf_hashes
from node.protocol.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LEAVES_PER_CHUNK = CHUNK_BYTES // LEAF_BYTES


class PartialBlob:
    """The writing end of a transfer. One at a time for each root; close it, or use `with`.

    Raises `StoreError("busy")` while another one has the same partial file open.
    """

    def __init__(
        self, path: Path, hashes: Path, ref: BlobRef, closed: Callable[[], None] | None = None
    ) -> None:
        """`path` is where the blob will be; `hashes` its list, which must be right.

        `closed` is called once, as soon as it is closed; not if it could not be opened.
        """
        self._path, self._hashes, self._ref, self._closed = path, hashes, ref, closed
        self._chunks = -(-ref.byte_length // CHUNK_BYTES)
        self._arrived: dict[int, bytearray] = {}
        """For each chunk that has begun to arrive, a byte for each leaf."""
        self._descriptors: list[int] = []
        self._done = bytearray(b"\1" * self._chunks)
        self._data = self._ticks = -1
        self._finished = path.exists()
        if self._finished:
            return
        with named(path):
            try:
                self._data = self._open(path.with_suffix(PARTIAL_SUFFIX))
                self._lock()
                self._ticks = self._open(path.with_suffix(RECEIVED_SUFFIX))
                os.ftruncate(self._data, ref.byte_length)
                os.ftruncate(self._ticks, self._chunks)
                self._resume()
            except BaseException:
                self._let_go()
                raise

    @property
    def root(self) -> Digest:
        """The root that the list of leaf hashes was checked against."""
        return self._ref.root

    def missing(self) -> list[tuple[int, int]]:
        """Offset and length of what has not arrived, in ascending pieces of 4 MiB at most."""
        ranges = []
        for chunk in range(self._chunks):
            if self._done[chunk]:
                continue
            begin, end = self._span(chunk)
            arrived = self._arrived.get(chunk)
            if arrived is None:
                ranges.append((begin, end - begin))
                continue
            leaf = arrived.find(0)
            while leaf >= 0:
                stop = arrived.find(1, leaf)
                stop = len(arrived) if stop < 0 else stop
                first = begin + leaf * LEAF_BYTES
                ranges.append((first, min(end, begin + stop * LEAF_BYTES) - first))
                leaf = arrived.find(0, stop)
        return ranges

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Check `data` leaf by leaf and write it at `offset`, any range of whole leaves.

        Raises `RemoteProtocolError("wrong-chunk")`, with nothing written, if it is not what
        the blob has there, and `LocalProtocolError` for an offset where no leaf begins.
        """
        if offset % LEAF_BYTES or not 0 <= offset < self._ref.byte_length:
            raise LocalProtocolError(f"no leaf begins at {offset}")
        end = offset + len(data)
        whole = end == self._ref.byte_length or end % LEAF_BYTES == 0
        if not data or end > self._ref.byte_length or not whole:
            raise RemoteProtocolError("wrong-chunk", f"{len(data)} bytes at {offset}")
        if self._finished:
            return
        first = offset // LEAF_BYTES
        bad = self._first_bad_leaf(first, data)
        if bad is not None:
            raise RemoteProtocolError("wrong-chunk", f"leaf {bad} of {self._ref.root.hex()}")
        with named(self._path):
            write_all(self._data, data, offset)
            self._tick(self._mark(first, -(-len(data) // LEAF_BYTES)))

    def finish(self) -> BlobRef:
        """Put the blob in its place and close; raises `StoreError("incomplete")` before that."""
        missing = len(self.missing())
        if missing:
            raise StoreError("incomplete", f"{missing} ranges of {self._path.name} are missing")
        if not self._finished:
            with named(self._path):
                os.fsync(self._data)
                self._path.with_suffix(PARTIAL_SUFFIX).replace(self._path)
                sync_directory(self._path.parent)
                self._path.with_suffix(RECEIVED_SUFFIX).unlink(missing_ok=True)
            self._finished = True
        self.close()
        return self._ref

    def close(self) -> None:
        """Let go of the files; what has arrived stays. Safe to repeat."""
        self._let_go()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    def _let_go(self) -> None:
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.pop())
        # a number that is closed may soon be another file's
        self._data = self._ticks = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path) -> int:
        descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        self._descriptors.append(descriptor)
        return descriptor

    def _lock(self) -> None:
        try:
            fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError("busy", f"{self._path.name} is being received already") from error

    def _resume(self) -> None:
        ticked = os.pread(self._ticks, self._chunks, 0)
        self._done = bytearray(self._chunks)
        for chunk, tick in enumerate(ticked):
            begin, end = self._span(chunk)
            if tick != 1:
                continue
            data = os.pread(self._data, end - begin, begin)
            if self._first_bad_leaf(begin // LEAF_BYTES, data) is None:
                self._done[chunk] = 1
        write_all(self._ticks, bytes(self._done), 0)

    def _span(self, chunk: int) -> tuple[int, int]:
        begin = chunk * CHUNK_BYTES
        return begin, min(begin + CHUNK_BYTES, self._ref.byte_length)

    def _first_bad_leaf(self, first: int, data: bytes | memoryview) -> int | None:
        got = leaf_hashes(data, first)
        with reading(self._hashes) as descriptor:
            want = os.pread(descriptor, len(got), first * DIGEST_BYTES)
        if got == want:
            return None
        if len(got) != len(want):
            raise StoreError("corrupt-hashes", self._hashes.name)
        for at in range(0, len(got), DIGEST_BYTES):
            if got[at : at + DIGEST_BYTES] != want[at : at + DIGEST_BYTES]:
                return first + at // DIGEST_BYTES
        return first

    def _mark(self, first: int, count: int) -> list[int]:
        """Note leaves as arrived; return the chunks that are whole now and were not before."""
        completed = []
        for chunk in range(
            first // _LEAVES_PER_CHUNK, (first + count - 1) // _LEAVES_PER_CHUNK + 1
        ):
            if self._done[chunk]:
                continue
            begin, end = self._span(chunk)
            leaves = -(-(end - begin) // LEAF_BYTES)
            arrived = self._arrived.setdefault(chunk, bytearray(leaves))
            low = max(0, first - chunk * _LEAVES_PER_CHUNK)
            high = min(leaves, first + count - chunk * _LEAVES_PER_CHUNK)
            arrived[low:high] = b"\1" * (high - low)
            if 0 not in arrived:
                completed.append(chunk)
        return completed

    def _tick(self, chunks: list[int]) -> None:
        if not chunks:
            return
        os.fdatasync(self._data)
        for chunk in chunks:
            write_all(self._ticks, b"\1", chunk)
            self._done[chunk] = 1
            del self._arrived[chunk]
