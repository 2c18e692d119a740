"""Figures 4 and 5 of the weight market's paper: `reproduce.py fusion`.

A buyer that fuses the weights of one seller (Figure 4) or two (Figure 5) and is fine-tuned, for
several λ, beside FedAvg (§IV-B). The paper prints curves and words, and no table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import matplotlib as mpl
import numpy as np

from node.devnet.report.style import SETTINGS, SOFT, as_png, figure, whole_numbers
from scripts.reproduction.engine import Json
from scripts.reproduction.fusions import (
    ALONE,
    APART,
    CURVES,
    DIGITS,
    EPOCHS,
    FEDAVG,
    KEPT,
    LAMBDAS,
    MNIST,
    RECIPE,
    REPLACED,
    ROWS,
    SOURCE_EPOCHS,
    SPLITS,
    fused_name,
    play,
    settings,
)
from scripts.reproduction.seeds import Compared, Experiment, Grid, main_of, spread

COLOURS: Final = {
    KEPT: "#404040",
    fused_name(0.25): "#a6cee3",
    fused_name(0.5): "#3f8fc9",
    fused_name(0.75): "#00427a",
    REPLACED: "#c24e00",
    FEDAVG: "#1b865b",
    ALONE: "#8c6bb1",
}
FUSED: Final = tuple(fused_name(share) for share in LAMBDAS)
ORIGINAL_AFTER: Final = 15
"""Epochs after which Figure 5c's buyer is over its original accuracy."""


def _end(found: Json, where: str, curve: str) -> float:
    return float(found["curves"][where][curve][-1])


def _best(found: Json, where: str) -> float:
    return max(_end(found, where, curve) for curve in FUSED)


def _epochs_to_original(found: Json, where: str, curve: str) -> float:
    """Return after how many epochs a curve is first over λ = 0; NaN if never."""
    original = _end(found, where, KEPT)
    values = found["curves"][where][curve]
    return next((float(n) for n, value in enumerate(values) if value > original), math.nan)


def compare(_once: Json, played: Sequence[Json]) -> list[Compared]:
    """Return what the paper says of its Figures 4 and 5, and the same of these."""

    def row(
        where: str, what: str, paper: str, of: Callable[[Json], float], places: int = 1
    ) -> Compared:
        return Compared(
            where=where, what=what, paper=paper, values=[of(p) for p in played], places=places
        )

    def ahead(where: str, of: str, against: str) -> Callable[[Json], float]:
        return lambda p: _end(p, where, of) - _end(p, where, against)

    def best_ahead(where: str, against: str) -> Callable[[Json], float]:
        return lambda p: _best(p, where) - _end(p, where, against)

    def until(curve: str) -> Callable[[Json], float]:
        return lambda p: _epochs_to_original(p, "5c", curve)

    half, most = fused_name(0.5), fused_name(0.75)
    replaced = {"4a": "largest of 4", "4b": "smaller", "4c": "smallest of 4", "5c": "below 0"}
    fedavg = {"4a": "similar", "4b": "similar", "4c": "similar", "5a": "higher", "5c": "higher"}
    return [
        row("4a", "best λ after 50 epochs, over λ = 0: times", "more than 2",
            lambda p: _best(p, "4a") / _end(p, "4a", KEPT), 2),
        *(row(where, "best λ − λ = 0, points", "increases", best_ahead(where, KEPT))
          for where in SPLITS),
        *(row(where, "best λ − alone, trained on, points", "", best_ahead(where, ALONE))
          for where in SPLITS),
        *(row(where, "λ = 1 − λ = 0, points", replaced.get(where, ""),
              ahead(where, REPLACED, KEPT)) for where in SPLITS),
        *(row(where, "FedAvg − λ = 0.5, points", fedavg.get(where, ""),
              ahead(where, FEDAVG, half)) for where in SPLITS),
        *(row(where, "FedAvg − λ = 0.75, points", "significantly lower",
              ahead(where, FEDAVG, most)) for where in ("5a", "5c")),
        *(row("5c", f"{curve}: epochs until over λ = 0",
              str(ORIGINAL_AFTER) if curve == half else "", until(curve)) for curve in FUSED),
        row("5c", "greatest − least of the λ after 50 epochs, points", "not significant",
            lambda p: _best(p, "5c") - min(_end(p, "5c", curve) for curve in FUSED)),
    ]  # fmt: skip


