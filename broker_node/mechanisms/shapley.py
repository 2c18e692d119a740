"""Replication-robust Shapley division (Collaborative Machine Learning Markets §4).

The game is in `shapley_values`, the division of money and the erratum in `division`. Exact to
12 parties; above, `clear_sampled` estimates the Shapley values with intervals and says
`approximate`. With a `ceiling` the fees A_i = ceiling − G({i}) are stated too (the paper's
ceiling is 1); `non_refundable` is an entry on top of the fee that stays with the broker, so
that a copy of a party costs something even where its own fee would be refunded whole.

It is balanced, and pays nobody for joining twice where G is coverage-like; that is a figure
to audit (`replication`), not a theorem: for G = (1, 0.9, 1) a copy is free and earns. It is
not individually rational (a party with much to gain and little data pays), and makes no
claim of truthfulness about validation data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.division import (
    NOISE,
    POOLING_LOSES,
    PSI_NEGATIVE,
    PSI_ZERO,
    Division,
    divide,
)
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.reading import (
    LARGEST,
    Floats,
    amount,
    array,
    issues_of,
    items,
    require_at_least_zero,
    require_keys,
    shown,
)
from broker_node.mechanisms.shapley_sampling import estimate
from broker_node.mechanisms.shapley_values import (
    MAX_EXACT,
    replication_robust,
    robust_game,
    shapley_by_dividends,
)
from broker_node.mechanisms.stated import stated, stated_array

_REASONS: Final = (None, POOLING_LOSES, PSI_ZERO, PSI_NEGATIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    performance: Floats
    """(tasks, 2^M): one task, or one a party."""
    parties: int
    shared: bool
    ceiling: float | None
    non_refundable: float

    def of_singles(self) -> Floats:
        singles: Floats = self.performance[:, 1 << np.arange(self.parties)]
        return singles

    def alone_and_pooled(self) -> tuple[Floats, Floats]:
        singles = 1 << np.arange(self.parties)
        if self.shared:
            whole = np.full(self.parties, self.performance[0, -1])
            return self.performance[0, singles], whole
        own = np.arange(self.parties)
        return self.performance[own, singles], self.performance[:, -1].copy()


def _read(market: Market) -> _Pool:
    require_keys(market, ("parties", "performance_by_bitmask"), ("ceiling", "non_refundable"))
    parties = _parties(market["parties"])
    given = market["performance_by_bitmask"]
    rows = items(given, "performance_by_bitmask")
    shared = not (rows and isinstance(rows[0], list))
    if shared:
        performance = array(given, "performance_by_bitmask", (1 << parties,))
    else:
        performance = array(given, "performance_by_bitmask", (parties, 1 << parties))
    require_at_least_zero(performance, "performance_by_bitmask")
    performance = performance.reshape(-1, 1 << parties)
    asked = market.get("ceiling")
    ceiling = None if asked is None else amount(asked, "ceiling")
    if ceiling is not None and performance[..., 1:].max() > ceiling:
        raise RefusedInputError(
            "ceiling", f"{ceiling:g} is below a performance of {performance[..., 1:].max():g}"
        )
    return _Pool(
        performance=performance,
        parties=parties,
        shared=shared,
        ceiling=ceiling,
        non_refundable=amount(market.get("non_refundable", 0), "non_refundable"),
    )


def _parties(value: Json) -> int:
    if isinstance(value, list):
        names = [name for name in value if isinstance(name, str)]
        if len(names) != len(value) or len(set(names)) != len(names):
            raise RefusedInputError("parties", "must be a number, or names that differ")
        value = len(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RefusedInputError("parties", f"must be a whole number, got {shown(value)}")
    if not 1 <= value <= MAX_EXACT:
        raise RefusedInputError("parties", f"must be 1 … {MAX_EXACT}, got {shown(value)}")
    return value


class Shapley:
    """Exact division for up to 12 parties; nothing is random."""

    name = "shapley"
    claims = frozenset({Claim.BUDGET_BALANCE})

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(lambda asked: _divided(_read(asked)), market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return psi ([task][party] with several tasks), payout, net, gain, hurt, reason, fee.

        `no_trade` comes with a `reason`: pooling gains nothing in total, or the Shapley values
        sum to 0 or less. The figures are then what the rule would move, and nothing moves.
        """
        pool = _read(market)
        division = _divided(pool)
        psi = division.psi[0] if pool.shared else division.psi
        return Outcome(
            status=Status.TRADE if division.reason is None else Status.NO_TRADE,
            values={
                "psi": psi.tolist(),
                "payout": division.payout.tolist(),
                "net": (division.net - pool.non_refundable).tolist(),
                "gain": division.gain.tolist(),
                "hurt": list(division.hurt),
                "reason": division.reason,
                "fee": None
                if pool.ceiling is None
                else (pool.ceiling - division.alone + pool.non_refundable).tolist(),
            },
        )

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge against v itself and its dividends, and the balance of each task's payments."""
        pool = _read(market)
        parties, tasks = pool.parties, len(pool.performance)
        shape = (parties,) if pool.shared else (tasks, parties)
        psi = stated_array(outcome, "psi", shape).reshape(tasks, parties)
        payout = stated_array(outcome, "payout", (parties,))
        net = stated_array(outcome, "net", (parties,))
        gain = [
            float(task[-1] - task[1 << party])
            for party, task in enumerate(
                pool.performance if not pool.shared else [pool.performance[0]] * parties
            )
        ]
        scale = (1 + parties) * max(float(pool.performance[:, 1:].max()), 1e-300)
        wrong_psi = 0.0
        expected, reach = [0.0] * parties, [scale] * parties
        negative = zero = False
        for index, performance in enumerate(pool.performance):
            game = robust_game(performance)
            truth = shapley_by_dividends(game)
            wrong_psi = max(wrong_psi, float(np.abs(truth - psi[index]).max()))
            stake = math.fsum(gain) if pool.shared else gain[index]
            singles = [float(performance[1 << party]) for party in range(parties)]
            whole = float(performance[-1])
            total = math.fsum([(1 + parties) * whole, *(-single for single in singles)])
            size = (1 + parties) * whole + sum(singles) + float(np.abs(truth).sum())
            if abs(total) <= NOISE * size:
                zero = zero or stake != 0
                continue
            negative = negative or (total < 0 and stake != 0)
            for party in range(parties):
                share = stake * (float(truth[party]) / total)  # a product of both may underflow
                expected[party] += share
                # a sum of Shapley values that cancels carries its rounding into the share
                reach[party] += abs(share) * max(1.0, scale / abs(total))
        expected_reason: str | None = None if math.fsum(gain) > 0 else POOLING_LOSES
        if zero or negative:
            expected_reason = PSI_ZERO if zero else PSI_NEGATIVE
        unbalanced = 0.0 if zero else abs(float(payout.sum()) - math.fsum(gain))
        return Certificate(
            violations={
                "psi": wrong_psi / scale,
                "payout": max(
                    abs(float(b) - e) / r for b, e, r in zip(payout, expected, reach, strict=True)
                ),
                "balance": unbalanced / (scale + float(np.abs(payout).sum())),
                "net": max(
                    abs(float(n) - (float(b) - a - pool.non_refundable))
                    for n, b, a in zip(net, payout, gain, strict=True)
                )
                / (scale + float(np.abs(payout).max()) + pool.non_refundable),
                "gain": _furthest(stated(outcome, "gain"), "gain", gain) / scale,
                "hurt": 0.0
                if stated(outcome, "hurt") == [i for i, a in enumerate(gain) if a < 0]
                else 1.0,
                "reason": _reason(outcome, expected_reason),
                "fee": _fee(outcome, pool) / (scale + (pool.ceiling or 0.0) + pool.non_refundable),
            },
            tolerance=DEFAULT_TOLERANCE,
        )


