#!/usr/bin/env python3
"""The papers' experiments, played again: `scripts/reproduce.py table1|table2|linear|convergence`.

Played on the floor of `node.devnet.floor`: the market's own training, trials and prices, with
nothing between the agents. `pm-node devnet` plays the same through nodes, contract and chain;
without prices the weights are the same to the bit.

Each table stands beside the paper's figures (*Train 'n Trade*, arXiv 2312.04740), with paired
differences over the seeds and their 95% Student-t intervals, whatever their sign.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from node.devnet.arms import ARMS, OUT_OF_MARKET
from node.devnet.floor import Floor, FloorResult
from node.devnet.report.differences import better_by, interval
from node.devnet.report.document import Metric
from node.devnet.spec import RunSpec

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE1: Final = {
    OUT_OF_MARKET: (68.50, 72.97),
    "fedavg": (81.98, 81.98),
    "unaligned": (84.64, 84.64),
    "aligned": (86.96, 86.96),
}
"""Accuracy of A and B on MNIST, percent: Table 1."""
TABLE2: Final[dict[tuple[int, ...], str]] = {
    (3, 4): "{3,4}",
    (2, 3, 4): "{2,3,4}",
    (0, 1, 2): "{0,1,2}",
    (0, 1): "{0,1}",
    (): "all",
}
"""Layers of the perceptron that are offered and bought: Table 2."""
LINEAR: Final = (42.84, 23.88)
"""Percent of the loss that A and B are spared: §6.1.3."""
TARGETS: Final = (60.0, 70.0, 80.0)


@dataclass(frozen=True)
class Case:
    """One line of a table with one seed."""

    name: str
    spec: RunSpec
    arm: str
    seed: int
    layers: frozenset[int] = frozenset()
    least_ratio: float | None = None
    always: bool = False


@dataclass
class Played:
    name: str
    seed: int
    last: list[float]
    curves: list[list[tuple[int, float]]]
    possible: int = 0
    traded: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def play(case: Case) -> Played:
    """Play one case; for a pool of processes."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    floor = Floor(
        case.spec, ARMS[case.arm], case.seed,
        layers=case.layers, least_ratio=case.least_ratio, always=case.always,
    )  # fmt: skip
    found: FloorResult = floor.play()
    return Played(
        case.name, case.seed, [curve[-1][1] for curve in found.curves], found.curves,
        found.possible, found.traded, found.lost, time.monotonic() - begun,
    )  # fmt: skip


def spec_of(options: argparse.Namespace, **changes: Any) -> RunSpec:
    spec = RunSpec(
        folder=ROOT / "runs" / "reproduce",
        dataset="mnist",
        protocol=options.protocol,
        priced=options.priced,
        data_folder=options.data_folder,
    )
    return replace(spec, **changes)


def table1(options: argparse.Namespace, seeds: Sequence[int]) -> list[Case]:
    spec = spec_of(options)
    return [Case(arm, spec, arm, seed) for seed in seeds for arm in ARMS]


def table2(options: argparse.Namespace, seeds: Sequence[int]) -> list[Case]:
    spec = spec_of(options)
    cases = [Case(OUT_OF_MARKET, spec, OUT_OF_MARKET, seed) for seed in seeds]
    return cases + [
        Case(name, spec, "aligned", seed, layers=frozenset(layers))
        for seed in seeds
        for layers, name in TABLE2.items()
    ]


def linear(options: argparse.Namespace, seeds: Sequence[int]) -> list[Case]:
    spec = spec_of(options, dataset="linear", warmup_epochs=0, rounds=100, priced=False)
    return [
        Case(arm, spec, arm, seed, least_ratio=1.0)
        for seed in seeds
        for arm in (OUT_OF_MARKET, "unaligned")
    ]


def convergence(options: argparse.Namespace, seeds: Sequence[int]) -> list[Case]:
    spec = spec_of(options, priced=False)
    cases = [Case("never trade", spec, OUT_OF_MARKET, seed) for seed in seeds]
    return cases + [Case("always trade", spec, "aligned", s, always=True) for s in seeds]


STUDIES: Final[dict[str, tuple[Callable[..., list[Case]], str, int]]] = {
    "table1": (table1, "Table 1: accuracy on MNIST, percent", 10),
    "table2": (table2, "Table 2: accuracy by the layers that are traded, percent", 10),
    "linear": (linear, "§6.1.3: mean squared test loss, and what of it the market spares", 12),
    "convergence": (
        convergence,
        "Theorem 5.1 as an experiment: epochs until a test accuracy, always trade or never",
        10,
    ),
}


