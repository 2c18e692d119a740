"""Plots of the trades: who bought from whom, at which α, for what gain, at what price."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from node.devnet.report.document import Report, Trade, agent_names, market_arms
from node.devnet.report.findings import paid_trades
from node.devnet.report.style import (
    ABSENT,
    HEAT,
    INK,
    PAPER,
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
    wide_range,
)
from node.devnet.report.words import counted, three_digits, unit_for

NO_TRADE: Final = "no trade was paid"
PLOT_HEIGHT: Final = 3.7
FEW: Final = 6
"""Up to so many agents, each cell of the matrix says its figures."""
BESIDE: Final = 8
"""Up to so many agents, the matrices of all arms stand in one row."""


def _traded(report: Report) -> dict[str, list[Trade]]:
    """Return market arm → its trades that were paid, for the arms that have any."""
    by_arm = {
        arm: [trade for trade in paid_trades(report) if trade["arm"] == arm]
        for arm in market_arms(report)
    }
    return {arm: trades for arm, trades in by_arm.items() if trades}


# ── who bought from whom ──


def draw_matrix(report: Report) -> Figure:
    """Draw buyer × seller for each market arm; the colour is the total paid, or the count."""
    traded = _traded(report)
    names = agent_names(report)
    if not traded:
        return _nothing()
    beside = len(names) <= BESIDE
    columns = min(len(traded), 3 if beside else 2)
    rows = math.ceil(len(traded) / columns)
    side = 2.9 if beside else 4.3
    drawn = figure((side + 0.5) * rows, min(WIDTH, (side + 0.3) * columns + 1.2))
    grid = drawn.subplots(rows, columns, squeeze=False)
    counts = {arm: _matrix(trades, names, lambda _: 1) for arm, trades in traded.items()}
    prices = {
        arm: _matrix(trades, names, lambda trade: int(trade["price"]))
        for arm, trades in traded.items()
    }
    unit = unit_for(max(row) for matrix in prices.values() for row in matrix)
    free = not any(any(row) for matrix in prices.values() for row in matrix)
    shown = {
        arm: np.array(counts[arm] if free else prices[arm], dtype=float) / (1 if free else unit.wei)
        for arm in traded
    }
    norm = Normalize(0, max(float(matrix.max()) for matrix in shown.values()))
    image = None
    for panel, arm in zip(grid.flat, traded, strict=False):
        made = np.array(counts[arm]) > 0
        image = _heat(panel, shown[arm], made, norm)
        panel.set_title(label(arm))
        _name_cells(panel, names)
        if len(names) <= FEW:
            _write_cells(panel, counts[arm], shown[arm], norm, free=free)
    spare = list(grid.flat)[len(traded) :]
    for panel in spare:
        panel.set_axis_off()
    if image is not None:
        bar = drawn.colorbar(
            image,
            ax=spare or list(grid.flat),
            location="top" if spare else "right",
            shrink=0.8,
            aspect=30,
        )
        bar.set_label("trades" if free else f"total paid ({unit.name})")
        bar.outline.set_visible(False)
        if free:
            whole_numbers(bar.ax, x=bool(spare))
    return drawn


def _matrix(
    trades: Sequence[Trade], names: Sequence[str], amount: Callable[[Trade], int]
) -> list[list[int]]:
    """Return the sum of `amount` by buyer (row) and seller (column), exactly."""
    place = {name: index for index, name in enumerate(names)}
    matrix = [[0] * len(names) for _ in names]
    for trade in trades:
        matrix[place[trade["buyer"]]][place[trade["seller"]]] += amount(trade)
    return matrix


def _heat(axes: Axes, matrix: np.ndarray, made: np.ndarray, norm: Normalize) -> AxesImage:
    colours = LinearSegmentedColormap.from_list("paid", HEAT).with_extremes(bad=ABSENT)
    image = axes.imshow(np.ma.masked_where(~made, matrix), cmap=colours, norm=norm)
    count = len(matrix)
    axes.set_xticks(np.arange(-0.5, count), minor=True)
    axes.set_yticks(np.arange(-0.5, count), minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color=PAPER, linewidth=1.5 if count <= 16 else 0.6)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place in range(count):  # nobody buys from itself
        axes.plot([place - 0.12, place + 0.12], [place + 0.12, place - 0.12], color=SOFT, lw=0.6)
    return image


def _name_cells(axes: Axes, names: Sequence[str]) -> None:
    limit = 12 if len(names) <= BESIDE else 9
    texts = [label(name, limit) for name in names]
    size = 9 if len(names) <= BESIDE else 7.5 if len(names) <= 16 else 5.5
    turned = max(map(len, texts)) * len(texts) > 16
    axes.set_xticks(range(len(names)), texts, fontsize=size, rotation=90 if turned else 0)
    axes.set_yticks(range(len(names)), texts, fontsize=size)
    axes.set_xlabel("seller")
    axes.set_ylabel("buyer")


def _write_cells(
    axes: Axes,
    counts: Sequence[Sequence[int]],
    shown: np.ndarray,
    norm: Normalize,
    *,
    free: bool,
) -> None:
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if not count:
                continue
            amount = float(shown[row, column])
            text = f"{count} ×" if len(counts) > 3 else counted(count, "trade")
            axes.text(
                column,
                row,
                text if free else f"{text}\n{three_digits(amount)}",
                ha="center",
                va="center",
                fontsize=8.5 if len(counts) <= 3 else 7 if len(counts) <= 4 else 6,
                color=PAPER if float(norm(amount)) > 0.5 else INK,
            )


# ── by round ──


def draw_alpha(report: Report) -> Figure:
    """Draw the α of every trade by round, and each arm's mean."""
    traded = _measured(report, lambda trade: trade["alpha"])
    if not traded:
        return _nothing()
    drawn = figure(PLOT_HEIGHT)
    axes = drawn.subplots()
    ends = _dots(axes, traded, statistics.fmean)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("α (0: all the buyer's, 1: all the seller's)")
    _rounds(axes, report)
    label_ends(axes, ends, height=PLOT_HEIGHT - 0.8)
    return drawn


