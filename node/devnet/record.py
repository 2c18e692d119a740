"""What one market of a run came to, read from what its nodes left: logs, journals, the chain.

The record is made of the same files whether the nodes shared a process or not, and whether
they ended or were killed. A round may be told of twice, if a restart cut it off: its later
event counts. What was bought in a round that is not over is in the journal alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypedDict

from node.chain.port import EscrowState
from node.devnet.bought import Bought, read_bought
from node.devnet.calls import calls_of, fused_of
from node.devnet.ledger import Ledger
from node.devnet.logs import Told, read_events
from node.devnet.report.document import CAUSES, AgentRow, CallRow, Fused, Gas, Legs, Trade
from node.devnet.report.honesty import Honesty, Split
from node.devnet.report.strategies import Strategies
from node.journal import JournalError
from node.protocol.types import ONE, Digest
from node.settlement.history import TradeSummary, trade_rows

RECORD: Final = "record.json"
READ: Final = (
    *("node_ready", "epoch_trained", "round_played", "leg_ended", "network_used"),
    *("statement_published", "call_cleared"),
)


class _Besides(TypedDict, total=False):
    """What some markets have besides."""

    strategies: Strategies
    """What they came to, where the agents were given any."""
    calls: list[CallRow]
    """Of one whose prices are made in calls."""
    fused: list[Fused]
    honesty: Honesty
    """What its broker found out about models."""
    split: Split
    clearing: dict[str, Any]
    """Of one that clears by rounds."""


class MarketRecord(_Besides):
    """One arm with one seed."""

    arm: str
    seed: int
    complete: bool
    seconds: float
    """All that was spent on it, by this process and by those it was interrupted in."""
    earlier_seconds: float
    """Which of them were not this process's."""
    rounds_played: dict[str, int]
    """By agent of a market."""
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
    leaves: Mapping[int, int] | None = None,
) -> MarketRecord:
    """Read the market in `folder`, one data directory to a node.

    `seconds` are this process's alone; `leaves` says after which round an agent goes away, by
    its place among `agents`.
    """
    told = {name: read_events(folder / name, READ) for name in (*agents, *brokers)}
    earlier = earlier_seconds(told, brokers)
    bought = {name: _bought(folder / name / "journal.db") for name in agents}
    ended = {name: _rounds_ended(told[name], bought[name]) for name in agents}
    last = {name: (leaves or {}).get(place, rounds) for place, name in enumerate(agents)}
    rows = {name: _rows(folder / name / "journal.db") for name in (*agents, *brokers)}
    names = {str(e["peer_id"]): name for name in told for e in _of(told[name], "node_ready")}
    record = MarketRecord(
        arm=arm,
        seed=seed,
        complete=complete,
        seconds=round(seconds + earlier, 2),
        earlier_seconds=round(earlier, 2),
        rounds_played={
            name: len({event["round"] for event in _of(told[name], "round_played")})
            for name in agents
        },
        curves={name: curve_of(told[name], metric) for name in agents},
        agents=[_agent(name, told[name], rows[name], arm, seed) for name in agents],
        trades=_trades(agents, told, bought, rows, names, ledger, arm, seed),
        legs=_legs(ended, possible=sum(min(rounds, last[name]) for name in agents)),
        ledger=ledger.document(),
        gas=_gas([row for found in rows.values() for row in found]),
        network=_network(told),
    )
    cleared = [event for name in brokers for event in _of(told[name], "call_cleared")]
    if cleared:
        accounts = {str(e["account"]): name for name in told for e in _of(told[name], "node_ready")}
        record["calls"] = calls_of(
            cleared=cleared, accounts=accounts, bought=bought, trades=record["trades"],
            arm=arm, seed=seed,
        )  # fmt: skip
        record["fused"] = fused_of(record["calls"], told, arm, seed)
    return record


def _rows(path: Path) -> list[TradeSummary]:
    try:
        return trade_rows(path)
    except JournalError:  # it was ended before it had one
        return []


def _bought(path: Path) -> dict[Digest, Bought]:
    try:
        return read_bought(path)
    except JournalError:  # it was ended before it had one
        return {}


def _rounds_ended(events: Sequence[Told], bought: Mapping[Digest, Bought]) -> dict[int, str]:
    """Return round → why it ended as it did, of an agent."""
    ended = {
        one.open_round: "bought"
        for one in bought.values()
        if one.open_round is not None and one.delivered
    }
    told = {int(leg["round"]): str(leg["because"]) for leg in _of(events, "leg_ended")}
    return {**told, **ended}


def earlier_seconds(told: Mapping[str, Sequence[Told]], brokers: Sequence[str]) -> float:
    """Return how long the processes lasted that this market was interrupted in, by their logs.

    Each begins as its broker comes up, and ends with the last event of any node.
    """
    begun = sorted(_time(e) for name in brokers for e in _of(told[name], "node_ready"))
    times = sorted(_time(event) for events in told.values() for event in events)
    return sum(
        (max(time for time in times if time < after) - start).total_seconds()
        for start, after in pairwise(begun)
    )


def _time(event: Told) -> datetime:
    return datetime.fromisoformat(str(event["time"]))


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
    bought: Mapping[str, Mapping[Digest, Bought]],
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
        rounds = {leg["trade_id"]: int(leg["round"]) for leg in _of(told[buyer], "leg_ended")}
        for row in (row for row in rows[buyer] if row["side"] == "buyer"):
            trade_id = Digest(bytes.fromhex(row["trade_id"][2:]))
            one = bought[buyer][trade_id]
            seller, other = sold.get(row["trade_id"], (names.get(one.seller, ""), None))
            both = [row] if other is None else [row, other]
            state = ledger.states.get(trade_id, EscrowState.NONE)
            found.append(
                Trade(
                    id=row["trade_id"],
                    arm=arm,
                    seed=seed,
                    round=rounds.get(row["trade_id"], one.open_round or 0),
                    buyer=buyer,
                    seller=seller,
                    price=row["price"] or "0",
                    alpha=one.alpha / ONE,
                    gain=one.gain / ONE,
                    bound=one.bound / ONE,
                    state=row["state"],
                    on_chain=state.name.lower(),
                    transactions={k: v for part in both for k, v in part["transactions"].items()},
                    gas={k: v for part in both for k, v in part["gas"].items()},
                )
            )
    return sorted(found, key=lambda trade: (trade["round"], trade["buyer"]))


def _legs(ended: Mapping[str, Mapping[int, str]], *, possible: int) -> Legs:
    why = Counter(because for rounds in ended.values() for because in rounds.values())
    traded = why.pop("bought", 0)
    lost = Counter[str]()
    for because, count in why.items():
        lost[because if because in CAUSES else "other"] += count
    return Legs(possible=possible, traded=traded, lost={cause: lost[cause] for cause in CAUSES})


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
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not MarketRecord.__required_keys__ <= found.keys():
        return None  # of another version: what it was made of is still there
    ledger = found["ledger"]
    if not found["complete"] or (ledger is not None and not ledger["balances"]):
        return None
    record: MarketRecord = {**found, "earlier_seconds": found["seconds"]}  # type: ignore[typeddict-item]  # what `save_record` wrote
    return record
