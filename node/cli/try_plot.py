"""Loss against α: one panel a seller, one line an alignment."""

from __future__ import annotations

import io
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from node.cli.try_document import file_name
from node.devnet.report.style import (
    ARM_COLOURS,
    INK,
    OTHER_COLOURS,
    SETTINGS,
    SOFT,
    WIDTH,
    End,
    label,
    label_ends,
    log_scale,
    say,
    wide_range,
)

MAX_PANELS: Final = 6
HEIGHT: Final = 3.4
"""Of a panel, in inches."""
_LINES: Final = (*(ARM_COLOURS[arm] for arm in ("aligned", "unaligned", "fedavg")), *OTHER_COLOURS)


def plot(document: dict[str, Any]) -> bytes:
    """Return the plot as SVG, the same bytes for the same document."""
    settings = {**SETTINGS, "svg.hashsalt": "pm-node", "svg.fonttype": "none"}
    with mpl.rc_context(settings):
        buffer = io.BytesIO()
        _draw(document).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def _draw(document: dict[str, Any]) -> Figure:
    sellers = list(dict.fromkeys(curve["seller"] for curve in document["curves"]))
    shown = sellers[:MAX_PANELS]
    panels = max(len(shown), 1)
    drawn = Figure(figsize=(WIDTH, HEIGHT * panels), layout="constrained")
    FigureCanvasSVG(drawn)
    axes_P = drawn.subplots(panels, 1, squeeze=False)[:, 0]
    if not shown:
        say(axes_P[0], "nothing to merge")
    for axes, seller in zip(axes_P, shown, strict=False):
        _panel(document, seller, axes)
    if len(sellers) > len(shown):
        drawn.suptitle(label(f"the first {len(shown)} of {len(sellers)} sellers", 60))
    return drawn


def _panel(document: dict[str, Any], seller: str, axes: Axes) -> None:
    names = {model["name"]: file_name(model["file"]) for model in document["models"]}
    curves = [curve for curve in document["curves"] if curve["seller"] == seller]
    ends = []
    heights = []
    for colour, curve in zip(_cycled(len(curves)), curves, strict=True):
        points = [point for point in curve["points"] if point["loss"] is not None]
        if not points:
            continue
        xs, ys = [point["alpha"] for point in points], [point["loss"] for point in points]
        axes.plot(xs, ys, color=colour, linewidth=1.6)
        for point in points:
            if point["chosen"]:
                axes.plot(point["alpha"], point["loss"], "o", color=colour, markersize=6)
        ends.append(End(label(curve["align"], 24), colour, xs[-1], ys[-1]))
        heights += ys
    own, ensemble = document["controls"]["own"]["loss"], document["controls"]["ensemble"]
    for loss, style, words in (
        (own, (0, (4, 2)), "A alone"),
        (None if ensemble is None else ensemble["loss"], (0, (1, 1.5)), "ensemble"),
    ):
        if loss is not None:
            axes.axhline(loss, color=SOFT, linewidth=1.1, linestyle=style)
            ends.append(End(words, INK, 1.0, loss))
            heights.append(loss)
    axes.set_xlim(0, 1)
    if wide_range(heights):
        log_scale(axes)
    axes.set_xlabel("α, the share that is the seller's (dot: what the other rows chose)")
    squared = document["rows"]["kind"] == "values"
    axes.set_ylabel("mean squared error" if squared else "loss, nats a row")
    axes.set_title(
        f"{label(names['A'], 30)} ◄ {label(names[seller], 30)}, "
        f"{document['rows']['score']:,} rows that chose nothing"
    )
    label_ends(axes, ends, height=HEIGHT - 0.9)


def _cycled(count: int) -> list[str]:
    return [_LINES[place % len(_LINES)] for place in range(count)]
