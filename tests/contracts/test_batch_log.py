"""Whoever has a batch's log, its own quotes and secrets needs nothing else to go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contracts.batch import Plan, secret_of
from contracts.stage import ZERO, Stage
from tests.contracts.batching import credit, four_trades, leg, planned
from tests.contracts.conftest import Deploy
from tests.contracts.goods import evidence_of, spoilt


def logged(stage: Stage, made: Plan, deploy: Deploy) -> dict[str, Any]:
    """Lock a batch by an inner call, whose calldata no list of transactions has; return its log."""
    arguments = (made.spendings, made.accounts, stage.signatures(made.digest))
    data = stage.escrow.calldata("lockBatch", arguments)
    wallet = deploy("Wallet", stage.accounts["stranger"])
    outcome = stage.send("act", stage.escrow.address, data, sender="stranger", to=wallet)
    (event,) = outcome.events
    assert event.name == "BatchLocked"
    return event.fields


def test_each_call_about_a_good_batch_can_be_made_from_the_log_alone(
    stage: Stage, deploy: Deploy
) -> None:
    made = planned(stage, four_trades(stage))
    log = logged(stage, made, deploy)
    for place, quote in enumerate(made.quotes):  # each seller knows the secrets of its own trades
        assert log["digests"][place] == stage.view("quoteDigest", quote)
        brought = list(log["commitments"])
        brought[place] = secret_of(quote.trade_id)
        stage.send("revealBatch", log["batch"], brought, 1 << place, sender="stranger")
    stage.wait_until(stage.now() + made.batch.dispute_window)
    payouts = payouts_of(log["accounts"], log["movements"])
    stage.send("closeBatch", log["batch"], payouts, sender="stranger")
    dues = {"buyer": 0, "seller": 100 + 400 - 3 - 200, "rival": 0, "treasury": 6}
    assert {role: credit(stage, stage.accounts[role]) for role in dues} == dues


def test_each_call_about_a_bad_batch_can_be_made_from_the_log_alone(
    stage: Stage, deploy: Deploy
) -> None:
    good, unrevealed = four_trades(stage)[:2]
    bad = spoilt(stage, 8, "buyer", "rival", price=500, fee=5)
    made = planned(stage, [good, unrevealed, bad, leg(stage, 9, "rival", "seller", fee=0)])
    log = logged(stage, made, deploy)
    brought = [secret_of(quote.trade_id) for quote in made.quotes]
    hidden = made.quotes.index(unrevealed)
    brought[hidden] = log["commitments"][hidden]
    mask = 0b1111 & ~(1 << hidden)
    stage.send("revealBatch", log["batch"], brought, mask, sender="stranger")
    place = log["digests"].index(stage.view("quoteDigest", bad))
    arguments = (log["batch"], log["digests"], place, bad, evidence_of(bad))
    stage.send("disputeLeg", *arguments, sender="stranger")
    stage.wait_until(made.batch.closes_from + made.batch.dispute_window + 1)
    parts = (log["batch"], log["accounts"], log["movements"])
    stage.send("closeBatchByLeg", *parts, sender="stranger")
    dues = {"buyer": 500, "seller": 100 + 1_000, "rival": 0, "treasury": 0}
    assert {role: credit(stage, stage.accounts[role]) for role in dues} == dues
    assert stage.view("deposits", ZERO, unrevealed.buyer) == 1_000


def payouts_of(accounts: Sequence[str], movements: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return what each account gets, read from the words of an event."""
    sums, spent = [0] * len(accounts), [0] * len(accounts)
    for word in movements:
        price, fee = word >> 144, word >> 32 & (1 << 112) - 1
        spent[word >> 16 & 0xFF] += price
        sums[word & 0xFF] += price - fee
        if fee:
            sums[word >> 8 & 0xFF] += fee
    back = [min(got, paid) for got, paid in zip(sums, spent, strict=True)]
    return [
        (account, kept, got - kept) for account, kept, got in zip(accounts, back, sums, strict=True)
    ]
