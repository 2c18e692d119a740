"""A round of a data–model coupled market (TripleWin), played with parameters for data.

Every party is a data seller: what it sells is not its rows but the parameters that it trained on
them. Some are model producers besides: producer j fuses everybody's parameters into its
own: model j. And every party but its producer is a buyer of a model. SV[i,j] is the
Shapley value of seller i in the accuracy of model j over what producer j had alone; its own is 0.

    p_M[j,k] = κ_M + (1 + δ)·Σ_i p_D[i,j],    p_D[i,j] = κ_D[i] + SV[i,j]/(1 + δ)·Σ_k ω·p_M[j,k]

The equations want SV >= 0: a seller that lowers model j counts as 0 there, gets its κ_D, and is in
`hurt`. Where any loop gain is 1 or more there are no prices; where buyers decline a model, or one
of them does not pay, that model is not sold, and what was paid for it comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from broker_node.clearing.terms import Asked, Document, Performance, Settled, Sold
from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.reading import Floats
from broker_node.mechanisms.shapley_values import MAX_EXACT, shapley_values
from broker_node.mechanisms.triplewin import (
    Coupled,
    ModelTransfers,
    solve,
    trading,
    transfers_in_wei,
)
from node.protocol.types import ONE, Address, Wei

INFEASIBLE: Final = "infeasible"
DECLINED: Final = "declined"
UNPAID: Final = "a-buyer-did-not-pay"
TOO_FEW: Final = "nobody-to-sell-to"
UNLIMITED: Final = Wei(0)
"""As a reserve: no limit. A model costs more than nothing."""


class TripleWinRound:
    """Buyers pay in; sellers of parameters, and producers, are paid out."""

    name = "triplewin"
    most_parties = MAX_EXACT

    def admit(self, terms: Document) -> None:
        """Refuse a cost that no gain of accuracy makes up for, and a reserve under any price.

        A model costs its serving, and what its data costs with the producer's margin on top; of
        the data the party's own is part.
        """
        (cost,), (reserve,) = terms.costs, terms.reserves
        if not 0 < cost <= terms.unit:
            raise RefusedInputError("costs", f"must be 1 … {terms.unit} wei, what 1.0 is worth")
        least = terms.serving_cost + cost * (ONE + terms.margin) // ONE
        if reserve != UNLIMITED and reserve < least:
            raise RefusedInputError("reserves", f"must be 0, for no limit, or at least {least} wei")

    def ask(self, document: Document, performance: Performance) -> Asked:
        """Return what each party pays for all models that it buys; `off` where none is sold."""
        nothing = tuple(Wei(0) for _ in document.parties)
        if len(document.parties) < 2 or not document.producers:
            return Asked(dues=nothing, off=TOO_FEW, figures={})
        market, hurt = market_of(document, performance)
        figures = _figures(document, market, hurt)
        # who buys a model compares it with its own
        figures["alone"] = [performance(i, 1 << i) for i in range(len(document.parties))]
        if figures["loop_gain"] and max(figures["loop_gain"]) >= 1:
            return Asked(dues=nothing, off=INFEASIBLE, figures=figures)
        transfers, prices = _transfers(document, market)
        figures |= prices
        dues = [0 for _ in document.parties]
        for model, transfer in transfers.items():
            for buyer, price in zip(_buyers(document, model), transfer.paid, strict=True):
                dues[buyer] += price
        return Asked(
            dues=tuple(Wei(due) for due in dues),
            off="" if transfers else DECLINED,
            figures=figures,
            stopped_by=None if transfers else _farthest(document, prices["p_model"], market),
        )

    def settle(
        self, document: Document, performance: Performance, paid: Mapping[Address, Wei]
    ) -> Settled:
        asked = self.ask(document, performance)
        deposits = [paid.get(account, Wei(0)) for account in document.parties]
        if asked.off:
            return Settled(
                amounts=tuple(deposits), kept=Wei(0), sold=(), reason=asked.off,
                figures=asked.figures,
            )  # fmt: skip
        good = {i for i, due in enumerate(asked.dues) if deposits[i] >= due}
        transfers, _ = _transfers(document, market_of(document, performance)[0])
        amounts = [int(deposit) for deposit in deposits]
        sold = []
        for model, transfer in transfers.items():
            buyers = _buyers(document, model)
            if not good.issuperset(buyers):
                continue
            for buyer, price in zip(buyers, transfer.paid, strict=True):
                amounts[buyer] -= price
            for seller, price in enumerate(transfer.data):
                amounts[seller] += price
            producer = document.producers[model]
            amounts[producer] += transfer.producer
            everybody = (1 << len(document.parties)) - 1
            sold.append(Sold(reference=producer, parties=everybody, buyers=(producer, *buyers)))
        return Settled(
            amounts=tuple(Wei(amount) for amount in amounts),
            kept=Wei(0),
            sold=tuple(sold),
            reason="" if sold else UNPAID,
            figures={
                **asked.figures,
                "sold": [document.producers.index(s.reference) for s in sold],
            },
        )


def _farthest(document: Document, prices: list[list[float]], market: Coupled) -> int:
    """Return the buyer whose reserve is the smallest part of a price; of equals the first."""
    reach = market.reserve / np.array(prices)
    model, at = (int(i) for i in np.unravel_index(int(np.argmin(reach)), reach.shape))
    return _buyers(document, model)[at]


def _buyers(document: Document, model: int) -> tuple[int, ...]:
    producer = document.producers[model]
    return tuple(i for i in range(len(document.parties)) if i != producer)


def market_of(document: Document, performance: Performance) -> tuple[Coupled, list[list[int]]]:
    """Return the market, and for each model the sellers that lower it."""
    count, models = len(document.parties), len(document.producers)
    if count > MAX_EXACT:
        raise RefusedInputError("parties", f"must be at most {MAX_EXACT}, got {count}")
    if not document.unit:
        raise RefusedInputError("unit", "must be over 0")
    values = np.zeros((count, models))
    hurt = []
    for model, producer in enumerate(document.producers):
        found = _values(producer, count, performance)
        hurt.append([int(i) for i in np.flatnonzero(found < 0)])
        values[:, model] = np.maximum(found, 0)
    unit = float(document.unit)
    limits = [
        [float(limit) / unit if limit != UNLIMITED else math.inf for limit in limits_of]
        for model in range(models)
        for limits_of in [[document.reserves[buyer] for buyer in _buyers(document, model)]]
    ]
    kappa_d = np.array([float(cost) / unit for cost in document.costs])
    kappa_m = np.full((models, count - 1), float(document.serving_cost) / unit)
    if not (kappa_d > 0).all():
        raise RefusedInputError("costs", "must be over 0")
    if not (kappa_m > 0).all():
        raise RefusedInputError("serving_cost", "must be over 0")
    market = Coupled(
        shapley=values,
        delta=np.full(models, document.margin / ONE),
        kappa_d=kappa_d,
        kappa_m=kappa_m,
        omega=np.full((models, count - 1), document.share / ONE),
        reserve=np.array(limits),
    )
    return market, hurt


def _values(producer: int, count: int, performance: Performance) -> Floats:
    """Return each party's Shapley value in what a producer's model gains; its own is 0."""
    others = [i for i in range(count) if i != producer]
    own = 1 << producer
    before = performance(producer, own)
    game = np.array(
        [
            performance(producer, own | sum(1 << i for at, i in enumerate(others) if s >> at & 1))
            - before
            for s in range(1 << len(others))
        ]
    )
    values = np.zeros(count)
    values[others] = shapley_values(game)
    return values


def _transfers(
    document: Document, market: Coupled
) -> tuple[Mapping[int, ModelTransfers], dict[str, Any]]:
    prices = solve(market)
    return transfers_in_wei(market, prices, unit=document.unit), {
        "p_data": prices.data.tolist(),
        "p_model": prices.buyers.tolist(),
        "trades": [bool(each) for each in trading(market, prices)],
    }


def _figures(document: Document, market: Coupled, hurt: list[list[int]]) -> dict[str, Any]:
    return {
        "shapley_values": market.shapley.tolist(),
        "loop_gain": market.loop_gain.tolist(),
        "hurt": hurt,
        "producers": list(document.producers),
    }
