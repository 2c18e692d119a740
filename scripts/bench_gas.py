#!/usr/bin/env python3
"""Gas of every operation of the escrow against its floor, measured now on eth-tester.

The floor is the sum of what no contract with this interface could save; `contracts/gas.py`
derives it term by term.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from contracts.gas import measure  # noqa: E402  (the path above comes first)


def rows() -> list[dict[str, Any]]:
    """Return a row for each operation: case, value, unit, against, ratio (value by floor)."""
    return [
        {
            "case": row.operation,
            "value": row.gas,
            "unit": "gas",
            "against": "floor",
            "ratio": row.gas / row.floor,
        }
        for row in measure()
    ]


def main() -> None:
    """Print the rows."""
    for row in rows():
        print(f"{row['case']:24}{row['value']:>8} {row['unit']}  {row['ratio']:.3f} of the floor")


if __name__ == "__main__":
    main()
