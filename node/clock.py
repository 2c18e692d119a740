"""The wall clock, read by shells only; machines are given `now`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from node.protocol.types import UnixTime

Clock = Callable[[], UnixTime]


def wall_clock() -> UnixTime:
    """Return the present in whole seconds since 1970."""
    return UnixTime(int(datetime.now(UTC).timestamp()))
