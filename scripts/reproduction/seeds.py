"""Experiments that are played seed by seed beside a paper's figures: what they are, and tables.

What a paper states in words or only draws stands in its column as words, or as read off;
nothing is made up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from node.data.folder import default_data_folder
from node.devnet.report.words import NONE
from scripts.reproduction.engine import (
    Json,
    answered,
    conditions_of,
    keep,
    note_machine,
    parser_of,
    save,
)
from scripts.reproduction.telling import mean_interval, open_console, table_of

LIBRARIES: Final = ("torch", "numpy", "scipy", "scikit-learn")
WIDTH: Final = 124
"""Of tables that no terminal limits, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One quantity: what the paper says of it, and what each seed came to."""

    where: str
    """The paper's figure or table."""
    what: str
    paper: str
    """As printed; in words where it is; empty where the paper is silent."""
    values: Sequence[float]
    """By seed, those that are not finite being left out."""
    places: int = 2

    def document(self) -> Json:
        return {
            "where": self.where,
            "what": self.what,
            "paper": self.paper,
            **mean_interval(self.values),
            "places": self.places,
        }


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of cells that are words already."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def document(self) -> Json:
        rows = [list(row) for row in self.rows]
        return {"title": self.title, "headings": list(self.headings), "rows": rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a seed is played with, besides itself."""

    variant: str
    data_folder: Path
    folder: Path
    """Where the experiment is saved, and may keep what takes long to find."""
    once: Json = field(default_factory=dict)
    """What `Experiment.once` found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is played, and what it is held against."""

    name: str
    title: str
    source: str
    """The paper, and where in it."""
    variants: tuple[str, ...]
    """The first is played unless another is asked for."""
    seeds: int
    """How many are played unless told otherwise."""
    settings: Callable[[str], Json]
    """Of a variant: all on which figures depend, but seed and code."""
    play: Callable[[int, Given], Json]
    compare: Callable[[Json, Sequence[Json]], list[Compared]]
    """Given what was found once, and the seeds' findings in order."""
    draw: Callable[[Json], bytes]
    """Given the document; returns PNG."""
    grids: Callable[[Json, Sequence[Json]], list[Grid]] = lambda _once, _seeds: []
    once: Callable[[Given], Json] = lambda _: {}
    """What is the same for every seed."""
    differences: tuple[str, ...] = ()
    """Where these figures differ from the paper's, and why."""
    ours: tuple[str, ...] = ()
    """Settings that the paper does not give."""
    played_by: tuple[str, ...] = ()
    """Code on which the figures depend, under the root of the repository."""


def spread(values: Sequence[float], places: int = 2) -> str:
    """Return the mean ± half of its 95% interval."""
    return _here(Compared(where="", what="", paper="", values=values, places=places).document())


def _here(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return NONE
    mean = f"{row['mean']:,.{row['places']}f}".replace("-", "−")
    if row["low"] is None:
        return mean
    return f"{mean} ± {row['high'] - row['mean']:,.{row['places']}f}"


# ── on the disk ──


@dataclass
class Record:
    """An experiment on the disk: written whole after each seed."""

    experiment: Experiment
    given: Given
    path: Path
    seeds: set[int]
    """Those asked for."""
    by_seed: dict[int, Json] = field(default_factory=dict)
    once: Json | None = None
    """What is the same for every seed; None until it is found."""
    machines: list[Json] = field(default_factory=list)
    conditions: Json = field(init=False)

    def __post_init__(self) -> None:
        variant = self.given.variant
        self.conditions = conditions_of(
            self.experiment.played_by,
            LIBRARIES,
            variant=variant,
            settings=self.experiment.settings(variant),
        )

    def resume(self, saved: Json) -> None:
        self.machines = list(saved["machines"])
        self.once = dict(saved["once"])
        self.by_seed = {int(seed): dict(found) for seed, found in saved["by_seed"].items()}

    def again(self, saved: Json) -> None:
        self.seeds |= {int(seed) for seed in saved["by_seed"]}

    def play(self) -> None:
        if self.once is None:
            self.once = self.experiment.once(self.given)
        given = replace(self.given, once=self.once)
        for seed in sorted(self.seeds - self.by_seed.keys()):
            self.by_seed[seed] = self.experiment.play(seed, given)
            note_machine(self.machines)
            save(self)
            print(f"seed {seed} is played", file=sys.stderr, flush=True)

    def document(self) -> Json:
        experiment, once = self.experiment, self.once or {}
        seeds = sorted(self.by_seed)
        played = [self.by_seed[seed] for seed in seeds]
        compared = experiment.compare(once, played) if played else []
        grids = experiment.grids(once, played) if played else []
        return {
            "study": experiment.name,
            "title": experiment.title,
            "paper": experiment.source,
            "variant": self.given.variant,
            "seeds": seeds,
            "played": len(played),
            "compared": [row.document() for row in compared],
            "grids": [grid.document() for grid in grids],
            "differences": list(experiment.differences),
            "ours": list(experiment.ours),
            "conditions": self.conditions,
            "machines": self.machines,
            "once": once,
            "by_seed": {str(seed): self.by_seed[seed] for seed in seeds},
        }

    def picture(self, found: Json) -> bytes:
        return self.experiment.draw(found)

    def show(self, found: Json) -> None:
        show(found)


# ── the command ──


def show(found: Json) -> None:
    """Print an experiment on stdout."""
    console = open_console(WIDTH)
    seeds = found["seeds"]
    console.print(f"[bold]{found['title']}[/]  ({found['paper']})", highlight=False)
    span = f"{seeds[0]} … {seeds[-1]}" if seeds else NONE
    console.print(f"{found['variant']}, {len(seeds)} seeds: {span}", highlight=False)
    for grid in found["grids"]:
        console.print(table_of(grid["title"], grid["headings"], grid["rows"], ("what",)))
    console.print(
        table_of(
            "Beside the paper: mean over seeds ± half of its 95% interval",
            ("where", "what", "paper", "here"),
            [
                (row["where"], row["what"], row["paper"] or NONE, _here(row))
                for row in found["compared"]
            ],
            ("what",),
        )
    )
    for heading, lines in (("Differs", found["differences"]), ("Ours", found["ours"])):
        for line in lines:
            console.print(f"– {heading}: {line}", style="dim", highlight=False, markup=False)


def main_of(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Return 0; 130 if it was interrupted; 2 if it cannot be played as asked."""
    parser = parser_of(experiment.name, experiment.title, experiment.seeds)
    first = experiment.variants[0]
    parser.add_argument("--variant", choices=experiment.variants, default=first, help=f"({first})")
    options = parser.parse_args(arguments)
    return answered(lambda: _main(experiment, options))


def _main(experiment: Experiment, options: argparse.Namespace) -> int:
    variant = options.variant
    name = "-".join([experiment.name] + [variant] * (variant != experiment.variants[0]))
    data_folder = options.data_folder or default_data_folder()
    record = Record(
        experiment=experiment,
        given=Given(variant=variant, data_folder=data_folder, folder=options.folder),
        path=options.folder / f"{name}.json",
        seeds=set(range(options.first, options.first + options.seeds)),
    )
    return keep(record, again=options.again, as_json=options.json)
