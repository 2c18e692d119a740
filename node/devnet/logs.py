"""Reads the logs of a node's data directory: its events, oldest first."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Told = dict[str, Any]


def read_events(home: Path, names: Iterable[str] | None = None) -> list[Told]:
    """Return the events of these names (of all without) that a node has logged so far."""
    wanted = None if names is None else frozenset(names)
    return [e for e in _events(home / "logs") if wanted is None or e.get("event") in wanted]


def _events(logs: Path) -> Iterator[Told]:
    # a log that is full is moved aside, the oldest under the highest number
    for path in sorted(logs.glob("*.jsonl*"), key=_age, reverse=True) if logs.is_dir() else ():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a line that is being written
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event


def _age(path: Path) -> int:
    suffix = path.suffix.removeprefix(".")
    return int(suffix) if suffix.isdigit() else 0
