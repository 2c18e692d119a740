"""A round of replication-robust Shapley division (Collaborative Machine Learning Markets §4).

Each party deposits its fee A_i = 1 − G({i}), and an entry that it never gets back; G(S) is the
accuracy of the model fused of the parameters that the parties in S brought. Who paid its fee is in
the game: it pays for its gain, is paid by its Shapley value, and gets the fused model. Of who paid
less everything comes back, and of who paid more the rest.

Where pooling does not pay in total nobody owes anything: the fees come back, less the entry, and no
model changes hands. Where the fees could not cover what a party owes for a negative value, or fewer
than two have paid, all of it comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

import numpy as np

from broker_node.clearing.terms import (
    MAX_PARTIES,
    Asked,
    Document,
    Performance,
    Settled,
    Sold,
)
from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.division import Division, divide, settle_in_wei
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.shapley import clear_exact
from broker_node.mechanisms.shapley_sampling import estimate, least_evaluations
from broker_node.mechanisms.shapley_values import MAX_EXACT
from node.protocol.types import ONE, Address, Wei

EVALUATIONS: Final = 1_024
"""Of subsets of more than `MAX_EXACT` parties, or as many as their intervals need."""
ALONE: Final = "nobody-to-pool-with"
UNCOVERED: Final = "a-fee-does-not-cover"


class ShapleyRound:
    """Fees in; refunds and payouts out."""

    name = "shapley"
    most_parties = MAX_PARTIES

    def admit(self, terms: Document) -> None:
        """Refuse nobody: of no cost or reserve does anything follow."""

    def ask(self, document: Document, performance: Performance) -> Asked:
        """Return each party's fee, rounded up: a deposit covers what it is for."""
        alone = [performance(i, 1 << i) for i in range(len(document.parties))]
        dues = tuple(
            Wei(math.ceil((1 - Fraction(round(own * ONE), ONE)) * document.unit) + document.entry)
            for own in alone
        )
        return Asked(dues=dues, off="", figures={"alone": alone})

    def settle(
        self, document: Document, performance: Performance, paid: Mapping[Address, Wei]
    ) -> Settled:
        fees = self.ask(document, performance).dues
        deposits = [paid.get(account, Wei(0)) for account in document.parties]
        members = [i for i, fee in enumerate(fees) if deposits[i] >= fee]
        figures: dict[str, Any] = {"members": members, "fees": [str(fee) for fee in fees]}
        if len(members) < 2:
            return _refunded(deposits, ALONE, figures)

        nobody = len(document.parties)  # a party of the game that comes first is no reference

        def gain(subset: int) -> float:
            return performance(
                nobody, sum(1 << i for at, i in enumerate(members) if subset >> at & 1)
            )

        division = _division(gain, len(members), document.seed)
        figures |= _figures(division)
        try:
            settlement = settle_in_wei(division, unit=document.unit, entry=document.entry)
        except RefusedInputError as refused:
            return _refunded(deposits, UNCOVERED, {**figures, "refused": str(refused)})
        amounts = [int(deposit) for deposit in deposits]
        for at, party in enumerate(members):
            amounts[party] += settlement.returned[at] - settlement.fee[at]
        figures |= {
            "owed": [str(amount) for amount in settlement.owed],
            "payout": [str(amount) for amount in settlement.payout],
        }
        everybody = sum(1 << i for i in members)
        sold = Sold(reference=nobody, parties=everybody, buyers=tuple(members))
        return Settled(
            amounts=tuple(Wei(amount) for amount in amounts),
            kept=settlement.kept,
            sold=(sold,) if settlement.pooled else (),
            reason=division.reason or "",
            figures=figures,
        )


def _division(gain: Any, parties: int, seed: int) -> Division:
    once = OnceGain(gain)
    if parties <= MAX_EXACT:
        return clear_exact(once, parties)
    evaluations = max(EVALUATIONS, least_evaluations(parties))
    found = estimate(once, parties, evaluations=evaluations, seed=seed)
    alone = np.array([once(1 << party) for party in range(parties)])
    pooled = np.full(parties, once((1 << parties) - 1))
    return divide(alone, pooled, found.psi[None, :], alone[None, :])


def _figures(division: Division) -> dict[str, Any]:
    return {
        "psi": division.psi[0].tolist(),
        "gain": division.gain.tolist(),
        "hurt": division.hurt,
        "pooled": float(division.pooled[0]),
    }


def _refunded(deposits: list[Wei], reason: str, figures: dict[str, Any]) -> Settled:
    return Settled(amounts=tuple(deposits), kept=Wei(0), sold=(), reason=reason, figures=figures)
