"""Plots of what trading cost: gas by step, and the possible trades that were not made."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from node.devnet.report.document import CAUSES, STEPS, Legs, Report, in_order, market_arms
from node.devnet.report.style import FATE_COLOURS, INK, PAPER, SOFT, figure, label, say
from node.devnet.report.words import cause_words

NOT_PLAYED: Final = "not played"
NARROW: Final = 7.0
"""Percent of the bar below which a segment has no room for its figure."""


def draw_gas(report: Report) -> Figure:
    """Draw the mean gas of each step of a trade, with the least and greatest seen."""
    steps = [step for step in in_order(report["gas"], STEPS) if report["gas"][step]["count"]]
    if not steps:
        drawn = figure(2.2)
        say(drawn.subplots(), "no transaction")
        return drawn
    drawn = figure(1.1 + 0.42 * len(steps))
    axes = drawn.subplots()
    means = [report["gas"][step]["mean"] for step in steps]
    axes.barh(range(len(steps)), means, height=0.62, color=FATE_COLOURS["traded"])
    for at, step in enumerate(steps):
        seen = [trade["gas"][step] for trade in report["trades"] if step in trade["gas"]]
        row = report["gas"][step]
        right = row["mean"]
        if seen and max(seen) - min(seen) > 0.01 * max(means):
            axes.plot([min(seen), max(seen)], [at, at], color=INK, linewidth=1.4)
            right = max(right, *seen)
        axes.annotate(
            f"{row['mean']:,.0f} × {row['count']:,}",
            xy=(right, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(steps)), [label(step) for step in steps])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("gas of one transaction, mean × transactions")
    return drawn


def draw_lost(report: Report) -> Figure:
    """Draw what became of the possible trades of each arm, in percent."""
    arms = [arm for arm in market_arms(report) if _possible(report["legs"].get(arm))]
    if not arms:
        drawn = figure(2.2)
        say(drawn.subplots(), "no trade was possible")
        return drawn
    parts = {arm: _parts(report["legs"][arm]) for arm in arms}
    kinds = in_order((kind for by_kind in parts.values() for kind in by_kind), ("traded", *CAUSES))
    drawn = figure(1.5 + 0.55 * len(arms))
    axes = drawn.subplots()
    for at, arm in enumerate(arms):
        left = 0.0
        for kind in kinds:
            share = 100 * parts[arm].get(kind, 0) / _possible(report["legs"][arm])
            if not share:
                continue
            axes.barh(
                at,
                share,
                left=left,
                height=0.62,
                facecolor=_colour(kind),
                edgecolor=SOFT if kind == NOT_PLAYED else PAPER,
                linewidth=0.8,
                hatch="////" if kind == NOT_PLAYED else None,
            )
            if share >= NARROW:
                axes.text(
                    *(left + share / 2, at, f"{share:.0f} %"),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=_ink_on(_colour(kind)),
                    fontweight="bold",
                )
            left += share
        axes.annotate(
            f"of {_possible(report['legs'][arm]):,}",
            xy=(100, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=SOFT,
        )
    axes.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the possible trades (%)")
    drawn.legend(
        handles=[
            Patch(
                facecolor=_colour(kind),
                edgecolor=SOFT if kind == NOT_PLAYED else "none",
                hatch="////" if kind == NOT_PLAYED else None,
                label=label(_kind_words(kind), 24),
            )
            for kind in kinds
        ],
        loc="outside upper left",
        ncols=8,
        columnspacing=1.2,
        handlelength=1.1,
        handletextpad=0.5,
    )
    return drawn


def _possible(legs: Legs | None) -> int:
    """Return the possible trades, or what was counted of them if that is more."""
    return 0 if legs is None else max(legs["possible"], legs["traded"] + sum(legs["lost"].values()))


def _parts(legs: Legs) -> dict[str, int]:
    """Return every fate of a possible trade → how many met it, without zeros."""
    parts = {"traded": legs["traded"], **legs["lost"]}
    parts[NOT_PLAYED] = _possible(legs) - sum(parts.values())
    return {kind: count for kind, count in parts.items() if count}


def _kind_words(kind: str) -> str:
    return kind if kind in {"traded", NOT_PLAYED} else cause_words(kind)


def _colour(kind: str) -> str:
    if kind == NOT_PLAYED:
        return PAPER
    return FATE_COLOURS.get(kind, FATE_COLOURS["other"])


def _ink_on(colour: str) -> str:
    """Return black or white, whichever is read better on `colour` (#rrggbb)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (
        "#000000"
        if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.2
        else "#ffffff"
    )