def grids(_once: Json, played: Sequence[Json]) -> list[Grid]:
    """Return the accuracies before the first epoch of fine-tuning, and after the last."""
    headings = ["", *(f"{name} {'/'.join(map(str, split))}" for name, split in SPLITS.items())]
    return [
        Grid(
            f"Test accuracy, percent, {when} (buyer's percent of the rows / sellers')",
            headings,
            [
                [curve, *(spread([p["curves"][w][curve][at] for p in played], 1) for w in SPLITS)]
                for curve in CURVES
            ],
        )
        for when, at in (("as fused", 0), (f"after {EPOCHS} epochs", -1))
    ]


def draw(found: Json) -> bytes:
    """Return the six panels as PNG."""
    played = list(found["by_seed"].values())
    with mpl.rc_context(SETTINGS):
        drawn = figure(6.6, 12.0)
        drawn.suptitle(found["title"], x=0.01, ha="left", fontsize=12, fontweight="bold")
        grid = drawn.subplots(2, 3, sharex=True, sharey=True)
        for axes, (where, split) in zip(grid.flat, SPLITS.items(), strict=True):
            for curve in CURVES:
                by_seed = np.array([p["curves"][where][curve] for p in played])
                x, mean, half = np.arange(EPOCHS + 1), by_seed.mean(axis=0), by_seed.std(axis=0)
                flat = curve in {KEPT, REPLACED}
                colour = COLOURS[curve]
                style = "--" if flat else ":" if curve == ALONE else "-"
                axes.plot(x, mean, color=colour, linewidth=1.6, linestyle=style, label=curve)
                if not flat:
                    low, high = mean - half, mean + half
                    axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
            axes.set_title(f"{where}  ({'%, '.join(map(str, split))}%)")
            whole_numbers(axes)
        for axes in grid[-1]:
            axes.set_xlabel("epoch of fine-tuning")
        for axes in grid[:, 0]:
            axes.set_ylabel("test accuracy (%)")
        grid[0, 0].legend(fontsize=8, loc="lower right")
        caption = f"{found['variant']}; mean of {len(played)} seeds; band: standard deviation"
        drawn.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=SOFT)
        return as_png(drawn)


_DATA: Final = (
    "the paper fine-tunes convolutional networks on Stanford Cars (196 classes), here perceptrons "
    f"on ten classes with as many rows a class ({ROWS} in all), so that nobody starts as low"
)
_FEDAVG: Final = (
    "FedAvg ends above every λ here, for it goes on learning from everybody's rows; the paper has "
    "it level with λ = 0.5 and below λ = 0.75"
)
_CONTROL: Final = (
    "a part of what fusion gains over λ = 0 is the fine-tuning's: the buyer that trains on alone "
    "gets it too"
)
_OURS: Final = (
    f"hidden layers {'-'.join(map(str, RECIPE.hidden))}, step {RECIPE.learning_rate:g}, batches of "
    f"{RECIPE.batch_rows}, sources trained for {SOURCE_EPOCHS} epochs from one common "
    "initialisation (mnist-apart: each from its own), FedAvg starting from the sources' mean; the "
    "curve `alone, trained on` is ours"
)

EXPERIMENT: Final = Experiment(
    name="fusion",
    title="Weight fusion and fine-tuning against λ and FedAvg",
    source="Knowledge Sharing in AI Services, IEEE IoT J. 10(2), 2023: Figures 4 and 5",
    variants=(MNIST, DIGITS, APART),
    seeds=5,
    settings=settings,
    play=play,
    compare=compare,
    grids=grids,
    draw=draw,
    differences=(_DATA, _FEDAVG, _CONTROL),
    ours=(_OURS,),
    played_by=(
        "broker_node/mechanisms/fusion.py",
        "node/data",
        "node/params",
        "node/training",
        "scripts/reproduction/fusions.py",
    ),
)


def main(_name: str, arguments: Sequence[str]) -> int:
    return main_of(EXPERIMENT, arguments)
