#!/usr/bin/env python3
"""The papers' experiments, played again: `scripts/reproduce.py EXPERIMENT`.

Each is played by this repository's own code and told beside the paper's figures. It is saved in
``runs/reproduce`` while it is played; the same command goes on where it was interrupted, and
plays only what is missing if seeds are added. `reproduce.py EXPERIMENT --help` names its options.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper, and what of it can be played."""

    title: str
    experiments: Mapping[str, str]
    """By name on the command line: what it is, in one line."""
    modules: Mapping[str, str]
    """By name: the module whose `main` plays it; libraries are loaded with it, not before."""


_TRAIN_N_TRADE: Final = {
    "table1": "Table 1: accuracy on MNIST alone, by FedAvg, and with units as numbered or aligned",
    "table2": "Table 2: the same by the layers that are traded",
    "linear": "§6.1.3: what trading spares two linear agents of their test loss",
    "convergence": "Theorem 5.1, Figure 2: epochs to an accuracy, always against never trading",
    "figure3": "Figure 3: round by round, who buys, who leads, what the market spares",
    "figure4": "Figure 4: agents of different tasks, what trading still spares",
    "figure5": "Figure 5: negotiated prices against the optimal ones",
    "boundary": "beyond Figure 4: perceptrons of tasks moved apart, where trade stops paying",
    "dynamics": "beyond the paper: volume, prices and efficiency of a hundred agents",
}
_WEIGHT_MARKET: Final = {
    "weight-market": "Figures 2 and 3: utilities, fairness and time of five ways to clear",
    "fusion": "Figures 4 and 5: weight fusion and fine-tuning, against λ and FedAvg",
}
_TRIPLEWIN: Final = {
    "triplewin": "experiments 1, 2, 5 and 6: data and models priced together, four ways",
}
PAPERS: Final = (
    Paper(
        "Train 'n Trade: Foundations of Parameter Markets, arXiv 2312.04740",
        _TRAIN_N_TRADE,
        {**dict.fromkeys(_TRAIN_N_TRADE, "trade"), "boundary": "boundary"},
    ),
    Paper(
        "Knowledge Sharing in AI Services, IEEE IoT J. 10(2), 2023",
        _WEIGHT_MARKET,
        {"weight-market": "weight_market", "fusion": "fusion"},
    ),
    Paper("TripleWin, arXiv 2511.03368", _TRIPLEWIN, {"triplewin": "triplewin"}),
)
MODULES: Final = {name: module for paper in PAPERS for name, module in paper.modules.items()}
"""Of every experiment: where in `scripts.reproduction` its `main` is."""


def listed() -> str:
    """Return every experiment in a line of its own, by paper."""
    width = max(map(len, MODULES))
    lines: list[str] = []
    for paper in PAPERS:
        lines += ["", paper.title]
        lines += [f"  {name:<{width}}  {what}" for name, what in paper.experiments.items()]
    return "\n".join(lines[1:])


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        usage="%(prog)s EXPERIMENT [options]",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog=listed(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=list(MODULES), metavar="EXPERIMENT", help="see below")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 130 if it was interrupted; 2 if it cannot be played as asked."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next((word for word in words if word in MODULES), None)
    if name is None:
        parser_of().parse_args(words)  # says what is missing, and ends the program
        raise AssertionError(words)
    words.remove(name)
    module = importlib.import_module(f"scripts.reproduction.{MODULES[name]}")
    return int(module.main(name, words))


if __name__ == "__main__":
    sys.exit(main())
