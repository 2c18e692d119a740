"""Batches as the parties of a market play them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from contracts.batch import Plan, plan, secret_of, shown
from contracts.stage import ROLES, ZERO, Outcome, Quote, Stage

PARTIES = ("buyer", "seller", "rival")
ALL = 0b1111
INTEGERS = ("legs", "closes_from", "dispute_window")


def keys(stage: Stage) -> dict[str, Any]:
    return {stage.accounts[role]: stage.keys[role] for role in ROLES}


def leg(stage: Stage, number: int, buyer: str, seller: str, **changes: Any) -> Quote:
    trade_id = bytes([number + 1]) + hashlib.sha256(bytes([number])).digest()[1:]
    terms = {
        "trade_id": trade_id,
        "buyer": stage.accounts[buyer],
        "seller": stage.accounts[seller],
        "encryptor": stage.accounts[seller],
        "price": 100 * (number + 1),
        "fee": number,
        "secret_commitment": hashlib.sha256(secret_of(trade_id)).digest(),
    }
    return stage.quote(**terms | changes)


def planned(
    stage: Stage, quotes: Sequence[Quote], nonce: int = 0, closes_by: int | None = None
) -> Plan:
    return plan(stage, quotes, keys(stage), nonce, closes_by)


def lock(stage: Stage, made: Plan, **changes: Any) -> Outcome:
    arguments = {
        "spendings": made.spendings,
        "accounts": made.accounts,
        "signatures": stage.signatures(made.digest),
    } | changes
    return stage.send("lockBatch", *arguments.values(), sender="stranger")


def reveal(stage: Stage, made: Plan, mask: int) -> Outcome:
    return stage.send("revealBatch", made.batch, shown(made.quotes, mask), mask, sender="stranger")


def close(stage: Stage, made: Plan) -> Outcome:
    return stage.send("closeBatch", made.batch, made.payouts, sender="stranger")


def close_by_leg(stage: Stage, made: Plan) -> Outcome:
    parts = (made.batch, made.accounts, made.movements)
    return stage.send("closeBatchByLeg", *parts, sender="stranger")


def credit(stage: Stage, account: str) -> int:
    amount: int = stage.view("credits", ZERO, account)
    return amount


def deposits(stage: Stage) -> list[int]:
    return [stage.view("deposits", ZERO, stage.accounts[role]) for role in PARTIES]


def four_trades(stage: Stage) -> list[Quote]:
    """Return four trades among three parties, who have 1,000 each in deposit."""
    for role in PARTIES:
        stage.send("deposit", ZERO, stage.accounts[role], 1_000, sender="stranger", value=1_000)
    sides = (("buyer", "seller"), ("seller", "buyer"), ("buyer", "rival"), ("rival", "seller"))
    return [leg(stage, number, *side) for number, side in enumerate(sides)]