def run(cases: list[Case], jobs: int, *, quiet: bool) -> list[Played]:
    found: list[Played] = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for played in pool.imap_unordered(play, cases):
            found.append(played)
            if not quiet:
                ends = "  ".join(f"{figure:.2f}" for figure in played.last)
                print(
                    f"{len(found)}/{len(cases)}  seed {played.seed}  {played.name}  {ends}"
                    f"  {played.seconds:.0f} s",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
    return found


def summary(study: str, played: list[Played]) -> dict[str, Any]:
    names = list(dict.fromkeys(p.name for p in sorted(played, key=_rank)))
    by = {name: {p.seed: p for p in played if p.name == name} for name in names}
    metric: Metric = "loss" if study == "linear" else "accuracy"
    rows = []
    for name in names:
        row: dict[str, Any] = {"case": name}
        for agent in range(2):
            mean, low, high = interval([p.last[agent] for p in by[name].values()])
            row["AB"[agent]] = {"mean": mean, "low": low, "high": high}
        legs = sum(p.possible for p in by[name].values())
        row["traded"] = sum(p.traded for p in by[name].values()) / legs if legs else None
        row["lost"] = {
            cause: sum(p.lost.get(cause, 0) for p in by[name].values())
            for cause in sorted({c for p in by[name].values() for c in p.lost})
        }
        row["paper"] = TABLE1.get(name) if study == "table1" else None
        rows.append(row)
    pairs = []
    for i, against in enumerate(names):
        for of in names[i + 1 :]:
            seeds = sorted(by[of].keys() & by[against].keys())
            for agent in range(2):
                values = [
                    better_by(by[of][s].last[agent], by[against][s].last[agent], metric)
                    for s in seeds
                ]
                mean, low, high = interval(values)
                pairs.append(
                    {"of": of, "against": against, "agent": "AB"[agent], "mean": mean,
                     "low": low, "high": high, "n": len(seeds)}
                )  # fmt: skip
    document: dict[str, Any] = {"study": study, "rows": rows, "differences": pairs}
    if study == "convergence":
        document["epochs_to"] = _epochs_to(by)
    if study == "linear":
        document["paper"] = {"A": LINEAR[0], "B": LINEAR[1]}
    return document


def _rank(played: Played) -> int:
    order = [*ARMS, *TABLE2.values(), "never trade", "always trade"]
    return order.index(played.name) if played.name in order else len(order)


def _epochs_to(by: dict[str, dict[int, Played]]) -> list[dict[str, Any]]:
    """Passes until both agents' mean accuracy first reaches a target; never counts as None."""
    found = []
    for target in TARGETS:
        for name, seeds in by.items():
            needed = []
            for played in seeds.values():
                means = [
                    sum(curve[e][1] for curve in played.curves) / 2
                    for e in range(len(played.curves[0]))
                ]
                needed.append(next((e + 1 for e, m in enumerate(means) if m >= target), None))
            reached = [n for n in needed if n is not None]
            found.append(
                {"target": target, "case": name, "reached": len(reached), "of": len(needed),
                 "mean_epochs": sum(reached) / len(reached) if reached else None}
            )  # fmt: skip
    return found


def show(title: str, found: dict[str, Any], options: argparse.Namespace) -> None:
    console = Console()
    how = f"protocol {options.protocol}, {'priced' if options.priced else 'free'}"
    table = Table(
        title=f"{title}\n{how}, seeds {options.first}–{options.first + options.seeds - 1}"
    )
    for heading in ("case", "A", "B", "legs traded", "paper A/B"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for row in found["rows"]:
        table.add_row(
            row["case"], _mean(row["A"]), _mean(row["B"]),
            "–" if row["traded"] is None else f"{100 * row['traded']:.0f}%",
            "–" if row["paper"] is None else "{:.2f}/{:.2f}".format(*row["paper"]),
        )  # fmt: skip
    console.print(table)
    paired = Table(title="Paired differences over seeds, 95% intervals")
    for heading in ("of", "against", "agent", "difference", "interval"):
        paired.add_column(heading, justify="right" if heading == "difference" else "left")
    for row in found["differences"]:
        ends = "–" if row["low"] is None else f"[{row['low']:+.2f}, {row['high']:+.2f}]"
        paired.add_row(row["of"], row["against"], row["agent"], f"{row['mean']:+.2f}", ends)
    console.print(paired)
    if "paper" in found:
        console.print("The paper spares A {A}% and B {B}% of the loss.".format(**found["paper"]))
    for row in found.get("epochs_to", ()):
        epochs = "–" if row["mean_epochs"] is None else f"{row['mean_epochs']:.1f}"
        console.print(
            f"to {row['target']:.0f}%: {row['case']}: {epochs} epochs "
            f"({row['reached']} of {row['of']} seeds)"
        )


def _mean(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return f"{row['mean']:.2f}"
    return f"{row['mean']:.2f} ± {row['high'] - row['mean']:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, default=0, help="how many (default: the study's)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--protocol", choices=("paper", "clean"), default="paper")
    parser.add_argument("--priced", action="store_true", help="with prices and fees")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--data-folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    make, title, usual = STUDIES[options.study]
    options.seeds = options.seeds or usual
    seeds = range(options.first, options.first + options.seeds)
    cases = make(options, seeds)
    found = summary(options.study, run(cases, options.jobs, quiet=options.json))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(title, found, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
