#!/usr/bin/env python3
"""The door to the benchmarks: `scripts/bench.py NAME [--json] [--quick]`.

Each is a module `scripts/bench_NAME.py` with a function `rows()` that measures now and
returns rows of case, value and unit, with a ratio where the value is set against another.
One that takes `quick` has a small case for `--quick`; the others are refused with it.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent

BENCHMARKS: Final[Mapping[str, str]] = {
    "align": "lining up the units of two models, against the algorithm as published",
    "alpha": "the search for the best share of a merge",
    "delivery": "making the goods of one trade, next to plain SHA-256",
    "devices": "what a device would change of a trial: transfers, recipes, compiled passes",
    "eeg": "clearing the weight market, on one core",
    "gas": "gas of the escrow's operations against their floor",
    "gpu": "what a device does of a broker's work, and how near it comes to its measured rates",
    "memory": "rooting and merging parameter sets that are larger than memory should hold",
    "market": "the best seller of each buyer, by shared probes and by trying every pair",
    "modules": "networks of one's own with batch normalisation, merged and reset",
    "imports": "importing the mechanisms, in a fresh process",
    "nash": "a hundred thousand Nash bargains",
    "offers": "signed offers checked by a node's gossip validator",
    "replicas": "copies in disguise told from models that learned the same by themselves",
    "quality": "accuracy of one merge by alignment method, beside what else the buyer could do",
    "resnet": "residual networks on Fashion-MNIST, merged by every alignment",
    "transfer": "verified transfer of a parameter set over loopback",
    "transformers": "loss barriers between two language models, by alignment method",
    "widths": "merging models of other hidden widths, beside the controls of that",
}
COLUMNS: Final = ("case", "value", "unit", "against", "ratio")


class BenchmarkError(Exception):
    """There is no such benchmark, or its rows are not as they should be."""


def measure(name: str, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return the rows of the benchmark `name`, with exactly the `COLUMNS`.

    Raises `BenchmarkError` if it is unknown, absent, has no quick case where one is asked
    for, or returns something else; or for data that it must not measure on: ``rows-overlap``.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    if not (HERE / f"bench_{name}.py").is_file():
        raise BenchmarkError(f"this checkout has no scripts/bench_{name}.py")
    for folder in (str(ROOT), str(HERE)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    rows = importlib.import_module(f"bench_{name}").rows
    if quick and "quick" not in inspect.signature(rows).parameters:
        raise BenchmarkError(f"{name} has no quick case")
    from node.data.files import DataError  # noqa: PLC0415  the checkout's, once it is on the path

    try:
        found = rows(quick=True) if quick else rows()
    except DataError as error:
        raise BenchmarkError(f"{name}: {error}") from error
    return [_checked(name, row) for row in found]


def _checked(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    unknown = row.keys() - set(COLUMNS)
    lacking = {"case", "value", "unit"} - row.keys()
    if unknown or lacking:
        raise BenchmarkError(f"a row of {name} has {sorted(unknown)} and lacks {sorted(lacking)}")
    return {column: row.get(column) for column in COLUMNS}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def show(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for people."""
    from rich.console import Console  # noqa: PLC0415  not needed for --json
    from rich.table import Table  # noqa: PLC0415

    facts = machine()
    table = Table(title=f"{name}: {BENCHMARKS[name]}")
    table.caption = f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}"
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in {"value", "ratio"} else "left")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in COLUMNS))
    Console().print(table)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
        case int():
            return f"{value:,}"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named; returns the exit status, 2 for an unknown one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark")
    parser.add_argument("--quick", action="store_true", help="a small case, where there is one")
    parser.add_argument("--all", action="store_true", help="every benchmark")
    options = parser.parse_args(arguments)
    if options.name is None and not options.all:
        print(f"name a benchmark: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    names = [options.name]
    if options.all:
        names = [name for name in BENCHMARKS if (HERE / f"bench_{name}.py").is_file()]
    for name in names:
        try:
            rows = measure(name, quick=options.quick)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 2
        if options.json:
            print(json.dumps({"name": name, "machine": machine(), "rows": rows}))
        else:
            show(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
