"""A study's findings as tables for a terminal and as one picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from rich.table import Table

from node.devnet.report.style import (
    ARM_COLOURS,
    INK,
    SETTINGS,
    SOFT,
    End,
    arm_colour,
    as_png,
    figure,
    label_ends,
    log_scale,
    whole_numbers,
)
from node.devnet.report.words import NONE, signed
from scripts.reproduction.studies import AGENTS, ALWAYS, NEVER, WHOLE
from scripts.reproduction.telling import open_console

COLOURS: Final = {
    NEVER: ARM_COLOURS["out-of-market"],
    ALWAYS: ARM_COLOURS["aligned"],
    WHOLE: ARM_COLOURS["aligned"],
    "{3,4}": "#c24e00",
    "{2,3,4}": "#b08900",
    "{0,1,2}": "#1b865b",
    "{0,1}": "#7b3294",
}
PANEL_HEIGHT: Final = 3.3


# ── tables ──


def show(found: Mapping[str, Any]) -> None:
    """Print the study of `found` on stdout."""
    console = open_console()
    state = (
        ""
        if found["complete"]
        else f"  INTERRUPTED: {found['played']} of {found['cases_in_all']} cases"
    )
    console.print(f"[bold]{found['title']}[/]  ({found['paper']['source']}){state}")
    seeds = ", ".join(map(str, found["seeds"]))
    console.print(f"protocol {found['protocol']}, {_payment(found)}, seeds {seeds}")
    console.print(_cases(found))
    console.print(_differences(found["differences"], "Paired differences over seeds"))
    if "epochs_to" in found:
        title = "Paired differences of the last test loss"
        console.print(_differences(found["loss_differences"], title))
        console.print(_epochs(found["epochs_to"]))
    for note in found["paper"]["notes"]:
        console.print(f"– {note}", style="dim", highlight=False)


def _payment(found: Mapping[str, Any]) -> str:
    return "with prices and fees" if found["priced"] else "free of charge"


def _cases(found: Mapping[str, Any]) -> Table:
    beside = any(case["paper"] for case in found["cases"].values())
    table = Table(title="After the last epoch: mean over seeds ± half of its 95% interval")
    for heading in ("case", "A", "B", *(("paper A", "paper B") if beside else ())):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    table.add_column("trades made", justify="right")
    table.add_column("not made")
    for name, case in found["cases"].items():
        paper = case["paper"] or {}
        table.add_row(
            name,
            *(with_interval(case[agent]) for agent in AGENTS),
            *(plain(paper.get(agent)) for agent in AGENTS if beside),
            _share(case),
            ", ".join(f"{cause} {count}" for cause, count in case["lost"].items()),
        )
    return table


def _differences(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    beside = any(row.get("paper") is not None for row in rows)
    units = "/".join(sorted({row["unit"] for row in rows}))
    table = Table(title=f"{title}, {units}; above 0 `of` is better")
    for heading in ("of", "against", "agent"):
        table.add_column(heading)
    for heading in ("difference", "95% interval", "seeds", *(("paper",) if beside else ())):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [row["of"], row["against"], row["agent"], signed(row["mean"]), _ends(row)]
        cells += [str(row["n"]), *([signed(row["paper"])] if beside else [])]
        table.add_row(*cells)
    return table


def _epochs(found: Mapping[str, Any]) -> Table:
    """Each target and agent: what the two cases need, and what the one spares."""
    needed = {(row["target"], row["agent"], row["case"]): row for row in found["cases"]}
    table = Table(title="Epochs until a test accuracy (in brackets: seeds that never reached it)")
    headings = ("accuracy", "agent", NEVER, ALWAYS, "epochs spared", "95% interval", "reads")
    for heading in (*headings, "seeds"):
        table.add_column(heading, justify="left" if heading in {"agent", "reads"} else "right")
    for row in found["differences"]:
        key = row["target"], row["agent"]
        table.add_row(
            f"{row['target']:.0f}%",
            row["agent"],
            *(_needed(needed[(*key, name)]) for name in (row["against"], row["of"])),
            signed(row["mean"], 1),
            _ends(row, 1),
            row["reads"],
            str(row["n"]),
        )
    return table


def _needed(row: Mapping[str, Any]) -> str:
    censored = f" ({row['censored']})" if row["censored"] else ""
    return f"{row['mean']:.1f}{censored}"


def _share(case: Mapping[str, Any]) -> str:
    possible = case["possible"]
    return f"{case['traded']} of {possible}" if possible else NONE


def with_interval(row: Mapping[str, Any]) -> str:
    """Return a mean and half of its interval."""
    if row["low"] is None:
        return plain(row["mean"])
    return f"{row['mean']:.2f} ± {row['high'] - row['mean']:.2f}"


def plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _ends(row: Mapping[str, Any], places: int = 2) -> str:
    if row["low"] is None:
        return NONE
    return f"{signed(row['low'], places)} to {signed(row['high'], places)}"


# ── the picture ──


def draw(found: Mapping[str, Any]) -> bytes:
    """Return the learning curves of a study as PNG: a column an agent, its cases as lines."""
    series = ["curves", "losses"] if "epochs_to" in found else ["curves"]
    with mpl.rc_context(SETTINGS):
        drawn = figure(PANEL_HEIGHT * len(series) + 0.9)
        drawn.suptitle(found["title"], x=0.01, ha="left", fontsize=12, fontweight="bold")
        grid = drawn.subplots(len(series), len(AGENTS), squeeze=False, sharex=True, sharey="row")
        for axes_row, which in zip(grid, series, strict=True):
            ends = [
                _panel(found, which, agent, a) for agent, a in zip(AGENTS, axes_row, strict=True)
            ]
            axes_row[0].set_ylabel(_ordinate(found, which))
            if _is_loss(found, which):
                log_scale(axes_row[0])
            for axes, its_ends in zip(axes_row, ends, strict=True):
                label_ends(axes, its_ends, height=PANEL_HEIGHT - 1.0)
        for axes, agent in zip(grid[0], AGENTS, strict=True):
            axes.set_title(agent)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
            whole_numbers(axes)
        drawn.supxlabel(_caption(found), x=0.01, ha="left", fontsize=8.5, color=SOFT)
        return as_png(drawn)


def _panel(found: Mapping[str, Any], which: str, agent: str, axes: Axes) -> list[End]:
    ends: list[End] = []
    for name, case in found["cases"].items():
        curves = [dict(one[which][agent]) for one in case["by_seed"].values()]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        points = [
            (epoch, values)
            for epoch in epochs
            if None not in (values := [curve[epoch] for curve in curves])
        ]
        if not points:
            continue
        x = [epoch + 1 for epoch, _ in points]
        mean = [statistics.fmean(values) for _, values in points]
        colour = COLOURS.get(name) or arm_colour(name)
        alone = name in {NEVER, "out-of-market"}
        if len(curves) > 1:
            low, high = ([f(v) for _, v in points] for f in (min, max))
            axes.fill_between(x, low, high, color=colour, alpha=0.10, linewidth=0)
        axes.plot(x, mean, color=colour, linewidth=1.8, linestyle="--" if alone else "-")
        paper = (case["paper"] or {}).get(agent) if which == "curves" else None
        if paper is not None:
            axes.plot(x[-1:], [paper], marker="D", ms=5, mfc="none", mec=colour, clip_on=False)
        ends.append(End(f"{name} {mean[-1]:.4g}", colour, x[-1], mean[-1]))
    if which == "curves":
        for target in found.get("targets", ()):
            axes.axhline(target, color=INK, linewidth=0.8, linestyle=":")
    return ends


def _is_loss(found: Mapping[str, Any], which: str) -> bool:
    return which == "losses" or found["metric"] == "loss"


def _ordinate(found: Mapping[str, Any], which: str) -> str:
    if which == "losses":
        return "test loss (nats)"
    return "mean squared test loss" if found["metric"] == "loss" else "test accuracy (%)"


def _caption(found: Mapping[str, Any]) -> str:
    seeds = max(len(case["by_seed"]) for case in found["cases"].values())
    parts = [f"line: mean of {seeds} seeds; band: least to greatest" if seeds > 1 else "one seed"]
    if any(case["paper"] for case in found["cases"].values()):
        parts.append("◇: the paper's figure")
    if found.get("targets"):
        parts.append("dotted: targets")
    return "; ".join([*parts, f"protocol {found['protocol']}, {_payment(found)}"])
