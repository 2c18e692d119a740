"""Plots of what the agents learnt: figures by epoch, and arms against each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from node.devnet.arms import OUT_OF_MARKET
from node.devnet.report.captions import PANELS
from node.devnet.report.document import (
    ALL_AGENTS,
    Difference,
    Report,
    agent_names,
    arms_of,
)
from node.devnet.report.style import (
    INK,
    SOFT,
    WIDTH,
    End,
    arm_colour,
    figure,
    label,
    label_ends,
    log_scale,
    say,
    whole_numbers,
)
from node.devnet.report.words import figure as figure_words
from node.devnet.report.words import metric_words

PANEL_HEIGHT: Final = 3.3

Curve = Mapping[int, float]
"""Epoch → figure."""


class Band(NamedTuple):
    """The mean of several curves, and the least and the greatest of them."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw_learning(report: Report) -> Figure:
    """Draw test accuracy (or loss) by epoch for each arm: a panel an agent, or their mean."""
    names = [n for n in agent_names(report) if _of_agent(report, n)]
    together = len(names) > PANELS
    panels = 1 if together else max(1, len(names))
    columns = 2 if panels in {2, 4} else panels
    rows = math.ceil(panels / columns)
    height = 4.6 if panels == 1 else PANEL_HEIGHT
    drawn = figure(height * rows + 0.4 if names else 2.2)
    grid = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    axes = list(grid.flat)
    if not names:
        say(axes[0], "no epoch was finished")
        return drawn
    ends: list[list[End]] = []
    for name, panel in zip([None] if together else names, axes, strict=True):
        ends.append(_panel(report, name, panel))
        title = f"mean over {len(names)} agents" if name is None else label(name, 24)
        panel.set_title(title)
    if report["metric"] == "loss":
        log_scale(axes[0])
    for row in grid:
        row[0].set_ylabel(metric_words(report["metric"]))
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
        whole_numbers(panel)
    _mark_opening(report, axes)
    for panel, its_ends in zip(axes, ends, strict=True):  # now that every limit is known
        label_ends(panel, its_ends, height=height - 1.0)
    return drawn


def _of_agent(report: Report, name: str) -> bool:
    return any(
        agents.get(name) for arm in report["arms"].values() for agents in arm["curves"].values()
    )


def _panel(report: Report, agent: str | None, axes: Axes) -> list[End]:
    ends: list[End] = []
    for arm in arms_of(report):
        if arm not in report["arms"]:
            continue
        whole, short = _curves(report, arm, agent)
        colour = arm_colour(arm)
        dashes = "--" if arm == OUT_OF_MARKET else "-"
        for curve in short:
            axes.plot([*curve], [*curve.values()], color=colour, linewidth=1.4, linestyle=":")
            axes.plot([*curve][-1:], [*curve.values()][-1:], color=colour, marker="X", ms=6)
        if not whole:
            continue
        band = _band(whole)
        if len(whole) > 1:
            axes.fill_between(
                band.epochs, band.low, band.high, color=colour, alpha=0.16, linewidth=0
            )
        end = figure_words(band.mean[-1], report["metric"])
        axes.plot(
            band.epochs,
            band.mean,
            color=colour,
            linestyle=dashes,
            linewidth=1.8,
            marker="o" if len(band.epochs) == 1 else None,
        )
        ends.append(End(f"{label(arm)} {end}", colour, band.epochs[-1], band.mean[-1]))
    return ends


def _curves(report: Report, arm: str, agent: str | None) -> tuple[list[Curve], list[Curve]]:
    """Return the curves that reached the arm's last epoch, and those cut short.

    One a seed; over all agents (`agent` None) their mean, unless there is one seed only: then
    one an agent.
    """
    found: list[Curve] = []
    by_seed = report["arms"][arm]["curves"]
    for agents in by_seed.values():
        curves = [
            {epoch: value for epoch, value in curve if value is not None}
            for name, curve in agents.items()
            if agent in {None, name}
        ]
        curves = [curve for curve in curves if curve]
        if agent is None and len(report["seeds"]) > 1 and curves:
            found.append(_mean(curves))
        else:
            found += curves
    last = max((max(curve) for curve in found), default=0)
    whole = [curve for curve in found if max(curve) == last]
    return whole, [curve for curve in found if max(curve) < last]


