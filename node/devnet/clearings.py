"""What the rounds of a clearing house came to in a market of a run: for its record and report.

Read from the broker's journal, the agents' logs and the chain; what the journal says is computed
once more, from what was published and what the chain says was paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from broker_node.clearing.certificate import certified
from broker_node.clearing.rules import asked_of, checked
from broker_node.clearing.shapley_round import ShapleyRound
from broker_node.clearing.terms import Document
from node.chain.clearing import open_clearing_house
from node.chain.client import Endpoint
from node.devnet.logs import read_events
from node.devnet.pots import Books, Pot, read_books
from node.journal import Journal, JournalError
from node.protocol.clearing import ClearingDomain
from node.protocol.convening import ConveningRecord
from node.protocol.errors import MarketError
from node.protocol.types import Wei
from node.roles.clearing import noted_house
from node.settlement import rounds

NOBODY: Final = b"\x01" * 32
"""The key of who only reads."""
TOLD: Final = ("node_ready", "clearing_changed", "clearing_off", "root_disputed")


def clearing_record(
    folder: Path, agents: Sequence[str], broker: str, endpoint: Endpoint, chain_id: int
) -> dict[str, Any]:
    """Return what the rounds of the market in `folder` came to, as JSON. Raises `ChainError`."""
    address, since = noted_house(folder / broker)
    house = open_clearing_house(
        endpoint, NOBODY, ClearingDomain(chain_id=chain_id, clearing_house=address)
    )
    try:
        books = read_books(house, since)
    finally:
        house.close()
    told = {name: read_events(folder / name, TOLD) for name in (*agents, broker)}
    names = {
        str(event["account"]): name
        for name, events in told.items()
        for event in events
        if event["event"] == "node_ready"
    }
    convened, off = _journalled(folder / broker / "journal.db")
    ends = {
        (event["round_id"], name): (event["state"], event["reason"])
        for name in agents
        for event in told[name]
        if event["event"] == "clearing_changed"
    }
    return {
        "house": address,
        "rounds": [
            _round(at, record, books, names, ends) for at, record in enumerate(convened, start=1)
        ],
        "off": [_off(fact, names) for fact in off],
        "stayed_out": [
            {"agent": name, "round": event["number"], "reason": event["reason"]}
            for name in agents
            for event in told[name]
            if event["event"] == "clearing_off"
        ],
        "disputed": [
            {
                "agent": name,
                "broker": names.get(event["broker"], event["broker"]),
                "round": event["round_id"],
                "reason": event["reason"],
                "seconds_left": event["seconds_left"],
            }
            for name in agents
            for event in told[name]
            if event["event"] == "root_disputed"
        ],
        "ledger": books.document(),
    }


def _journalled(path: Path) -> tuple[list[ConveningRecord], list[Mapping[str, Any]]]:
    try:
        journal = Journal(path, read_only=True)
    except JournalError:
        return [], []
    try:
        records = rounds.recall(journal, rounds.CONVENED, ConveningRecord)
        off = [fact for _, fact in sorted(journal.facts(rounds.OFF).items())]
    finally:
        journal.close()
    return list(records.values()), [fact for fact in off if isinstance(fact, dict)]


def _round(
    at: int,
    record: ConveningRecord,
    books: Books,
    names: Mapping[str, str],
    ends: Mapping[tuple[Any, str], tuple[str, str]],
) -> dict[str, Any]:
    name = record.opening.round
    pot = books.pots.get(name, Pot())
    document, figures, reason, right = _computed(record, pot)
    told = "0x" + name.hex()
    return {
        "round": at,
        "id": told,
        "state": record.state,
        "mechanism": document.mechanism if document else "",
        "reason": reason,
        "right": right,
        "certified": certified(document, figures) if document and record.inputs else None,
        "parties": [
            {
                "agent": names.get(account, account),
                "roles": roles_of(document, i) if document else [],
                "alone": document.performance(i, 1 << i) if document else None,
                "due": str(record.dues[i]),
                "paid": str(pot.paid[account]),
                "got": str(pot.claimed[account] + pot.reclaimed[account]),
                "net": str(pot.net.get(account, 0)),
                "ended": ends.get((told, names.get(account, "")), ("", ""))[0],
            }
            for i, account in enumerate(document.parties if document else ())
        ],
        "broker_got": str(pot.claimed[document.broker]) if document else "0",
        "paid_in": str(pot.paid.total()),
        "paid_out": str(pot.claimed.total() + pot.reclaimed.total()),
        "held": str(pot.held),
        "sum": str(sum(pot.net.values()) + pot.held),
        "models": [
            {"performance": performance / 1_000_000, "buyers": list(buyers)}
            for _, _, performance, buyers in (document.models if document else ())
        ],
        "figures": figures,
    }


def roles_of(document: Document, party: int) -> list[str]:
    """Return what a party is in a round, by the name that its mechanism has for that."""
    if document.mechanism == ShapleyRound.name:
        return ["party"]
    made = [f"producer of model {j}" for j, who in enumerate(document.producers) if who == party]
    buys = any(who != party for who in document.producers)
    return ["data seller", *made, *(["model buyer"] if buys else [])]


def _computed(
    record: ConveningRecord, pot: Pot
) -> tuple[Document | None, dict[str, Any], str, bool | None]:
    """Compute a round once more; whether its leaves are those of the journal."""
    try:
        if not record.inputs:
            document, asked = asked_of(record.invited)
            return document, dict(asked.figures), "nobody-paid" if not pot.paid else "", None
        document, leaves = checked(
            record.invited,
            record.inputs,
            {account: Wei(amount) for account, amount in pot.paid.items()},
        )
    except MarketError as error:
        return None, {}, str(error), False
    right = leaves.payouts == tuple(zip(record.accounts, record.amounts, strict=True))
    return document, dict(leaves.settled.figures), leaves.settled.reason, right


def _off(fact: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"reason": fact.get("reason", ""), "figures": {}, "parties": []}
    inputs = fact.get("inputs")
    if isinstance(inputs, bytes) and inputs:
        document, asked = asked_of(inputs)
        found["figures"] = dict(asked.figures)
        found["certified"] = certified(document, asked.figures)
        found["parties"] = [names.get(account, account) for account in document.parties]
    return found
