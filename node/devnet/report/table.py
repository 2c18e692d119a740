"""The report as tables for a person at a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.devnet.report import calls, rows
from node.devnet.report.clearing import clearing_lines
from node.devnet.report.document import DOCUMENT, PAGE, PLOTS_FOLDER, Report, as_written
from node.devnet.report.findings import headline, ledger_verdict, warnings
from node.devnet.report.honesty_rows import honesty_tables
from node.devnet.report.strategy_rows import FORMULAS, strategy_tables
from node.devnet.report.words import alpha_text, duration, legible, percent, play_ether, size

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
    for line in calls.summary(written):
        out.print(Text(line))
    for line in clearing_lines(written):
        out.print(Text(line), soft_wrap=True)
    _strategies(written, out)
    _honesty(written, out)
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
    found = rows.learnt(report)
    if not found.arms:
        return
    table = _table(found.title, "agent", *found.arms)
    many = len(found.agents) > FEW_AGENTS
    for name, cells in () if many else found.agents:
        table.add_row(Text(legible(name, 24)), *cells)
    if len(found.agents) > 1:
        table.add_row(found.mean[0], *found.mean[1], style="bold")
    for name, cells in (found.least, found.greatest) if many else ():
        table.add_row(name, *cells)
    out.print(table)


def _differences(report: Report, out: Console) -> None:
    found = rows.compared(report)
    if not found:
        return
    headings = ("arms", rows.difference_unit(report), "95 % interval", "seeds")
    table = _table("Paired differences over seeds, all agents", *headings)
    for row in found:
        table.add_row(Text(row.arms), row.mean, row.interval, row.seeds)
    out.print(table)


def _trading(report: Report, out: Console) -> None:
    headings = ("paid of possible", "begun", "median price", "total", "mean α", "mean gain")
    table = _table("Trades by arm, prices in play-ether", "arm", *headings)
    found = rows.traded(report)
    for row in found:
        table.add_row(
            Text(legible(row.arm, 24)),
            f"{row.paid} of {row.possible}",
            *(row.begun, row.median_price, row.total, row.alpha, row.gain),
        )
    out.print(table)
    for row in found:
        if row.lost:
            out.print(Text(f"  {legible(row.arm, 24)}, not made: {legible(row.lost)}"))


def _trades(report: Report, out: Console) -> None:
    """Print each trade, by arm; eighty columns are enough."""
    headings = ("trade", "buyer ◄ seller", "on chain", "round", "price", "α", "gain", "gas")
    for arm in dict.fromkeys(row["arm"] for row in report["trades"]):
        title = f"Every trade, {legible(arm, 24)}, prices in play-ether"
        table = _table(title, *headings, left=3)
        table.padding, table.pad_edge = 0, False
        for row in (row for row in report["trades"] if row["arm"] == arm):
            table.add_row(
                Text(legible(row["id"], 10)),
                Text(f"{legible(row['buyer'], 16)} ◄ {legible(row['seller'], 16)}"),
                Text(legible(row["on_chain"], 16)),
                str(row["round"]),
                play_ether(row["price"]),
                alpha_text(row["alpha"]),
                percent(row["gain"]),
                f"{sum(row['gas'].values()):,}",
            )
        out.print(table)


def _strategies(report: Report, out: Console) -> None:
    found = strategy_tables(report)
    for shown in found:
        table = _table(shown.title, *shown.headings, left=shown.left)
        table.padding, table.pad_edge = (0, 1, 0, 0), False  # eighty columns are enough
        for row in shown.rows:
            table.add_row(*map(Text, row))
        out.print(table)
    if found:
        out.print(Text(FORMULAS))


def _honesty(report: Report, out: Console) -> None:
    for shown in honesty_tables(report.get("honesty", ())):
        table = _table(shown.title, *shown.headings, left=shown.left)
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        for row in shown.rows:
            table.add_row(*map(Text, row))
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
    cost = rows.cost_sentence(report)
    if cost:
        out.print(Text(cost))
    out.print(Text(headline(report), style="bold"))
    for name in (PAGE, DOCUMENT, PLOTS_FOLDER):
        out.print(Text(f"  {folder / name}"), soft_wrap=True)