def _divided(pool: _Pool) -> Division:
    """Return the division; raises `RefusedInputError` where a figure is over `LARGEST`."""
    alone, pooled = pool.alone_and_pooled()
    division = divide(alone, pooled, replication_robust(pool.performance), pool.of_singles())
    stated_fee = (pool.ceiling or 0.0) + pool.non_refundable
    for figures in (division.psi, division.payout, np.abs(division.net) + pool.non_refundable):
        if np.abs(figures).max() > LARGEST:
            raise RefusedInputError("performance_by_bitmask", "makes payouts too large to state")
    if stated_fee > LARGEST:
        raise RefusedInputError("non_refundable", "makes a fee too large to state")
    return division


def _furthest(value: Json | None, field: str, expected: list[float]) -> float:
    told = array(value, field, (len(expected),))
    return max(abs(float(s) - e) for s, e in zip(told, expected, strict=True))


def _reason(outcome: Outcome, expected: str | None) -> float:
    told = stated(outcome, "reason")
    status = Status.TRADE if expected is None else Status.NO_TRADE
    return 0.0 if told in _REASONS and told == expected and outcome.status is status else 1.0


def _fee(outcome: Outcome, pool: _Pool) -> float:
    told = stated(outcome, "fee")
    if pool.ceiling is None:
        return 0.0 if told is None else 1.0
    alone = [
        float(pool.performance[0 if pool.shared else party, 1 << party])
        for party in range(pool.parties)
    ]
    return _furthest(told, "fee", [pool.ceiling - own + pool.non_refundable for own in alone])


def clear_exact(gain: OnceGain, parties: int) -> Division:
    """Return the division of one shared task, every subset's performance asked for once."""
    if not 1 <= parties <= MAX_EXACT:
        raise RefusedInputError("parties", f"must be 1 … {MAX_EXACT}, got {parties}")
    performance = np.array([0.0, *(gain(subset) for subset in range(1, 1 << parties))])
    alone = performance[1 << np.arange(parties)]
    psi = replication_robust(performance)
    return divide(alone, np.full(parties, performance[-1]), psi[None, :], alone[None, :])


def clear_sampled(
    gain: OnceGain, parties: int, *, evaluations: int, seed: int, confidence: float = 0.95
) -> Outcome:
    """Return an `approximate` outcome for more parties, with an interval for every ψ and payout.

    The sum of the Shapley values is v(M), which is known exactly, and so payouts are balanced.
    """
    found = estimate(gain, parties, evaluations=evaluations, seed=seed, confidence=confidence)
    alone = np.array([gain(1 << party) for party in range(parties)])
    whole = gain((1 << parties) - 1)
    division = divide(alone, np.full(parties, whole), found.psi[None, :], alone[None, :])
    pays = float(division.gain.sum())
    total = float(found.psi.sum())
    low, high = (
        (bound * pays / total if total else bound * 0) for bound in (found.low, found.high)
    )
    return Outcome(
        status=Status.APPROXIMATE if division.reason is None else Status.NO_TRADE,
        values={
            "psi": found.psi.tolist(),
            "psi_low": found.low.tolist(),
            "psi_high": found.high.tolist(),
            "payout": division.payout.tolist(),
            "payout_low": np.minimum(low, high).tolist(),
            "payout_high": np.maximum(low, high).tolist(),
            "net": division.net.tolist(),
            "gain": division.gain.tolist(),
            "hurt": list(division.hurt),
            "reason": division.reason,
            "confidence": confidence,
            "evaluations": found.evaluations,
        },
    )
