"""The development chain's memory: one append-only file, written before anything happens.

Layout: a first record with the genesis (JSON), then one record for each block.

    record = u32 length ‖ u64 timestamp ‖ u8 kind ‖ u32 crc(header so far) ‖ u32 crc(payload)
             ‖ payload

A process that dies while it appends leaves a torn last record: it was never answered, so
it is cut off when the file is next opened. Damage anywhere else is a `ChainLogError`; a
chain that cannot be trusted is not served. The file is locked for as long as it is open.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from node.chain.errors import ChainLogError
from node.protocol.types import UnixTime

_HEAD: Final = struct.Struct(">IQB")
_CHECKS: Final = struct.Struct(">II")
_HEADER_BYTES: Final = _HEAD.size + _CHECKS.size
MAX_PAYLOAD: Final = 1 << 20


class Kind(enum.IntEnum):
    """What a record is."""

    GENESIS = 1
    TRANSACTION = 2
    """The payload is the raw signed transaction of a block of its own."""
    EMPTY = 3
    """A block without transactions, for its timestamp alone."""


@dataclass(frozen=True, slots=True)
class Record:
    kind: Kind
    timestamp: UnixTime
    payload: bytes


class ChainLog:
    """An open, locked log file; `records` is what it held when it was opened."""

    def __init__(self, path: Path) -> None:
        """Open or create the log.

        Raises `ChainLogError` if another process has it, or if it is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.records = self._recover()
        except BaseException:
            os.close(self._file)
            raise
        self._closed = False

    def _recover(self) -> tuple[Record, ...]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ChainLogError(f"{self.path} is in use by another process") from error
        data = self.path.read_bytes()
        records, end = _parse(data, self.path)
        if end < len(data):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        if not data:
            _sync_directory(self.path.parent)
        return tuple(records)

    def append(self, record: Record, *, durable: bool = True) -> None:
        """Write a record; when it returns, the death of this process cannot lose it.

        With `durable`, nor can the death of the machine. Raises `ChainLogError` if the disk
        does not take it; then it is as if it had never been tried.
        """
        before = os.fstat(self._file).st_size
        encoded = _encode(record)
        try:
            if os.write(self._file, encoded) != len(encoded):
                raise OSError(errno.ENOSPC, "the record was written in part")
            if durable:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise ChainLogError(f"cannot write {self.path}: {error}") from error

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _encode(record: Record) -> bytes:
    head = _HEAD.pack(len(record.payload), record.timestamp, record.kind)
    checks = _CHECKS.pack(zlib.crc32(head), zlib.crc32(record.payload))
    return head + checks + record.payload


def _parse(data: bytes, path: Path) -> tuple[list[Record], int]:
    """Return the whole records, and where they end."""
    records: list[Record] = []
    at = 0
    while at < len(data):
        record = _record_at(data, at, path)
        if record is None:
            break
        records.append(record)
        at += _HEADER_BYTES + len(record.payload)
    return records, at


def _record_at(data: bytes, at: int, path: Path) -> Record | None:
    """Return the record at `at`, None if it is the last one and torn."""
    body = at + _HEADER_BYTES
    if body > len(data) or not any(data[at:]):
        return None  # zeros: the file had grown, and nothing had been written yet
    length, timestamp, kind = _HEAD.unpack_from(data, at)
    head_check, payload_check = _CHECKS.unpack_from(data, at + _HEAD.size)
    if zlib.crc32(data[at : at + _HEAD.size]) != head_check or length > MAX_PAYLOAD:
        raise ChainLogError(f"{path} is damaged at byte {at}")
    end = body + length
    if end > len(data):
        return None
    payload = data[body:end]
    if zlib.crc32(payload) != payload_check:
        if end == len(data):
            return None
        raise ChainLogError(f"{path} is damaged at byte {body}")
    try:
        return Record(Kind(kind), UnixTime(timestamp), payload)
    except ValueError as error:
        raise ChainLogError(f"{path} has a record of kind {kind} at byte {at}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
