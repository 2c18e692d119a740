"""What the calls of one market came to: cleared by the broker, verified again, held against trades.

Prices and allocations are what the broker told when it cleared; its certificate is not believed
but recomputed, from bids and outcome (`Mechanism.verify`). Each allocation is held against the
trade that it became, and the gain that was predicted for it against two that were not known when
the call was cleared: what the deal's own measurement says of the very layers that were delivered,
and what the buyer's loss on unseen rows lost when all that it had bought was fused. How fair a call
is measured of what the mechanism divides, not of the whole layers that are delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.registry import MECHANISMS
from broker_node.mechanisms.weight_market.market import RANGES, read
from broker_node.mechanisms.weight_market.metrics import (
    envy_freeness_index,
    proportional_fairness_index,
    sharing_incentive_index,
)
from node.chain.port import EscrowState
from node.devnet.bought import Bought
from node.devnet.logs import Told
from node.devnet.report.document import CallRow, Fairness, Fused, Given, Trade
from node.protocol.types import ONE, Digest


def calls_of(
    *,
    cleared: Sequence[Told],
    accounts: Mapping[str, str],
    bought: Mapping[str, Mapping[Digest, Bought]],
    trades: Sequence[Trade],
    arm: str,
    seed: int,
) -> list[CallRow]:
    """Return every call of a market; `cleared` are its broker's events, `accounts` the names."""
    by_id = {trade["id"]: trade for trade in trades}
    traded: dict[tuple[str, str], Trade] = {}
    for buyer, purchases in bought.items():
        for trade_id, one in purchases.items():
            found = by_id.get(f"0x{trade_id.hex()}")
            if found is not None:
                traded[buyer, f"0x{one.offer.hex()}"] = found
    return [
        _call(event, place, accounts, traded, arm, seed)
        for place, event in enumerate(cleared, start=1)
    ]


def _call(
    event: Told,
    place: int,
    accounts: Mapping[str, str],
    traded: Mapping[tuple[str, str], Trade],
    arm: str,
    seed: int,
) -> CallRow:
    def name(account: str) -> str:
        return accounts.get(account, account)

    sellers = [name(account) for account in event["sellers"]]
    market, outcome = event["market"], event["outcome"]
    given = [
        _given(name(buyer), one, name, traded)
        for buyer, each in event["given"].items()
        for one in each
    ]
    rounds = [one["round"] for one in given if one["round"]]
    budgets = {name(account): str(wei) for account, wei in event["budgets"].items()}
    paid = [one for one in given if one["on_chain"] == EscrowState.PAID.name.lower()]
    valid, worst = _verified(event["mechanism"], market, outcome)
    spent = {b: sum(int(one["price"]) for one in given if one["buyer"] == b) for b in budgets}
    return CallRow(
        arm=arm,
        seed=seed,
        round=max(rounds, default=place),
        call=str(event["call"]),
        budgets=budgets,
        prices={
            seller: str(int(row[0] * 10**18))
            for seller, row in zip(sellers, outcome.get("prices", []), strict=False)
        },
        sold={
            seller: round(sum(one["share"] for one in given if one["seller"] == seller), 6)
            for seller in sellers
        },
        capacity={
            seller: int(row[0])
            for seller, row in zip(sellers, market.get("capacity", []), strict=False)
        },
        given=given,
        confirmed=valid,
        worst=worst,
        relative_gap=outcome.get("relative_gap"),
        paid=str(sum(int(one["price"]) for one in paid)),
        within_budgets=all(spent[buyer] <= int(budgets[buyer]) for buyer in budgets),
        fairness=_fairness(market, outcome),
    )


def _given(
    buyer: str,
    one: Mapping[str, Any],
    name: Callable[[str], str],
    traded: Mapping[tuple[str, str], Trade],
) -> Given:
    seller = name(one["seller"])
    trade = traded.get((buyer, str(one["offer"])))
    return Given(
        buyer=buyer,
        seller=seller,
        share=float(one["share"]),
        layers=int(one["layers"]),
        price=str(one["price"]),
        predicted=int(one["predicted"]) / ONE,
        realised=None if trade is None else trade["gain"],
        trade=None if trade is None else trade["id"],
        on_chain=EscrowState.NONE.name.lower() if trade is None else trade["on_chain"],
        round=0 if trade is None else trade["round"],
    )


def _verified(
    mechanism: str, market: Mapping[str, Json], outcome: Mapping[str, Json]
) -> tuple[bool, float]:
    """Recompute a certificate; a call in which nobody could gain has none to confirm."""
    if not outcome:
        return True, 0.0
    values = {key: value for key, value in outcome.items() if key != "status"}
    try:
        stated = Outcome(status=Status(cast("str", outcome["status"])), values=values)
        certificate = MECHANISMS[mechanism].verify(market, stated)
    except (RefusedInputError, KeyError, ValueError):
        return False, float("inf")
    return certificate.valid, max(certificate.violations.values(), default=0.0)


def _fairness(market: Mapping[str, Json], outcome: Mapping[str, Json]) -> Fairness | None:
    """Return how fair an allocation is to whom it is least fair; None where there is none."""
    if not outcome:
        return None
    try:
        sides = read(market, (RANGES,))
        x_SJ = np.array(outcome["x"], dtype=np.float64)
    except (RefusedInputError, KeyError, TypeError, ValueError):
        return None
    if x_SJ.shape != sides.edge_SJ.shape:
        return None
    share_S = sides.budget_S / sides.budget_S.sum()
    return Fairness(
        envy_freeness=round(envy_freeness_index(sides, x_SJ), 6),
        proportional_fairness=round(
            float((proportional_fairness_index(sides, x_SJ) / share_S).min()), 6
        ),
        sharing_incentive=round(float(sharing_incentive_index(sides, x_SJ).min()), 6),
    )


def fused_of(
    calls: Sequence[CallRow], told: Mapping[str, Sequence[Told]], arm: str, seed: int
) -> list[Fused]:
    """Return each round of each buyer in which something was delivered, in the order of rounds."""
    predicted: dict[tuple[int, str], list[float]] = {}
    for call in calls:
        for one in call["given"]:
            if one["on_chain"] == EscrowState.PAID.name.lower():
                predicted.setdefault((one["round"], one["buyer"]), []).append(one["predicted"])
    found = []
    for (round_, buyer), each in sorted(predicted.items()):
        played = [
            event
            for event in told.get(buyer, ())
            if event["event"] == "round_played" and event["round"] == round_ and event["bought"]
        ]
        if played and played[-1]["loss_before"] > 0:
            before, after = float(played[-1]["loss_before"]), float(played[-1]["loss"])
            found.append(
                Fused(
                    arm=arm,
                    seed=seed,
                    round=round_,
                    buyer=buyer,
                    sellers=len(each),
                    predicted=round(sum(each), 6),
                    realised=round((before - after) / before, 6),
                )
            )
    return found
