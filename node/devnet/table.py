"""The devnet's report as tables for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

ETHER: Final = 10**18


def _ether(wei: str | None) -> str:
    return "-" if wei is None else f"{int(wei) / ETHER:.6f}"


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print who learnt what, who bought what, and whether the ledger balances."""
    console = Console()
    agents = Table(title=f"Agents on {report['dataset']} (test accuracy, %)")
    for heading in ("agent", "first", "last", "spent (play ETH)", "earned", "account"):
        agents.add_column(
            heading, justify="right" if heading not in ("agent", "account") else "left"
        )
    for agent in report["agents"]:
        agents.add_row(
            agent["name"],
            f"{agent['first_accuracy']}",
            f"{agent['accuracy']}",
            _ether(agent["spent"]),
            _ether(agent["earned"]),
            agent["account"],
        )
    console.print(agents)
    trades = Table(title="Trades")
    for heading in (
        "trade",
        "buyer",
        "seller",
        "price (play ETH)",
        "buyer's state",
        "on chain",
        "gas",
    ):
        trades.add_column(
            heading, justify="right" if heading in ("price (play ETH)", "gas") else "left"
        )
    for trade in report["trades"]:
        trades.add_row(
            trade["trade_id"][:12],
            trade["buyer"],
            trade["seller"],
            _ether(trade["price"]),
            trade["state"],
            trade["on_chain"],
            str(sum(trade["gas"].values())),
        )
    console.print(trades)
    ledger = report["ledger"]
    verdict = "balances" if ledger["balances"] else "DOES NOT BALANCE"
    console.print(
        f"Ledger {verdict}: deposited {ledger['deposited']} wei = paid to sellers "
        f"{ledger['paid_out']} + fees {ledger['fees']} + refunded {ledger['refunded']}; "
        f"stuck {ledger['stuck']}, open trades {ledger['open_trades']}."
    )
    network = report["network"]
    console.print(
        f"Network: {network['bytes']} bytes over libp2p ({network['transport']}), "
        f"{network['accepted']} gossip messages accepted. "
        f"Took {report['timings']['total_s']} s. Report: {folder / 'report.json'}"
    )
