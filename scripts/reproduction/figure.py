"""What a figure of a paper is to `reproduce.py`: how a seed of it is played, told and drawn.

A table compares cases (`studies.Study`); a figure follows one market through its
rounds. Both are saved, gone on with, printed and drawn by the same command.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from node.devnet.report.style import SETTINGS, SOFT, figure
from node.devnet.report.words import NONE
from node.devnet.spec import RunSpec
from scripts.reproduction.engine import Json
from scripts.reproduction.studies import Setting
from scripts.reproduction.telling import mean_interval, open_console

BySeed = Mapping[int, Json]
"""Seed → what `FigureStudy.play` returned."""
READ_OFF: Final = "read off the text"
"""Of a figure that the paper plots without printing its numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureStudy:
    """One figure: every function is of the figure alone and has no state."""

    name: str
    title: str
    source: str
    """Where in the paper it stands."""
    dataset: str
    settings: Callable[[Setting], Json]
    """All on which a seed's figures depend but the seed."""
    play: Callable[[Setting, int], Json]
    """Return a seed's figures, as JSON. Raises `MarketError` if it cannot be played."""
    findings: Callable[[BySeed], Json]
    """What the seeds come to, as JSON."""
    tables: Callable[[Json], list[Table]]
    panels: Callable[[Json], bytes]
    """Given what is saved: the picture, as PNG."""
    last: Callable[[Json], list[float]]
    """What is told of a seed as it ends."""
    differs: Callable[[Json], str]
    """Given what is saved: one sentence on how it differs from the paper's."""
    seeds: int = 10
    protocol: str = "clean"
    unpriced: str
    """Why --priced means nothing to it."""
    slow: bool = False
    """Whether there is a small setting (--quick)."""
    modules: tuple[str, ...] = ()
    """The scripts by which it is played; what is found of it is reckoned anew each time."""
    targets: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def cases(self, setting: Setting, seeds: Sequence[int]) -> list[FigureCase]:
        return [FigureCase(self, setting, seed) for seed in seeds]

    def document(self, played: Sequence[FigurePlayed]) -> Json:
        """Return what `played` comes to, and the seeds themselves."""
        by_seed = {one.seed: one.figures for one in sorted(played, key=lambda one: one.seed)}
        if not by_seed:
            return {"cases": {}}
        found = self.findings(by_seed)
        found["differs"] = self.differs(found)
        seeds = {str(one.seed): one.document() for one in played}
        return {**found, "cases": {self.name: {"by_seed": seeds}}}


@dataclass(frozen=True, slots=True)
class FigureCase:
    """One seed of a figure."""

    study: FigureStudy
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def spec(self) -> RunSpec:
        """The run whose data it needs."""
        return self.setting.spec(self.study.dataset)

    def settings(self) -> Json:
        return self.study.settings(self.setting)


@dataclass(frozen=True, slots=True)
class FigurePlayed:
    """What one seed of a figure came to."""

    name: str
    seed: int
    figures: Json
    last: list[float]
    seconds: float

    def document(self) -> Json:
        return {"figures": self.figures, "last": self.last, "seconds": round(self.seconds, 1)}

    @classmethod
    def of(cls, name: str, seed: int, saved: Mapping[str, Any]) -> FigurePlayed:
        """Return what `document` gave. Raises `KeyError`, `TypeError` or `ValueError`."""
        last = [float(figure) for figure in saved["last"]]
        return cls(name, seed, dict(saved["figures"]), last, float(saved["seconds"]))


def play_figure(case: FigureCase) -> FigurePlayed:
    """Play one seed on one thread. Raises `MarketError` if it cannot be played."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    figures = case.study.play(case.setting, case.seed)
    seconds = time.monotonic() - begun
    return FigurePlayed(case.name, case.seed, figures, case.study.last(figures), seconds)


# ── over the seeds ──


def over_seeds(by_seed: BySeed, figure: Callable[..., float | None], *which: Any) -> Json:
    """Return the mean of ``figure(seed's, *which)`` and its interval, where it is not None."""
    values = [value for one in by_seed.values() if (value := figure(one, *which)) is not None]
    return mean_interval(values)


def series_over_seeds(
    by_seed: BySeed, series: Callable[..., Sequence[Any]], *which: Any
) -> list[Json]:
    """Return, point by point, the mean of ``series(seed's, *which)`` and its interval.

    None, and what is not finite, is left out of its point.
    """
    rows = zip(*(series(one, *which) for one in by_seed.values()), strict=True)
    return [mean_interval([math.nan if value is None else value for value in row]) for row in rows]


# ── in a terminal ──


def show_figure(study: FigureStudy, found: Json) -> None:
    """Print the figure of `found` on stdout."""
    console = open_console()
    state = "" if found["complete"] else "  INTERRUPTED"
    console.print(f"[bold]{found['title']}[/]  ({found['paper']['source']}){state}")
    seeds = ", ".join(map(str, found["seeds"]))
    console.print(f"protocol {found['protocol']}, seeds {seeds}")
    if not found["played"]:
        return
    for table in study.tables(found):
        console.print(table)
    console.print(f"Beside the paper: {found['differs']}", highlight=False)
    for note in found["paper"]["notes"]:
        console.print(f"– {note}", style="dim", highlight=False)


def spread_text(row: Mapping[str, Any], places: int = 2) -> str:
    """Return a mean over seeds ± half of its interval."""
    if row["mean"] is None:
        return NONE
    half = "" if row["low"] is None else f" ± {row['high'] - row['mean']:.{places}f}"
    return f"{row['mean']:.{places}f}{half}"


def whole(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def every(count: int, rows: int = 10) -> list[int]:
    """Return up to about `rows` places of 0 … count - 1, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(rows, count))})


# ── the picture ──


@contextmanager
def picture(title: str, caption: str, height: float) -> Iterator[Figure]:
    """Give an empty figure of the house's look, with its title and what is said below it."""
    with mpl.rc_context(SETTINGS):
        drawn = figure(height)
        drawn.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield drawn
        drawn.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=SOFT)


def line(
    axes: Axes,
    x: Sequence[float],
    points: Sequence[Json],
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Draw means over seeds, with their intervals as a band."""
    kept = [(at, point) for at, point in zip(x, points, strict=True) if point["mean"] is not None]
    if not kept:
        return
    xs = [at for at, _ in kept]
    axes.plot(
        xs,
        [point["mean"] for _, point in kept],
        color=colour,
        linewidth=1.7,
        linestyle=style,
        label=label,
    )
    banded = [(at, point) for at, point in kept if point["low"] is not None]
    if banded:
        axes.fill_between(
            [at for at, _ in banded],
            [point["low"] for _, point in banded],
            [point["high"] for _, point in banded],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )


def caption_of(found: Json) -> str:
    """Return what lines and bands are."""
    seeds = len(found["cases"][found["study"]]["by_seed"])
    said = f"line: mean of {seeds} seeds; band: its 95% interval" if seeds > 1 else "one seed"
    return f"{said}; protocol {found['protocol']}"
