"""Dividing what pooling gains by replication-robust Shapley values (collaborative markets §4).

Party i pays for its own gain, a_i = G(M) − G({i}), and the sum a = Σ a_i is paid out by ψ.
The paper prints b_i = a·ψ_i, which is balanced only where Σψ = 1; here

    b_i = a·ψ_i / Σψ,     net of party i: b_i − a_i,     Σ net = 0.

With several tasks, task i being that of party i, each task is a game of its own:
b_j = Σ_i a_i·ψ_j^(i) / Σψ^(i), balanced task by task. M equal tasks are one shared task.

Pooling may hurt: a negative a_i is owed *to* party i, by the same rule, and reported. Where
pooling loses in total, or Σψ <= 0, there is nothing to divide and `reason` says so.

In Wei (`settle_in_wei`) a party deposits the fee A_i = ceiling − G({i}) and an entry that it
never gets back; what it does not owe comes back with its payout. Performances are taken as
the decimals that they are written as. Rounding: fees up, so that a deposit covers what it is
for; what is owed for the gain down, in favour of who pays; payouts by largest remainder, ties
to the lower number. The sum is exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.reading import Floats, as_written
from broker_node.mechanisms.transfers import largest_remainder
from node.protocol.types import UINT256_MAX, Wei

POOLING_LOSES: Final = "pooling-gains-nothing"
PSI_ZERO: Final = "psi-sums-to-zero"
PSI_NEGATIVE: Final = "psi-sums-below-zero"
NOISE: Final = 1e-12
"""A sum of Shapley values this small beside these and the performances is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Who pays what for its gain, and who is paid what, in units of performance."""

    alone: Floats
    """G_i({i}): each party's performance on its own task with its own data, (M)."""
    pooled: Floats
    """G_i(M): each party's performance on its own task with everybody's data, (M)."""
    psi: Floats
    """Shapley values: (tasks, M), one row for a shared task."""
    payout: Floats
    """b, (M); 0 where `reason` is a sum of Shapley values of 0."""
    reason: str | None
    """Why nothing is divided, or None."""

    @property
    def gain(self) -> Floats:
        """What each party gains by pooling, a, (M)."""
        return self.pooled - self.alone

    @property
    def net(self) -> Floats:
        """What each party ends up with, b − a, (M); sums to 0 unless nothing can be divided."""
        return self.payout - self.gain

    @property
    def hurt(self) -> list[int]:
        """The parties for whom pooling lowers the performance on their task."""
        return [int(party) for party in np.flatnonzero(self.gain < 0)]


def divide(alone: Floats, pooled: Floats, psi: Floats, singles: Floats) -> Division:
    """Return the division for performances (M) and Shapley values (tasks, M).

    There is one task, shared by all, or one a party; `singles` (tasks, M) is each party's
    performance on each task with its own data, from which Σψ = v(M) is found without the
    rounding of ψ.
    """
    parties = len(alone)
    gain = pooled - alone
    wholes = pooled[: len(psi)]
    total = np.array(
        [
            math.fsum([*[whole] * (1 + parties), *-row])
            for whole, row in zip(wholes, singles, strict=True)
        ]
    )
    size = (1 + parties) * wholes + singles.sum(axis=1) + np.abs(psi).sum(axis=1)
    zero = np.abs(total) <= NOISE * size
    divisor = psi.sum(axis=1)
    whole_gain = math.fsum(gain)
    stake = np.array([whole_gain]) if len(psi) == 1 else gain
    reason = None
    if (zero & (stake != 0)).any():
        reason = PSI_ZERO
    elif ((total < 0) & ~zero & (stake != 0)).any():
        reason = PSI_NEGATIVE
    elif whole_gain <= 0:
        reason = POOLING_LOSES
    shares = np.where(zero[:, None], 0.0, psi / np.where(zero, 1.0, divisor)[:, None])
    return Division(alone=alone, pooled=pooled, psi=psi, payout=stake @ shares, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Fees in; refunds and payouts out: Σ fee = Σ returned + kept, exactly."""

    fee: tuple[Wei, ...]
    """What each party deposits, its entry with it."""
    owed: tuple[int, ...]
    """What each party owes for its own gain; below 0 where pooling hurt it."""
    payout: tuple[int, ...]
    """What each party is due for its data; Σ payout = Σ owed."""
    returned: tuple[Wei, ...]
    """What each party gets back: fee − entry − owed + payout, at least 0."""
    kept: Wei
    """The entries, which stay with the broker."""
    pooled: bool
    """Whether the parties get the pooled model; if not, all but the entry is refunded."""


def settle_in_wei(
    division: Division, *, unit: Wei, ceiling: float = 1.0, entry: Wei = Wei(0)
) -> Settlement:
    """Return the division in whole Wei; `unit` is what 1.0 of performance is worth.

    Raises `RefusedInputError` for a performance above the ceiling (its party would owe more
    than its fee), for amounts under 0 or over 256 bits, and for a party with a Shapley value
    so negative that its fee does not cover what it would owe.
    """
    for name, amount in (("unit", unit), ("entry", entry)):
        if not 0 <= amount <= UINT256_MAX:
            raise RefusedInputError(name, f"must be 0 … 2**256 - 1, got {amount}")
    if not math.isfinite(ceiling):
        raise RefusedInputError("ceiling", f"must be finite, got {ceiling}")
    parties = range(len(division.alone))
    alone = [as_written(value) for value in division.alone]
    pooled = [as_written(value) for value in division.pooled]
    for party in parties:
        if max(alone[party], pooled[party]) > as_written(ceiling):
            raise RefusedInputError(
                "ceiling", f"{ceiling:g} is below a performance of party {party}"
            )
    fee = [math.ceil((as_written(ceiling) - alone[party]) * unit) + entry for party in parties]
    if max(fee) > UINT256_MAX:
        raise RefusedInputError("unit", f"{unit} makes a fee of over 256 bits")
    owed = [0 for _ in parties]
    payout = [0 for _ in parties]
    if division.reason is None:
        owed = [math.floor((pooled[party] - alone[party]) * unit) for party in parties]
        payout = largest_remainder(_exact_payouts(division.psi, owed), sum(owed))
    returned = [fee[party] - entry - owed[party] + payout[party] for party in parties]
    for party in parties:
        if returned[party] < 0:
            raise RefusedInputError(
                f"psi[{party}]",
                f"is negative, and the fee lacks {-returned[party]} wei to cover what it costs",
            )
    return Settlement(
        fee=tuple(Wei(amount) for amount in fee),
        owed=tuple(owed),
        payout=tuple(payout),
        returned=tuple(Wei(amount) for amount in returned),
        kept=Wei(entry * len(parties)),
        pooled=division.reason is None,
    )


def _exact_payouts(psi: Floats, owed: Sequence[int]) -> list[Fraction]:
    stakes = [sum(owed)] if len(psi) == 1 else owed
    payouts = [Fraction(0)] * len(owed)
    for stake, row in zip(stakes, psi, strict=True):
        values = [Fraction(float(value)) for value in row]
        if stake and not sum(values):
            raise RefusedInputError("psi", "sums to 0")
        if stake:
            payouts = [b + stake * v / sum(values) for b, v in zip(payouts, values, strict=True)]
    return payouts
