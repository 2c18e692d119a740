"""Reads the tables in the essays that open the machines, and the graphs beside them."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Final

PROTOCOL: Final = Path(__file__).resolve().parents[2] / "node" / "protocol"
_EDGE: Final = re.compile(r'^\s*"([^"]+)" -> "([^"]+)" \[label="([^"]*)"\];?$', re.MULTILINE)


def rows(module: ModuleType) -> list[tuple[str, ...]]:
    """Return the cells of the one table in a module's docstring, without its head."""
    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert set("".join(cells[1])) == {"-"}, f"{module.__name__} has no table"
    return cells[2:]


def edges(name: str) -> list[tuple[str, str, str]]:
    """Return source, target and label of every edge of a graph in `node/protocol`."""
    return _EDGE.findall((PROTOCOL / f"{name}.dot").read_text(encoding="utf-8"))
