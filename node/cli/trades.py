"""``pm-node trade``: what the journal says of this node's trades; works beside a running node."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.invocation import Invocation, on_node

if TYPE_CHECKING:
    from node.journal import Journal, TradeRow
    from node.protocol.quote import Quote

SHORTEST_PREFIX: Final = 4


@click.group()
def trade() -> None:
    """Look at the trades of a node."""


@trade.command("list")
@on_node
def trade_list(node: Invocation) -> None:
    """Print every trade of the journal."""
    journal = node.existing_home(node.load().config).journal
    rows: list[Any] = []
    if journal.exists():
        from node.settlement.history import trade_rows

        rows = list(trade_rows(journal))
    if node.json_output:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['trade_id'][:18]}  {row['side']:6}  {row['state']:13}  "
            f"{row['price'] or '-':>22} wei  {row['note']}".rstrip()
        )


@trade.command("show")
@click.argument("trade_id", metavar="ID")
@on_node
def trade_show(node: Invocation, trade_id: str) -> None:
    """Print one trade, its terms and its transactions; the beginning of its ID will do."""
    journal = node.existing_home(node.load().config).journal
    sides = _sides(journal, trade_id)
    if node.json_output:
        click.echo(json.dumps(sides, indent=2))
        return
    for side in sides:
        terms, transactions = side.pop("terms"), side.pop("transactions")
        for name, value in side.items():
            click.echo(f"{name:18}  {_shown(name, value)}".rstrip())
        for name, value in (terms or {}).items():
            click.echo(f"  {name:16}  {_shown(name, value)}")
        for sent in transactions:
            click.echo(
                f"  {sent['step']:8}  {sent['hash']}  {sent['fate']}"
                + (f"  gas {sent['gas']}" if sent["gas"] else "")
            )


def _sides(path: Path, trade_id: str) -> list[dict[str, Any]]:
    """Return this node's part in the trade: one side, or both of a trade with itself."""
    digits = trade_id.lower().removeprefix("0x")
    if len(digits) < SHORTEST_PREFIX or set(digits) - set("0123456789abcdef"):
        raise click.BadParameter(
            f"{trade_id!r} is not the beginning of a trade's id "
            f"({SHORTEST_PREFIX} hex digits or more); `pm-node trade list` prints them",
            param_hint="ID",
        )
    if path.exists():
        from node.journal import Journal

        journal = Journal(path, read_only=True)
        try:
            rows = [row for row in journal.trades() if row.trade_id.hex().startswith(digits)]
            if len({row.trade_id for row in rows}) > 1:
                several = ", ".join(f"0x{row.trade_id.hex()[:16]}" for row in rows[:4])
                raise click.BadParameter(
                    f"{trade_id!r} begins several ({several}): give more digits", param_hint="ID"
                )
            if rows:
                return [_side(row, journal) for row in rows]
        finally:
            journal.close()
    raise click.BadParameter(
        f"there is no trade {trade_id!r}; `pm-node trade list` prints all", param_hint="ID"
    )


def _side(row: TradeRow, journal: Journal) -> dict[str, Any]:
    """Return what may be told of a trade: nothing that opens goods or signs."""
    from node.settlement.trade import Trade, machine_of

    trade = Trade(machine_of(row))
    return {
        "trade_id": "0x" + row.trade_id.hex(),
        "side": row.role,
        "state": row.state,
        "over": row.over,
        "note": trade.machine.record.note,
        "terms": _terms(trade.quote) if trade.quote else None,
        "transactions": [
            {
                "step": sent.step,
                "attempt": sent.attempt,
                "nonce": sent.nonce,
                "hash": "0x" + sent.hash.hex(),
                "fate": {None: "pending", True: "mined", False: "reverted"}[sent.succeeded],
                "block": sent.block,
                "gas": None if sent.gas is None else sent.share,
            }
            for sent in journal.transactions(row.trade_id)
        ],
    }


def _terms(quote: Quote) -> dict[str, Any]:
    return {
        "buyer": quote.buyer,
        "seller": quote.seller,
        "price": str(quote.price),
        "fee": str(quote.fee),
        "fee_recipient": quote.fee_recipient,
        "offer_root": "0x" + quote.offer_root.hex(),
        "goods_root": "0x" + quote.goods_root.hex(),
        "byte_length": quote.byte_length,
        "fund_by": quote.fund_by,
        "reveal_by": quote.reveal_by,
        "grace": quote.grace,
        "dispute_window": quote.dispute_window,
    }


def _shown(name: str, value: object) -> str:
    """Return a term for a person: with its unit, and times as such."""
    match name, value:
        case (("fund_by" | "reveal_by"), int()):
            return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
        case (("price" | "fee"), _):
            return f"{value} wei"
        case (("grace" | "dispute_window"), _):
            return f"{value} s"
        case _:
            return str(value)
