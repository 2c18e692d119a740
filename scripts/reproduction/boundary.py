"""Where trade between unrelated tasks stops paying perceptrons: `reproduce.py boundary`.

Figure 4 of *Train 'n Trade* has linear agents of different tasks and leaves neural models open.
Here B's task is moved away from A's by a dial (`unrelated`), and both try and buy each other's
weights. The boundary is the first value of the dial at which the 95% interval of a quantity over
the seeds is not wholly above zero: of the gain as the market sees it, of the gain over what a
lemon or shrinking gives the same buyer on the same rows, and of accuracy at the end over staying
alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from node.devnet.report.style import ARM_COLOURS, OTHER_COLOURS, as_png
from node.devnet.report.words import NONE
from scripts.reproduction.engine import Json
from scripts.reproduction.figure import line, picture
from scripts.reproduction.seeds import Compared, Experiment, Grid, main_of, spread
from scripts.reproduction.telling import mean_interval
from scripts.reproduction.unrelated import (
    DIGITS,
    MNIST,
    PERMUTED,
    QUICK,
    ROTATION,
    SIZES,
    play,
    settings,
)

At = Mapping[str, Any]
"""One place of the dials with one seed, as `unrelated.play` gives it."""
Quantity = Callable[[At], float]
DIALS: Final = {
    ROTATION: ("B's images turned", "°"),
    PERMUTED: ("B's classes of another meaning", "%"),
}
LEMON, SHRUNK = "lemon", "shrunk"
CONTROLS: Final = (LEMON, SHRUNK)


# ── of one seed, over both agents ──


def gain(at: At, what: str = "gain", rounds: int | None = None) -> float:
    """Return the percent of its loss that a trial spares: mean of both agents' first `rounds`."""
    return _mean(at, lambda trial: trial[what]["percent"], rounds)


def surplus(at: At, rounds: int | None = None) -> float:
    """Return by how many percent of the loss the other's weights beat the better control."""
    return _mean(
        at,
        lambda trial: trial["gain"]["percent"] - max(trial[name]["percent"] for name in CONTROLS),
        rounds,
    )


def bought(at: At, what: str = "gain", rounds: int | None = None) -> float:
    """Return the percent of the trials whose bound is over zero."""
    return _mean(at, lambda trial: 100.0 * trial[what]["sure"], rounds)


def ahead(at: At) -> float:
    """Return by how many points of accuracy the market's agents end above those alone."""
    return statistics.fmean(at["market"]) - statistics.fmean(at["alone"])


def _mean(at: At, of: Callable[[At], float], rounds: int | None) -> float:
    return statistics.fmean(of(trial) for trials in at["trials"] for trial in trials[:rounds])


QUANTITIES: Final[dict[str, Quantity]] = {
    "gain of the first trade": lambda at: gain(at, rounds=1),
    "… over lemon and shrinking": lambda at: surplus(at, rounds=1),
    "gain of all rounds": gain,
    "… of all rounds, over both": surplus,
    "accuracy over alone, at the end": ahead,
}
"""What has a boundary."""


# ── over the seeds ──


def along(played: Sequence[Json], dial: str) -> dict[int, list[At]]:
    """Return, by value of a dial while the other is at 0, each seed's figures."""
    other = next(name for name in DIALS if name != dial)
    found: dict[int, list[At]] = {}
    for one in played:
        for at in one["sweep"]:
            if not at[other]:
                found.setdefault(at[dial], []).append(at)
    return found


def boundary(by_value: Mapping[int, Sequence[At]], of: Quantity) -> int | None:
    """Return the first value of a dial at which the interval is not wholly above zero.

    None if there is none: the boundary is not reached, or one seed alone has no interval.
    """
    for value, seeds in by_value.items():
        low = mean_interval([of(at) for at in seeds])["low"]
        if low is not None and low <= 0:
            return value
    return None


def _boundary_text(by_value: Mapping[int, Sequence[At]], of: Quantity, unit: str) -> str:
    seeds = min(map(len, by_value.values()))
    value = boundary(by_value, of)
    if value is not None:
        return f"{value}{unit}"
    return f"over {max(by_value)}{unit}" if seeds > 1 else NONE


def grids(_once: Json, played: Sequence[Json]) -> list[Grid]:
    first: list[tuple[str, Quantity, int]] = [
        ("gain, %", lambda at: gain(at, rounds=1), 1),
        ("lemon's, %", lambda at: gain(at, LEMON, 1), 1),
        ("shrinking's, %", lambda at: gain(at, SHRUNK, 1), 1),
        ("over both, %", lambda at: surplus(at, 1), 1),
        ("bought, %", lambda at: bought(at, rounds=1), 0),
        ("lemons sure, %", lambda at: bought(at, LEMON, 1), 0),
    ]
    later: list[tuple[str, Quantity, int]] = [
        ("gain, %", gain, 1),
        ("over both, %", surplus, 1),
        ("bought, %", bought, 0),
        ("lemons sure, %", lambda at: bought(at, LEMON), 0),
        ("alone, %", lambda at: statistics.fmean(at["alone"]), 1),
        ("market − alone, points", ahead, 1),
    ]
    found = []
    for when, columns in (("First trade", first), ("All rounds", later)):
        for dial, (what, unit) in DIALS.items():
            rows = [
                [
                    f"{value}{unit}",
                    *(spread([of(at) for at in seeds], places) for _, of, places in columns),
                ]
                for value, seeds in along(played, dial).items()
            ]
            found.append(Grid(f"{when}, {what}", ["", *(name for name, _, _ in columns)], rows))
    rows = [
        [name, *(_boundary_text(along(played, dial), of, unit)
                 for dial, (_, unit) in DIALS.items())]
        for name, of in QUANTITIES.items()
    ]  # fmt: skip
    title = "Boundary: first value at which the interval is not wholly above zero"
    return [*found, Grid(title, ["what", *(what for what, _ in DIALS.values())], rows)]


