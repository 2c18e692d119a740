"""Where records go: a list, a rotated file of JSON lines, a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import TextIO, TypeVar

from node.observe.observer import Event, Level, Record
from node.observe.plain import shown

E = TypeVar("E", bound=Event)


class Memory:
    """Keeps all records, for tests and reports."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __call__(self, record: Record) -> None:
        """Keep `record`."""
        self.records.append(record)

    def events(self, kind: type[E]) -> list[E]:
        """Return the events of one kind so far."""
        return [record.event for record in self.records if isinstance(record.event, kind)]


class JsonLines:
    """Writes each record as a line of JSON, to files of `max_bytes` of which `keep` stay.

    A full disk must not stop a trade: the first failed write is told on standard error,
    and `lost` counts the lines that are missing.
    """

    def __init__(
        self,
        path: Path,
        *,
        level: Level = Level.DEBUG,
        max_bytes: int = 16 * 1024 * 1024,
        keep: int = 5,
    ) -> None:
        self._path = path
        self._level = level
        self._max_bytes = max_bytes
        self._keep = keep
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self.lost = 0

    def __call__(self, record: Record) -> None:
        """Append `record`."""
        if record.event.level < self._level:
            return
        line = json.dumps(record.document(), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                if not self.lost:
                    print(f"cannot write {self._path}: {error}", file=sys.stderr)  # noqa: T201
                self.lost += 1

    def close(self) -> None:
        """Close the file; a later record opens it again."""
        with self._lock:
            self._close()

    def _append(self, line: bytes) -> None:
        if self._descriptor is not None and self._size + len(line) > self._max_bytes > 0:
            self._close()
            self._rotate()
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        while line:
            written = os.write(self._descriptor, line)
            self._size += written
            line = line[written:]

    def _rotate(self) -> None:
        for age in range(self._keep - 1, 0, -1):
            older = self._aged(age)
            if older.exists():
                older.replace(self._aged(age + 1))
        if self._keep > 0:
            self._path.replace(self._aged(1))
        else:
            self._path.unlink()

    def _aged(self, age: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{age}")

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Console:
    """Writes each record as one line for a person."""

    def __init__(self, stream: TextIO, *, level: Level = Level.INFO) -> None:
        self._stream = stream
        self._level = level

    def __call__(self, record: Record) -> None:
        """Write `record`."""
        if record.event.level < self._level:
            return
        details = " ".join(f"{name}={shown(value)}" for name, value in record.fields().items())
        mark = {Level.WARNING: "! ", Level.ERROR: "!! "}.get(record.event.level, "")
        words = record.name.replace("_", " ")
        line = f"{record.time:%H:%M:%S} {mark}{words} {details}".rstrip()
        with contextlib.suppress(OSError):  # a closed terminal does not stop a node
            self._stream.write(line + "\n")
            self._stream.flush()
