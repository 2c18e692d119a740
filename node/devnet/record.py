"""What one market of a run came to, read from what its nodes left: logs, journals, the chain.

The record is made of the same files whether the nodes shared a process or not, and whether
they ended or were killed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

from node.chain.port import EscrowState
from node.devnet.ledger import Ledger
from node.devnet.logs import Told, read_events
from node.devnet.report.document import AgentRow, Gas, Legs, Trade
from node.journal import JournalError
from node.protocol.types import ONE, Digest
from node.settlement.history import TradeSummary, trade_rows

RECORD: Final = "record.json"
CAUSES: Final = ("gain", "bound", "ask", "fee", "cash")
"""Why a possible trade did not come about; every other reason is counted as ``other``."""
READ: Final = (
    *("node_ready", "epoch_trained", "round_played", "leg_ended", "network_used"),
    "statement_published",
)


class MarketRecord(TypedDict):
    """One arm with one seed."""

    arm: str
    seed: int
    complete: bool
    seconds: float
    curves: dict[str, list[tuple[int, float]]]
    """By agent: epoch index and figure, after whatever was adopted then."""
    agents: list[AgentRow]
    trades: list[Trade]
    legs: Legs | None
    ledger: dict[str, object] | None
    gas: dict[str, Gas]
    network: dict[str, Any] | None


def figure_of(value: float, metric: str) -> float:
    """Return an accuracy (0 … 1) in percent, to a ten-thousandth; a loss as it is."""
    return round(100 * value, 4) if metric == "accuracy" else value


def curve_of(events: Sequence[Told], metric: str) -> list[tuple[int, float]]:
    """Return the figure after each epoch, and after what was adopted in it.

    `metric` is ``accuracy`` (told as 0 … 1, returned in percent) or ``loss``.
    """
    found = {
        int(event["epoch"]) - 1: figure_of(float(event[metric]), metric)
        for event in events
        if event["event"] in ("epoch_trained", "round_played")
    }
    return sorted(found.items())


def record_market(
    *,
    folder: Path,
    agents: Sequence[str],
    brokers: Sequence[str],
    arm: str,
    seed: int,
    metric: str,
    ledger: Ledger,
    complete: bool,
    seconds: float,
    rounds: int,
) -> MarketRecord:
    """Read the market in `folder`, one data directory to a node."""
    told = {name: read_events(folder / name, READ) for name in (*agents, *brokers)}
    rows = {name: _rows(folder / name / "journal.db") for name in (*agents, *brokers)}
    names = {str(e["peer_id"]): name for name in told for e in _of(told[name], "node_ready")}
    return MarketRecord(
        arm=arm,
        seed=seed,
        complete=complete,
        seconds=round(seconds, 2),
        curves={name: curve_of(told[name], metric) for name in agents},
        agents=[_agent(name, told[name], rows[name], arm, seed) for name in agents],
        trades=_trades(agents, told, rows, names, ledger, arm, seed),
        legs=_legs(
            [leg for name in agents for leg in _of(told[name], "leg_ended")], agents, rounds
        ),
        ledger=ledger.document(),
        gas=_gas([row for found in rows.values() for row in found]),
        network=_network(told),
    )


def _rows(path: Path) -> list[TradeSummary]:
    try:
        return trade_rows(path)
    except JournalError:  # it was ended before it had one
        return []


def _of(events: Sequence[Told], name: str) -> list[Told]:
    return [event for event in events if event["event"] == name]


def _agent(
    name: str, events: Sequence[Told], rows: Sequence[TradeSummary], arm: str, seed: int
) -> AgentRow:
    ready = _of(events, "node_ready")
    return AgentRow(
        name=name,
        account=str(ready[-1]["account"]) if ready else "",
        peer_id=str(ready[-1]["peer_id"]) if ready else "",
        spent=str(_sum(rows, "buyer", "complete")),
        earned=str(_sum(rows, "seller", "paid")),
        arm=arm,
        seed=seed,
    )


def _sum(rows: Sequence[TradeSummary], side: str, state: str) -> int:
    """Add up prices: what the buyers paid, of which the seller had all but the fee."""
    mine = [row for row in rows if (row["side"], row["state"]) == (side, state)]
    if side == "seller":
        return sum(int(row["price"] or 0) - int(row["fee"] or 0) for row in mine)
    return sum(int(row["price"] or 0) for row in mine)


def _trades(
    agents: Sequence[str],
    told: Mapping[str, Sequence[Told]],
    rows: Mapping[str, Sequence[TradeSummary]],
    names: Mapping[str, str],
    ledger: Ledger,
    arm: str,
    seed: int,
) -> list[Trade]:
    sold = {
        row["trade_id"]: (name, row)
        for name in agents
        for row in rows[name]
        if row["side"] == "seller"
    }
    found: list[Trade] = []
    for buyer in agents:
        legs = {leg["trade_id"]: leg for leg in _of(told[buyer], "leg_ended") if leg["trade_id"]}
        for row in (row for row in rows[buyer] if row["side"] == "buyer"):
            leg = legs.get(row["trade_id"], {})
            seller, other = sold.get(row["trade_id"], (names.get(str(leg.get("seller"))), None))
            both = [row] if other is None else [row, other]
            state = ledger.states.get(Digest(bytes.fromhex(row["trade_id"][2:])), EscrowState.NONE)
            found.append(
                Trade(
                    id=row["trade_id"],
                    arm=arm,
                    seed=seed,
                    round=int(leg.get("round") or 0),
                    buyer=buyer,
                    seller=seller or "",
                    price=row["price"] or "0",
                    alpha=_fraction(leg.get("alpha")),
                    gain=_fraction(leg.get("gain")),
                    bound=_fraction(leg.get("bound")),
                    state=row["state"],
                    on_chain=state.name.lower(),
                    transactions={k: v for part in both for k, v in part["transactions"].items()},
                    gas={k: v for part in both for k, v in part["gas"].items()},
                )
            )
    return sorted(found, key=lambda trade: (trade["round"], trade["buyer"]))


def _fraction(millionths: int | None) -> float | None:
    return None if millionths is None else int(millionths) / ONE


def _legs(ended: Sequence[Told], agents: Sequence[str], rounds: int) -> Legs:
    lost = Counter(
        leg["because"] if leg["because"] in CAUSES else "other"
        for leg in ended
        if leg["because"] != "bought"
    )
    return Legs(
        possible=len(agents) * rounds,
        traded=sum(leg["because"] == "bought" for leg in ended),
        lost={cause: lost[cause] for cause in (*CAUSES, "other")},
    )


def _gas(rows: Sequence[TradeSummary]) -> dict[str, Gas]:
    used: dict[str, list[int]] = {}
    for row in rows:
        for step, gas in row["gas"].items():
            used.setdefault(step, []).append(gas)
    return {
        step: Gas(count=len(each), total=sum(each), mean=round(sum(each) / len(each), 1))
        for step, each in used.items()
    }


def _network(told: Mapping[str, Sequence[Told]]) -> dict[str, Any]:
    totals: dict[str, Counter[str]] = {
        key: Counter() for key in ("bytes_in", "bytes_out", "ignored", "rejected")
    }
    accepted = offers = 0
    for events in told.values():
        offers += sum(e.get("kind") == "offer" for e in _of(events, "statement_published"))
        for used in _of(events, "network_used"):
            accepted += int(used["accepted"])
            for key, total in totals.items():
                total.update(used[key])
    return {
        "transport": "tcp+noise+yamux",
        "offers_sent": offers,
        "accepted": accepted,
        "bytes": sum(totals["bytes_out"].values()),
        **{key: dict(total) for key, total in totals.items()},
    }


def save_record(folder: Path, record: MarketRecord) -> None:
    """Keep a record beside what it was made of, whole or not at all."""
    partial = folder / (RECORD + ".tmp")
    partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)


def load_record(folder: Path) -> MarketRecord | None:
    """Return the record of a market that was played to its end before, if it was."""
    try:
        found: MarketRecord = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
