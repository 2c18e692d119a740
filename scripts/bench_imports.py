#!/usr/bin/env python3
"""How long the mechanisms take to import, each time in a process of its own.

    python scripts/bench_imports.py

`broker_node.mechanisms.registry` is every mechanism of the command line; set against numpy,
which it needs. Seconds are those of the processor for the import alone, the interpreter being
up; the first run, which may write byte code, does not count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
ALL: Final = "broker_node.mechanisms.registry"
REFERENCE: Final = "numpy"
ROUNDS: Final = 5
_TIMED: Final = (
    "import importlib, sys, time; start = time.process_time(); "
    "importlib.import_module(sys.argv[1]); print(time.process_time() - start)"
)


def seconds(module: str) -> float:
    """Return the median processor time of an import in a fresh process."""
    found = []
    for _ in range(ROUNDS + 1):
        ran = subprocess.run(
            [sys.executable, "-c", _TIMED, module],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
        )
        found.append(float(ran.stdout))
    return statistics.median(found[1:])


def rows() -> list[dict[str, Any]]:
    """Measure now."""
    ours, reference = seconds(ALL), seconds(REFERENCE)
    return [
        {
            "case": ALL,
            "value": ours,
            "unit": "s",
            "against": f"{REFERENCE} alone {reference:.2g} s",
            "ratio": reference / ours,
        }
    ]


def main() -> None:
    for row in rows():
        print(row)


if __name__ == "__main__":
    main()
