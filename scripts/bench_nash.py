#!/usr/bin/env python3
"""How long a hundred thousand Nash bargains take, on arrays and one by one.

    python scripts/bench_nash.py [--bargains 100000]

The two are the same rule; before anything is timed they are compared bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Json  # noqa: E402  (path above)
from broker_node.mechanisms.nash import Nash  # noqa: E402
from broker_node.mechanisms.nash_many import NashBargains, nash_many  # noqa: E402

BARGAINS: Final = 100_000
ROUNDS: Final = 5
KEYS: Final = ("v_a_own", "v_a_other", "v_b_own", "v_b_other")
SCALAR: Final = "one by one, from JSON"


def markets(count: int) -> dict[str, np.ndarray]:
    """Return values, weights, disagreements and budgets [count], a tenth of budgets infinite."""
    generator = np.random.Generator(np.random.Philox(1))
    drawn = {key: generator.uniform(0, 10, count) for key in KEYS}
    drawn["tau"] = generator.uniform(0, 1, count)
    for side in "ab":
        drawn[f"disagreement_{side}"] = generator.uniform(0, 1, count)
        cash = generator.uniform(0, 8, count)
        drawn[f"budget_{side}"] = np.where(cash > 7.2, np.inf, cash)
    return drawn


def on_arrays(drawn: dict[str, np.ndarray]) -> NashBargains:
    """Return all bargains at once."""
    return nash_many(
        *(drawn[key] for key in KEYS),
        tau=drawn["tau"],
        disagreement=(drawn["disagreement_a"], drawn["disagreement_b"]),
        budget=(drawn["budget_a"], drawn["budget_b"]),
    )


def as_json(drawn: dict[str, np.ndarray]) -> list[dict[str, Json]]:
    """Return each market by the keys of the command line."""
    columns = {key: values.tolist() for key, values in drawn.items()}
    made: list[dict[str, Json]] = []
    for index in range(len(columns["tau"])):
        market: dict[str, Json] = {key: columns[key][index] for key in (*KEYS, "tau")}
        market["disagreement"] = [columns[f"disagreement_{side}"][index] for side in "ab"]
        cash = [columns[f"budget_{side}"][index] for side in "ab"]
        market["budget"] = [None if held == float("inf") else held for held in cash]
        made.append(market)
    return made


def transfers(cases: list[dict[str, Json]]) -> list[Json]:
    """Return the net transfer of each market, cleared on its own."""
    nash = Nash()
    return [
        nash.clear(case, tolerance=DEFAULT_TOLERANCE, seed=0).values["net_transfer_to_a"]
        for case in cases
    ]


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes on this core."""
    began = time.process_time()
    work()
    return time.process_time() - began


def rows(count: int = BARGAINS) -> list[dict[str, Any]]:
    """Return the median time of each way, after both gave the same transfers."""
    drawn = markets(count)
    cases = as_json(drawn)
    assert on_arrays(drawn).net_transfer_to_a_N.tolist() == transfers(cases)
    ways: dict[str, Callable[[], object]] = {
        "on arrays": lambda: on_arrays(drawn),
        SCALAR: lambda: transfers(cases),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, work in ways.items():
            times[way].append(seconds(work))
    medians = {way: statistics.median(found) for way, found in times.items()}
    return [
        {
            "case": f"{count:,} bargains {way}",
            "value": round(median, 4),
            "unit": "s",
            "against": None if way == SCALAR else SCALAR,
            "ratio": None if way == SCALAR else round(median / medians[SCALAR], 4),
        }
        for way, median in medians.items()
    ]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bargains", type=int, default=BARGAINS, help="how many")
    for row in rows(parser.parse_args().bargains):
        print(f"{row['case']:45}{row['value']:>9} {row['unit']}")


if __name__ == "__main__":
    main()
