"""Reads the logs of a node's data directory: its events, oldest first."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Told = dict[str, Any]


def read_events(home: Path, names: Iterable[str] | None = None) -> list[Told]:
    """Return the events of these names (of all without) that a node has logged so far."""
    wanted = None if names is None else frozenset(names)
    return [e for e in _events(home / "logs") if wanted is None or e.get("event") in wanted]


def _events(logs: Path) -> Iterator[Told]:
    # a log that is full is moved aside, the oldest under the highest number
    for path in sorted(logs.glob("*.jsonl*"), key=_age, reverse=True) if logs.is_dir() else ():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            yield from _event(line)


def _event(line: str) -> Iterator[Told]:
    with contextlib.suppress(ValueError):  # a line that is being written
        event = json.loads(line)
        if isinstance(event, dict):
            yield event


def _age(path: Path) -> int:
    suffix = path.suffix.removeprefix(".")
    return int(suffix) if suffix.isdigit() else 0


class Tail:
    """Reads what a node adds to its log, each line once.

    A log that is full is moved aside, and another begun in its place (`JsonLines`): what is
    left of the one is read before the other.
    """

    def __init__(self, path: Path) -> None:
        """Begin at the present end of the log; one that is not there yet is read from its start."""
        self._path = path
        self._cut = b""
        self._file = self._opened()
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> list[Told]:
        """Return the events that were added since the last time, oldest first."""
        found: list[Told] = []
        while True:
            self._file = self._file or self._opened()
            if self._file is None:
                return found
            moved = self._moved(self._file)  # asked first: what the old one got is all read below
            *lines, self._cut = (self._cut + self._file.read()).split(b"\n")
            found += [event for line in lines for event in _event(line.decode(errors="replace"))]
            if not moved:
                return found
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._cut = None, b""

    def _opened(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None

    def _moved(self, file: BinaryIO) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False  # between the two: the next time will tell
