"""What every experiment tells alike: means with their intervals, tables, the console."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from node.devnet.report.differences import interval

WIDTH: Final = 110
"""Of tables that no terminal limits, in characters."""


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, its interval and how many values they are of: of the finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    mean, low, high = interval(finite) if finite else (None, None, None)
    return {"mean": mean, "low": low, "high": high, "n": len(finite)}


def open_console(width: int = WIDTH) -> Console:
    """Return stdout, of `width` where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def table_of(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Collection[str] = (),
) -> Table:
    """Return a table; the first column and those headed as in `left` are set to the left."""
    table = Table(title=title)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place and heading not in left else "left")
    for row in rows:
        table.add_row(*row)
    return table
