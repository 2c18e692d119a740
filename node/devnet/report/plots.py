"""The plots of a report: what there is, what each shows, and its pictures.

Drawn by matplotlib's figure objects and Agg: no display, no global figure, no download.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from node.devnet.report import captions
from node.devnet.report.costs import draw_gas, draw_lost
from node.devnet.report.document import Report
from node.devnet.report.learning import draw_differences, draw_learning
from node.devnet.report.style import SETTINGS, as_png
from node.devnet.report.trading import draw_alpha, draw_gain, draw_matrix, draw_price


class Plot(NamedTuple):
    """How one plot is drawn, what it is called, and what is said of it."""

    title: str
    draw: Callable[[Report], Figure]
    caption: Callable[[Report], str]
    """How to read it."""
    alt: Callable[[Report], str]
    """What it shows, for those who do not see it."""


class Picture(NamedTuple):
    """One plot of one report, as PNG on white."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes


PLOTS: Final[dict[str, Plot]] = {
    "learning": Plot(
        "What the agents learnt", draw_learning, captions.learning, captions.learning_alt
    ),
    "differences": Plot(
        "Arm against arm, seed by seed",
        draw_differences,
        captions.differences,
        captions.differences_alt,
    ),
    "lost": Plot("What became of the possible trades", draw_lost, captions.lost, captions.lost_alt),
    "trades": Plot("Who bought from whom", draw_matrix, captions.matrix, captions.matrix_alt),
    "price": Plot("Price by round", draw_price, captions.price, captions.price_alt),
    "gain": Plot("Gain and its bound by round", draw_gain, captions.gain, captions.gain_alt),
    "alpha": Plot("α by round", draw_alpha, captions.alpha, captions.alpha_alt),
    "gas": Plot("Gas by step", draw_gas, captions.gas, captions.gas_alt),
}
"""File name without its ending → plot, in the order in which they are shown."""


def draw_all(report: Report) -> dict[str, Picture]:
    """Return every plot of a report (as `as_written` gives it), by name.

    Deterministic: the same report gives the same bytes under the same matplotlib.
    """
    return {
        name: Picture(
            name=name,
            title=plot.title,
            caption=plot.caption(report),
            alt=plot.alt(report),
            png=draw(plot, report),
        )
        for name, plot in PLOTS.items()
    }


def draw(plot: Plot, report: Report) -> bytes:
    """Return one plot as PNG."""
    with mpl.rc_context(SETTINGS):
        return as_png(plot.draw(report))