def _mean(curves: Sequence[Curve]) -> Curve:
    shared = set.intersection(*(set(curve) for curve in curves))
    return {
        epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in sorted(shared)
    } or curves[0]


def _band(curves: Sequence[Curve]) -> Band:
    epochs = sorted(set().union(*curves))
    values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
    return Band(
        epochs,
        [statistics.fmean(at) for at in values],
        [min(at) for at in values],
        [max(at) for at in values],
    )


def _mark_opening(report: Report, panels: Sequence[Axes]) -> None:
    opening = report.get("first_trade_epoch", 0)
    if not 0 < opening < report["epochs"]:
        return
    for panel in panels:
        panel.axvline(opening, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
    panels[0].annotate(
        "market opens",
        xy=(opening, 0),
        xycoords=("data", "axes fraction"),
        xytext=(4, 4),
        textcoords="offset points",
        color=SOFT,
        fontsize=8.5,
        va="bottom",
    )


# ── differences ──


def draw_differences(report: Report) -> Figure:
    """Draw every paired difference with its 95% interval: over all agents, and each of a few."""
    shown = report["differences"]
    agents = list(dict.fromkeys(row["agent"] for row in shown if row["agent"] != ALL_AGENTS))
    pairs = list(dict.fromkeys((row["of"], row["against"]) for row in shown))
    lines = [ALL_AGENTS, *(agents if 1 < len(agents) <= PANELS else [])]
    drawn = figure(1.1 + max(1.2, 0.2 * len(pairs) * (len(lines) + 0.8)), WIDTH)
    axes = drawn.subplots()
    if not shown:
        say(axes, "no two arms to compare")
        return drawn
    axes.axvline(0, color=INK, linewidth=1)
    ticks: list[tuple[float, str]] = []
    at = 0.0
    for pair in pairs:
        for agent in lines:
            for row in shown:
                if (row["of"], row["against"]) == pair and row["agent"] == agent:
                    _interval(row, at, axes)
                    ticks.append((at, _row_words(row, len(agents))))
                    at -= 1
        at -= 0.8
    axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
    for text, (_, words) in zip(axes.get_yticklabels(), ticks, strict=True):
        main = " against " in words
        text.set_color(INK if main else SOFT)
        text.set_fontsize(9 if main else 8)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(at + 0.9, 0.9)
    axes.margins(x=0.08)
    points = shown[0]["unit"] == "points"
    better = "better →"
    axes.set_xlabel(
        f"difference in test accuracy (points), {better}"
        if points
        else f"test loss spared (% of the other arm's loss), {better}"
    )
    return drawn


def _row_words(row: Difference, agents: int) -> str:
    if row["agent"] != ALL_AGENTS:
        return label(row["agent"])
    return f"{label(row['of'])} against {label(row['against'])}" + (
        ", all agents" if agents > 1 else ""
    )


def _interval(row: Difference, at: float, axes: Axes) -> None:
    main = row["agent"] == ALL_AGENTS
    colour = arm_colour(row["of"])
    low, high = row["low"], row["high"]
    if low is not None and high is not None:
        axes.plot([low, high], [at, at], color=colour, linewidth=2.4 if main else 1.2)
    axes.plot(
        [row["mean"]],
        [at],
        marker="o" if main else "s",
        markersize=7 if main else 4,
        color=colour,
        linestyle="none",
    )
    axes.annotate(
        f"{row['mean']:+.1f}".replace("-", "−"),
        xy=(max(row["mean"], high if high is not None else row["mean"]), at),
        xytext=(7, 0),
        textcoords="offset points",
        va="center",
        fontsize=9 if main else 8,
        color=INK if main else SOFT,
    )
