"""The report as tables for a person at a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.devnet.report.document import (
    ALL_AGENTS,
    DOCUMENT,
    PAGE,
    PLOTS_FOLDER,
    Report,
    agent_names,
    arms_of,
    as_written,
)
from node.devnet.report.findings import (
    headline,
    ledger_verdict,
    mean_of,
    not_made,
    spread_over_seeds,
    trading_by_arm,
    warnings,
)
from node.devnet.report.words import (
    NONE,
    alpha_text,
    cause_words,
    duration,
    figure,
    legible,
    metric_words,
    percent,
    play_ether,
    signed,
    size,
)

FEW_AGENTS: Final = 8
"""More have one line together: mean, least, greatest."""
FEW_TRADES: Final = 20
"""More are added up by arm."""


def print_report(report: Report, folder: Path, console: Console | None = None) -> None:
    """Print who learnt what, what was traded, whether the ledger balances, where the files are.

    To standard output unless a console is given. Names are printed as they are: markup and
    control characters in them do nothing.
    """
    written = as_written(report)
    out = console or Console()
    for line in warnings(written):
        out.print(Text(line, style="bold red"))
    _arms(written, out)
    _differences(written, out)
    if written["trades"] or written["legs"]:
        _trading(written, out)
    if 0 < len(written["trades"]) <= FEW_TRADES:
        _trades(written, out)
    _closing(written, folder, out)


def _table(title: str, *headings: str, left: int = 1) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, heading in enumerate(headings):
        table.add_column(
            Text(legible(heading, 30)),
            justify="left" if place < left else "right",
            overflow="fold",
        )
    return table


def _arms(report: Report, out: Console) -> None:
    played = [arm for arm in arms_of(report) if arm in report["arms"]]
    if not played:
        return
    metric, names = report["metric"], agent_names(report)
    what, dataset = metric_words(metric).capitalize(), legible(report["dataset"], 40)
    title = f"{what} after the last epoch, {dataset}"
    if len(report["seeds"]) > 1:
        title += f", mean over {len(report['seeds'])} seeds"
    table = _table(title, "agent", *played)
    figures = {arm: report["arms"][arm]["accuracy"] for arm in played}
    for name in names if len(names) <= FEW_AGENTS else ():
        cells = []
        for arm in played:
            spread = spread_over_seeds(report["arms"][arm], name)
            words = figure(figures[arm].get(name), metric)
            cells.append(words if spread is None else f"{words} ± {figure(spread, metric)}")
        table.add_row(Text(legible(name, 24)), *cells)
    means = [figure(mean_of(figures[arm].values()), metric) for arm in played]
    if len(names) > 1:
        table.add_row(f"mean of {len(names)}", *means, style="bold")
    if len(names) > FEW_AGENTS:
        there = {arm: [v for v in figures[arm].values() if v is not None] for arm in played}
        table.add_row("least", *(figure(min(v, default=None), metric) for v in there.values()))
        table.add_row("greatest", *(figure(max(v, default=None), metric) for v in there.values()))
    out.print(table)


def _differences(report: Report, out: Console) -> None:
    rows = [row for row in report["differences"] if row["agent"] == ALL_AGENTS]
    if not rows:
        return
    unit = "points" if report["metric"] == "accuracy" else "% of loss spared"
    table = _table(
        "Paired differences over seeds, all agents", "arms", unit, "95 % interval", "seeds"
    )
    for row in rows:
        arms = f"{legible(row['of'], 24)} against {legible(row['against'], 24)}"
        low, high = row["low"], row["high"]
        span = NONE if low is None else f"{signed(low)} to {signed(high)}"
        table.add_row(Text(arms), signed(row["mean"]), span, str(row["n"]))
    out.print(table)


def _trading(report: Report, out: Console) -> None:
    headings = ("made of possible", "paid", "median price", "total", "mean α", "mean gain")
    table = _table("Trades by arm, prices in play-ether", "arm", *headings)
    for row in trading_by_arm(report):
        table.add_row(
            Text(legible(row.arm, 24)),
            f"{row.made:,} of {row.possible:,}",
            f"{row.paid:,}",
            NONE if row.median_price is None else play_ether(row.median_price),
            play_ether(row.total),
            alpha_text(row.alpha),
            percent(row.gain),
        )
    out.print(table)
    for row in trading_by_arm(report):
        causes = [f"{cause_words(c)} {n:,}" for c, n in not_made(report, row.arm).items()]
        if causes:
            out.print(Text(f"  {legible(row.arm, 24)}, not made: {legible(', '.join(causes))}"))


def _trades(report: Report, out: Console) -> None:
    headings = ("trade", "arm", "buyer", "seller", "on chain", "round", "price", "α", "gain", "gas")
    table = _table("Every trade, prices in play-ether", *headings, left=5)
    for row in report["trades"]:
        table.add_row(
            Text(legible(row["id"], 10)),
            *(
                Text(legible(words, 16))
                for words in (row["arm"], row["buyer"], row["seller"], row["on_chain"])
            ),
            str(row["round"]),
            play_ether(row["price"]),
            alpha_text(row["alpha"]),
            percent(row["gain"]),
            f"{sum(row['gas'].values()):,}",
        )
    out.print(table)


def _closing(report: Report, folder: Path, out: Console) -> None:
    verdict, book = ledger_verdict(report), report["ledger"]
    ledger = (
        f"{'✓' if verdict.good else '✗'} Ledger, wei: deposited {int(book['deposited'])} = sellers "
        f"{int(book['paid_out'])} + fees {int(book['fees'])} + refunded {int(book['refunded'])} "
        f"+ held {int(book['held'])}; stuck {int(book['stuck'])}, open trades {book['open_trades']}"
    )
    out.print(Text(ledger, style="green" if verdict.good else "bold red"))
    net, total = report["network"], report["timings"].get("total_s")
    took = f" Took {duration(total)}." if isinstance(total, (int, float)) else ""
    wire = f"{size(net['bytes'])} over {legible(net['transport'], 40)}"
    out.print(Text(f"Network: {wire}, {net['accepted']:,} gossip messages accepted.{took}"))
    out.print(Text(headline(report), style="bold"))
    for name in (PAGE, DOCUMENT, PLOTS_FOLDER):
        out.print(Text(f"  {folder / name}"), soft_wrap=True)