def compare(_once: Json, played: Sequence[Json]) -> list[Compared]:
    found = []
    for dial, (what, unit) in DIALS.items():
        by_value = along(played, dial)
        for value in (min(by_value), max(by_value)):
            if dial != ROTATION and not value:
                continue  # the same place as at no rotation
            found += [
                Compared(
                    where=f"{what}: {value}{unit}",
                    what=name,
                    paper="a gain (linear)" if name == "accuracy over alone, at the end" else "",
                    values=[of(at) for at in by_value[value]],
                    places=1,
                )
                for name, of in QUANTITIES.items()
            ]
    return found


# ── the picture ──


def draw(found: Json) -> bytes:
    """Return the document's six panels as PNG: a dial in a row."""
    played = list(found["by_seed"].values())
    caption = f"{found['variant']}; line: mean of {len(played)} seeds; band: its 95% interval"
    with picture(found["title"], caption, 6.6) as drawn:
        grid = drawn.subplots(len(DIALS), 3, squeeze=False)
        for (first, later, ends), (dial, (what, unit)) in zip(grid, DIALS.items(), strict=True):
            by_value = along(played, dial)
            for axes, rounds, when in ((first, 1, "first trade"), (later, None, "all rounds")):
                _gains(axes, by_value, rounds)
                axes.set_title(f"{when}: loss spared, percent")
            _draw(ends, by_value, ahead, ARM_COLOURS["aligned"], "market − alone")
            ends.set_title("accuracy at the end, points")
            for axes in (first, later, ends):
                axes.axhline(0, color="#b3261e", linestyle=":", linewidth=1)
                axes.set_xlabel(f"{what}, {unit}")
        for axes in grid[0]:
            axes.legend(fontsize=8)
        return as_png(drawn)


def _gains(axes: Axes, by_value: Mapping[int, Sequence[At]], rounds: int | None) -> None:
    _draw(
        axes,
        by_value,
        lambda at: gain(at, rounds=rounds),
        ARM_COLOURS["aligned"],
        "other's weights",
    )
    for name, colour in zip(CONTROLS, OTHER_COLOURS, strict=False):
        _draw(axes, by_value, _control(name, rounds), colour, name, "--")


def _control(name: str, rounds: int | None) -> Quantity:
    return lambda at: gain(at, name, rounds)


def _draw(
    axes: Axes,
    by_value: Mapping[int, Sequence[At]],
    of: Quantity,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    points = [mean_interval([of(at) for at in seeds]) for seeds in by_value.values()]
    line(axes, list(by_value), points, colour, label, style)


# ── the experiment ──


def _sizes() -> str:
    said = (
        f"{name} {size.warmup_epochs} epochs, then {size.rounds} trades with "
        f"{size.epochs_per_round} after each"
        for name, size in SIZES.items()
    )
    return "; ".join(said)


EXPERIMENT: Final = Experiment(
    name="boundary",
    title="Perceptrons of tasks that are moved apart: where trade stops paying",
    source="Train 'n Trade, arXiv 2312.04740: §6.1.4 leaves neural models open",
    variants=(MNIST, DIGITS, QUICK),
    seeds=5,
    settings=settings,
    play=play,
    compare=compare,
    grids=grids,
    draw=draw,
    differences=(
        (
            "the paper's linear agents gain at every distance; perceptrons do not: on tasks that "
            "are far enough apart they can end no better than those that stay alone, or below them"
        ),
        (
            "the gain that a trial sees does not tell: a buyer that is too sure of itself gains as "
            "much by a lemon, or by weights of zero, and buys on (see `over both`)"
        ),
    ),
    ours=(
        f"all of it but perceptron, steps and endowment; {_sizes()}",
        (
            "B's images are turned about their middle, or the labels of a random part of the "
            "classes are exchanged in a cycle, in its rows to train, try and report on alike"
        ),
        (
            "every figure is the mean of A's and B's; `over both` is over the better of lemon and "
            "shrinking, trial by trial, which is to the trade's disadvantage"
        ),
    ),
    played_by=(
        "broker_node",
        "node/agent/strategies/lemon.py",
        "node/data",
        "node/devnet/floor.py",
        "node/params",
        "node/protocol/evaluation.py",
        "node/training",
        "scripts/reproduction/unrelated.py",
    ),
)


def main(_name: str, arguments: Sequence[str]) -> int:
    return main_of(EXPERIMENT, arguments)
