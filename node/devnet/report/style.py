"""How the plots look: one colour for each arm and cause, labels at the ends of the lines.

Arms differ in lightness as well as hue, so that a reader who confuses red and green does not
confuse them (a test simulates it); training alone is the dashed grey reference everywhere. A
page in the dark turns the pictures' lightness round, which keeps the arms' distances.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.report.words import legible

FONT: Final = "DejaVu Sans"
"""Comes with matplotlib."""
DPI: Final = 150
WIDTH: Final = 9.6
"""Of a figure, in inches."""


PAPER: Final = "#ffffff"
INK: Final = "#1c1e21"
SOFT: Final = "#5b6066"
"""Secondary text."""
GRID: Final = "#e3e5e8"
ABSENT: Final = "#e9ebee"
"""A cell that stands for nothing."""
HEAT: Final = ("#cfe3f5", "#00427a")
"""From little to much."""
ARM_COLOURS: Final = {
    OUT_OF_MARKET: "#404040",
    "fedavg": "#1b865b",
    "unaligned": "#c24e00",
    "aligned": "#005ea8",
}
OTHER_COLOURS: Final = ("#7b3294", "#8a6d00", "#a3195b")
FATE_COLOURS: Final = {
    "traded": "#005ea8",
    "gain": "#e8a33d",
    "bound": "#8c6bb1",
    "ask": "#c24e00",
    "fee": "#66c2a5",
    "cash": "#a6cee3",
    "other": "#8a8a8a",
}
SETTINGS: Final[Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name with a dollar sign is a name
    "text.usetex": False,
    "font.family": [FONT],
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.6,
}
"""For ``matplotlib.rc_context``."""


def arm_colour(arm: str) -> str:
    """Return the colour of an arm; an unknown one has the same colour in every plot."""
    known = ARM_COLOURS.get(arm)
    return known or OTHER_COLOURS[sum(map(ord, arm)) % len(OTHER_COLOURS)]


def figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, in inches; it draws by Agg, without a display."""
    drawn = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def as_png(drawn: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def label(text: object, limit: int = 18) -> str:
    """Return foreign text that the font can draw, on one short line."""
    known = _glyphs()
    return "".join(c if ord(c) in known else "□" for c in legible(text, limit))


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def say(axes: Axes, text: str) -> None:
    """Say in the middle of an empty panel why it is empty."""
    axes.set_axis_off()
    axes.text(
        *(0.5, 0.5, text),
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=SOFT,
        fontsize=12,
    )


def whole_numbers(axes: Axes, *, x: bool = True) -> None:
    """Tick an axis of epochs, rounds or counts at whole numbers only."""
    (axes.xaxis if x else axes.yaxis).set_major_locator(
        MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10])
    )


def log_scale(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def wide_range(values: Sequence[float]) -> bool:
    """Return whether `values` are all above 0 and span so much that only a log axis shows it."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 40


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights moved apart to at least `gap`, in their order and below the top.

    What would collide becomes a bunch about its own mean height.
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    bunches: list[list[float]] = []
    for place in order:
        bunches.append([heights[place]])
        while len(bunches) > 1 and _top(bunches[-2], gap) + gap > _bottom(bunches[-1], gap):
            bunches[-2:] = [bunches[-2] + bunches[-1]]
    moved = [_bottom(bunch, gap) + gap * step for bunch in bunches for step in range(len(bunch))]
    ceiling = 0.98
    for step in range(len(moved) - 1, -1, -1):
        moved[step] = min(moved[step], ceiling)
        ceiling = moved[step] - gap
    placed = [0.0] * len(moved)
    for height, place in zip(moved, order, strict=True):
        placed[place] = height
    return placed


def _bottom(bunch: Sequence[float], gap: float) -> float:
    return statistics.fmean(bunch) - gap * (len(bunch) - 1) / 2


def _top(bunch: Sequence[float], gap: float) -> float:
    return statistics.fmean(bunch) + gap * (len(bunch) - 1) / 2


class End(NamedTuple):
    """Where a line ends, in data units, and what it is to be called there."""

    text: str
    colour: str
    x: float
    y: float


def label_ends(axes: Axes, ends: Sequence[End], *, height: float) -> None:
    """Name lines in a column right of the last of them, once the limits of `axes` are final.

    `height` is that of the axes in inches, from which the least distance follows.
    """
    _ = axes.get_xlim(), axes.get_ylim()  # settles limits that are still to be found
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform((end.x, end.y)) for end in ends]
    column = max((float(point[0]) for point in points), default=1.0)
    heights = spread([float(point[1]) for point in points], gap=0.17 / height)
    for end, at in zip(ends, heights, strict=True):
        axes.annotate(
            end.text,
            xy=(end.x, end.y),
            xycoords="data",
            xytext=(column + 0.06, at),
            textcoords="axes fraction",
            color=end.colour,
            fontsize=9,
            fontweight="bold",
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),
                "color": end.colour,
                "linewidth": 1.0,
                "linestyle": (0, (1, 1.5)),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )
