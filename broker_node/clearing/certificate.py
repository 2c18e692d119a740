"""What a mechanism's own `verify` says of a round that was played."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from broker_node.clearing.shapley_round import ShapleyRound
from broker_node.clearing.terms import Document
from broker_node.clearing.triplewin_round import market_of
from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Json, Outcome, Status
from broker_node.mechanisms.shapley import Shapley
from broker_node.mechanisms.shapley_values import MAX_EXACT
from broker_node.mechanisms.triplewin import TripleWin


def certified(document: Document, figures: Mapping[str, Any]) -> bool | None:
    """Whether the figures of a round hold by the mechanism's certificate; None if it has none.

    A round of too many parties to be exact, or of too few to pool, has none.
    """
    if document.mechanism == ShapleyRound.name:
        return _shapley(document, figures)
    return _triplewin(document, figures)


def _shapley(document: Document, figures: Mapping[str, Any]) -> bool | None:
    members = figures.get("members", [])
    if "psi" not in figures or len(members) > MAX_EXACT:
        return None
    performance: list[Json] = [0.0]
    for subset in range(1, 1 << len(members)):
        those = sum(1 << i for at, i in enumerate(members) if subset >> at & 1)
        performance.append(document.performance(len(document.parties), those))
    market: dict[str, Json] = {
        "parties": len(members),
        "performance_by_bitmask": performance,
    }
    rule = Shapley()
    outcome = rule.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    told = dataclasses.replace(outcome, values={**outcome.values, "psi": figures["psi"]})
    return rule.verify(market, told).valid


def _triplewin(document: Document, figures: Mapping[str, Any]) -> bool | None:
    if "loop_gain" not in figures:
        return None
    coupled, _ = market_of(document, document.performance)
    reserve: list[Json] = [
        [float(limit) if np.isfinite(limit) else None for limit in row] for row in coupled.reserve
    ]
    market: dict[str, Json] = {
        "shapley": coupled.shapley.tolist(),
        "delta": coupled.delta.tolist(),
        "kappa_d": coupled.kappa_d.tolist(),
        "kappa_m": coupled.kappa_m.tolist(),
        "omega": coupled.omega.tolist(),
        "reserve": reserve,
    }
    infeasible = max(figures["loop_gain"]) >= 1
    trades = figures.get("trades", [False] * len(coupled.delta))
    status = Status.INFEASIBLE if infeasible else Status.TRADE if any(trades) else Status.NO_TRADE
    outcome = Outcome(
        status=status,
        values={
            "feasible": all(trades) and not infeasible,
            "trades": trades,
            "p_data_to_model": figures.get("p_data"),
            "p_model_to_buyer": figures.get("p_model"),
            "loop_gain": figures["loop_gain"],
        },
    )
    return TripleWin().verify(market, outcome).valid