def draw_price(report: Report) -> Figure:
    """Draw the price of every trade by round, and each arm's median."""
    unit = unit_for(int(trade["price"]) for trade in paid_trades(report))
    traded = _measured(report, lambda trade: int(trade["price"]) / unit.wei)
    prices = [price for points in traded.values() for _, price in points]
    if not any(prices):
        return _nothing("every trade was free of charge" if prices else NO_TRADE)
    drawn = figure(PLOT_HEIGHT)
    axes = drawn.subplots()
    ends = _dots(axes, traded, statistics.median)
    if wide_range(prices):
        log_scale(axes)
        axes.set_ylabel(f"price of a trade ({unit.name}, log)")
    else:
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"price of a trade ({unit.name})")
    _rounds(axes, report)
    label_ends(axes, ends, height=PLOT_HEIGHT - 0.8)
    return drawn


def draw_gain(report: Report) -> Figure:
    """Draw each trade's measured gain above the bound that let it pass, a panel an arm."""
    traded = _measured(report, lambda trade: trade["gain"])
    if not traded:
        return _nothing()
    drawn = figure(PLOT_HEIGHT)
    panels = drawn.subplots(1, len(traded), squeeze=False, sharey=True, sharex=True)[0]
    figures: list[float] = []
    for axes, arm in zip(panels, traded, strict=True):
        trades = [trade for trade in _traded(report)[arm] if trade["gain"] is not None]
        figures += _gains(axes, trades, arm_colour(arm))
        axes.set_title(label(arm))
        _rounds(axes, report)
    if wide_range(figures):
        log_scale(panels[0])
    else:
        panels[0].axhline(0, color=SOFT, linewidth=0.8)
    panels[0].set_ylabel("part of the buyer's loss removed (%)")
    return drawn


def _measured(
    report: Report, value: Callable[[Trade], float | None]
) -> dict[str, list[tuple[int, float]]]:
    """Return market arm → (round, value) of its trades that have one."""
    points = {
        arm: [(trade["round"], figure) for trade in trades if (figure := value(trade)) is not None]
        for arm, trades in _traded(report).items()
    }
    return {arm: found for arm, found in points.items() if found}


def _dots(
    axes: Axes,
    traded: Mapping[str, Sequence[tuple[int, float]]],
    middle: Callable[[Sequence[float]], float],
) -> list[End]:
    """Draw a dot a trade, arms beside each other within a round, and each arm's middle."""
    ends: list[End] = []
    for place, (arm, points) in enumerate(traded.items()):
        colour = arm_colour(arm)
        axes.scatter(
            [turn + 0.2 * (place - (len(traded) - 1) / 2) for turn, _ in points],
            [value for _, value in points],
            s=14,
            color=colour,
            alpha=_faintness(len(points)),
            linewidths=0,
        )
        turns = sorted({turn for turn, _ in points})
        middles = [middle([value for at, value in points if at == turn]) for turn in turns]
        axes.plot(turns, middles, color=colour, linewidth=1.8)
        ends.append(End(label(arm), colour, turns[-1], middles[-1]))
    return ends


def _faintness(count: int) -> float:
    return 0.75 if count <= 60 else 0.4 if count <= 400 else 0.2


def _gains(axes: Axes, trades: Sequence[Trade], colour: str) -> list[float]:
    """Draw a dot a gain, and a stroke down to its bound; return all figures, percent.

    The trades of a round stand beside each other, the smallest gain first.
    """
    by_round: dict[int, list[tuple[float, float | None]]] = {}
    for trade in trades:
        if trade["gain"] is not None:
            bound = None if trade["bound"] is None else 100 * trade["bound"]
            by_round.setdefault(trade["round"], []).append((100 * trade["gain"], bound))
    dots: list[tuple[float, float]] = []
    strokes: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for turn, pairs in by_round.items():
        for place, (gain, bound) in enumerate(sorted(pairs, key=lambda pair: pair[0])):
            at = turn + 0.7 * ((place + 0.5) / len(pairs) - 0.5)
            dots.append((at, gain))
            if bound is not None:
                strokes.append(((at, bound), (at, gain)))
    crowd = max((len(pairs) for pairs in by_round.values()), default=0) * len(by_round)
    thin = min(1.2, max(0.3, 120 / max(crowd, 1)))
    if strokes:
        axes.add_collection(
            LineCollection(strokes, colors=SOFT, linewidths=thin, alpha=0.6, label="its bound")
        )
        axes.update_datalim([low for low, _ in strokes])
    axes.scatter(
        [at for at, _ in dots],
        [gain for _, gain in dots],
        s=14 if crowd <= 150 else 7,
        color=colour,
        linewidths=0,
        label="gain",
    )
    axes.legend(loc="lower right", handlelength=1.0, handletextpad=0.5)
    return [gain for _, gain in dots] + [low for (_, low), _ in strokes]


def _rounds(axes: Axes, report: Report) -> None:
    axes.set_xlabel("round")
    last = max((trade["round"] for trade in report["trades"]), default=1)
    axes.set_xlim(0.4, max(report["rounds"], last) + 0.6)
    whole_numbers(axes)


def _nothing(why: str = NO_TRADE) -> Figure:
    drawn = figure(2.2)
    say(drawn.subplots(), why)
    return drawn
