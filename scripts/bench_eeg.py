#!/usr/bin/env python3
"""How long the weight market takes to clear, on one core, against CVXPY with CLARABEL.

    python scripts/bench_eeg.py [--case 512x200x3]

Ours is the whole of `clear`, from JSON lists to JSON lists, at a relative gap of 1e-8; theirs
is `Problem.solve` alone, on arrays. Both gaps are computed by the certificate, of what each
answers once it is made feasible. Neither has more than one thread, and seconds are those of
its processor, which on a shared machine are fewer than those that pass. Demands are uniform
on 0.1 … 1, budgets on 0.5 … 1.5, capacities 1, and every other buyer has a limit.

Without CVXPY (`pip install cvxpy clarabel`) there is no ratio; the larger case has none.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

CASES: Final = ("512x200x3", "2048x400x3")
COMPARED: Final = "512x200x3"
ROUNDS: Final = 3
TOLERANCE: Final = 1e-8
ONE_THREAD: Final = {
    f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL", "RAYON")
}


def market(case: str) -> dict[str, Any]:
    """Return a market of that many buyers × sellers × types, the same every time."""
    import numpy as np  # noqa: PLC0415  its threads are set before it is imported

    buyers, sellers, types = (int(part) for part in case.split("x"))
    generator = np.random.Generator(np.random.Philox(1))
    demand = generator.uniform(0.1, 1.0, (buyers, sellers, types))
    budget = generator.uniform(0.5, 1.5, buyers)
    # what a buyer's share by budget of everything would give it, and up to twice that
    share = (1 / demand.max(axis=2)).sum(axis=1) * budget / budget.sum()
    limits = share * generator.uniform(0.5, 2.0, buyers)
    return {
        "demand": demand.tolist(),
        "budget": budget.tolist(),
        "max_utility": [float(limit) if s % 2 else None for s, limit in enumerate(limits)],
        "capacity": np.ones((sellers, types)).tolist(),
    }


def clear(case: str) -> tuple[float, float]:
    """Return the median processor seconds, and the relative gap, of our own solver."""
    from broker_node.mechanisms.eeg import ExtendedEisenbergGale  # noqa: PLC0415  as above

    mechanism, inputs = ExtendedEisenbergGale(), market(case)
    mechanism.clear(market("4x3x2"), tolerance=TOLERANCE, seed=0)  # imports what it needs
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        outcome = mechanism.clear(inputs, tolerance=TOLERANCE, seed=0)
        seconds.append(time.process_time() - start)
    certificate = mechanism.verify(inputs, outcome)
    if not certificate.valid:
        raise SystemExit(f"the certificate of {case} fails: {certificate.violations}")
    gap = outcome.values["relative_gap"]
    assert isinstance(gap, float)
    return statistics.median(seconds), gap


def by_cvxpy(case: str) -> tuple[float, float]:
    """Return the processor seconds, and the relative gap, of CVXPY with CLARABEL."""
    import numpy as np  # noqa: PLC0415  as above

    from broker_node.mechanisms.weight_market.certificate import duality_gap  # noqa: PLC0415
    from broker_node.mechanisms.weight_market.market import read  # noqa: PLC0415

    cvxpy: Any = importlib.import_module("cvxpy")  # a development dependency
    known = read(market(case))
    buyers, sellers = known.edge_SJ.shape
    x = cvxpy.Variable((buyers, sellers), nonneg=True)
    utility = cvxpy.sum(x, axis=1)
    held = [
        cvxpy.sum(cvxpy.multiply(known.demand_SJR[:, :, r], x), axis=0) <= known.capacity_JR[:, r]
        for r in range(known.capacity_JR.shape[1])
    ]
    finite = np.flatnonzero(np.isfinite(known.limit_S))
    limits = [utility[finite] <= known.limit_S[finite]]
    problem = cvxpy.Problem(cvxpy.Maximize(known.budget_S @ cvxpy.log(utility)), [*held, *limits])
    start = time.process_time()
    problem.solve(solver=cvxpy.CLARABEL)
    seconds = time.process_time() - start
    price_JR = np.maximum(np.stack([one.dual_value for one in held], axis=1), 0)
    x_SJ = np.maximum(x.value, 0)
    over_JR = np.maximum((x_SJ[:, :, None] * known.demand_SJR).sum(axis=0), 1)
    x_SJ /= over_JR.max(axis=1)
    bought_S = np.minimum(x_SJ.sum(axis=1), known.limit_S)
    gap = duality_gap(known, known.limit_S, price_JR, bought_S)
    return seconds, float(gap / known.budget_S.sum())


def measured(case: str) -> list[dict[str, Any]]:
    """Return the rows of one case; to be called where BLAS has one thread."""
    seconds, gap = clear(case)
    time_row = {"case": case, "value": seconds, "unit": "s"}
    gap_row = {"case": f"{case} gap", "value": gap, "unit": "relative gap"}
    if case == COMPARED and importlib.util.find_spec("cvxpy"):
        their_seconds, their_gap = by_cvxpy(case)
        time_row |= {"against": f"CVXPY + CLARABEL {their_seconds:.3g} s"}
        time_row |= {"ratio": their_seconds / seconds}
        gap_row |= {"against": f"CVXPY + CLARABEL {their_gap:.2g}", "ratio": their_gap / gap}
    return [time_row, gap_row]


def rows(cases: tuple[str, ...] = CASES) -> list[dict[str, Any]]:
    """Measure each case in a process of its own, for threads are counted at its start."""
    found = []
    for case in cases:
        command = [sys.executable, str(Path(__file__).resolve()), "--case", case, "--json"]
        run = subprocess.run(
            command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, check=True
        )
        found += json.loads(run.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, help="one of them; all without it")
    parser.add_argument("--json", action="store_true", help="measure here, and print rows")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measured(options.case)))
        return
    for row in rows((options.case,) if options.case else CASES):
        print(row)


if __name__ == "__main__":
    main()
