"""Files that are whole or absent, private to their owner, and whose errors are named."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.params.errors import StoreError
from node.protocol.merkle import StreamingRoot, leaf_count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from node.protocol.types import Digest

CHUNK_BYTES: Final = 4 << 20
"""The piece of a blob that a transfer asks for and ticks off; a whole number of leaves."""
STREAM_BYTES: Final = 256 * 1024
"""How much is read, hashed and ciphered at a time: whole leaves, and little enough for a cache."""
PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700
DRAFT_PREFIX: Final = "draft-"
HASHES_SUFFIX: Final = ".hashes"
PARTIAL_SUFFIX: Final = ".partial"
RECEIVED_SUFFIX: Final = ".received"

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """What a blob is called and how big it is."""

    root: Digest
    leaf_count: int
    byte_length: int


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StoreError` that says what happened to `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError("missing-blob", str(path)) from error
    except OSError as error:
        reason = "disk-full" if error.errno in _NO_ROOM else "disk"
        raise StoreError(reason, f"{path}: {error.strerror}") from error


def open_private(path: Path, flags: int) -> int:
    """Open a file of the store, never through a link, readable by its owner alone."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """Open `path`, yield its descriptor, and name what goes wrong with it."""
    with named(path):
        descriptor = open_private(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[int]:
    """Open `path`, which is there, yield its descriptor, and name what goes wrong with it."""
    with named(path):
        descriptor = open_private(path, os.O_WRONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def chunks(path: Path, begin: int, end: int) -> Iterator[bytes]:
    """Read the bytes of a blob from `begin` to `end`; ``corrupt-blob`` if there are not so many."""
    with reading(path) as descriptor:
        for offset in range(begin, end, STREAM_BYTES):
            length = min(STREAM_BYTES, end - offset)
            chunk = os.pread(descriptor, length, offset)
            if len(chunk) != length:
                raise StoreError("corrupt-blob", f"{path.name} shrank")
            yield chunk


def chunks_in_place(path: Path, begin: int, end: int) -> Iterator[memoryview]:
    """`chunks`, all of them in one buffer: each is good until the next one is asked for."""
    buffer = memoryview(bytearray(STREAM_BYTES))
    with reading(path) as descriptor, io.FileIO(descriptor, closefd=False) as file:
        file.seek(begin)
        for offset in range(begin, end, STREAM_BYTES):
            chunk = buffer[: end - offset]
            if file.readinto(chunk) != len(chunk):
                raise StoreError("corrupt-blob", f"{path.name} shrank")
            yield chunk


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """`os.pwrite` until everything is written."""
    view = memoryview(data).cast("B")
    while len(view) > 0:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` as durable as the files they name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_directory(directory: Path) -> None:
    """Make `directory`, or take it back from group and others; raises `StoreError`."""
    with named(directory):
        directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            directory.chmod(PRIVATE_DIRECTORY)


class Draft:
    """A file that is being written: kept under its own name at the end, or never seen."""

    def __init__(self, directory: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=directory)
        self._path = Path(name)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")

    @property
    def path(self) -> Path:
        """Where it is while it is written."""
        return self._path

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write `data` at a place of its own; not to be mixed with `write`."""
        write_all(self._file.fileno(), data, offset)

    def keep(self, path: Path) -> None:
        """Make it durable and put it at `path`, in place of what was there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(path)

    def discard(self) -> None:
        """Close and remove it; harmless after `keep`."""
        with suppress(OSError):  # what is thrown away need not reach the disk
            self._file.close()
        self._path.unlink(missing_ok=True)


class BlobDraft:
    """A blob that is being written, with its leaf hashes beside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stream = StreamingRoot()
        self._data = Draft(directory)
        try:
            self._hashes = Draft(directory)
        except OSError:
            self._data.discard()
            raise

    def write(self, chunk: bytes | memoryview) -> bytes:
        """Append `chunk`; return the hashes of the leaves that it completed."""
        hashes = self._stream.update(chunk)
        self._data.write(chunk)
        self._hashes.write(hashes)
        return hashes

    @property
    def paths(self) -> tuple[Path, Path]:
        """Where the blob and its hash list come to be, for whoever writes both by themselves."""
        return self._data.path, self._hashes.path

    def finish(self) -> tuple[BlobRef, bytes]:
        """Return the name of what was written, and the hashes not yet returned."""
        root, byte_length, last = self._stream.finish()
        self._hashes.write(last)
        ref = BlobRef(root=root, leaf_count=leaf_count(byte_length), byte_length=byte_length)
        return ref, last

    def keep(self, ref: BlobRef) -> None:
        """Put both files in their places: the blob last, for it is what says that all is there."""
        path = self._directory / ref.root.hex()
        self._hashes.keep(path.with_suffix(HASHES_SUFFIX))
        self._data.keep(path)
        sync_directory(self._directory)

    def discard(self) -> None:
        self._data.discard()
        self._hashes.discard()


@contextmanager
def drafting(directory: Path) -> Iterator[BlobDraft]:
    """A blob to write in `directory`; unless it was kept, nothing of it is left."""
    with named(directory):
        draft = BlobDraft(directory)
        try:
            yield draft
        finally:
            draft.discard()
