"""What joining twice earns: replication measured, not assumed away.

A party that enters copies of its data pays, for each, the gain of the copy on top of its own
(and the entry, if there is one), and is paid the copies' shares. Collaborative markets §4
says that its game makes this pay nothing. It does not where a party already performs as well
as the pool: its copy then owes nothing, and earns a share.

Copies are taken not to change a model (the paper's assumption (i)): the performance of a
subset is that of the originals in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.division import divide
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.reading import Floats
from broker_node.mechanisms.shapley_values import (
    MAX_EXACT,
    parties_of,
    replication_robust,
    shapley_values,
)

ShapleyRule: TypeAlias = "Callable[[Floats], Floats]"
MAX_WITH_COPIES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationAudit:
    """What a party nets by joining once, and by joining with copies of itself."""

    party: int
    copies: int
    honest: float
    copied: float

    @property
    def earned(self) -> float:
        """What copying earns; above 0 the market is not robust here."""
        return self.copied - self.honest

    @property
    def entry_that_deters(self) -> float:
        """The least non-refundable entry a head with which copying earns nothing."""
        return max(0.0, self.earned / self.copies)


def audit_replication(
    gain: OnceGain, parties: int, party: int, *, copies: int = 1, non_refundable: float = 0.0
) -> ReplicationAudit:
    """Return what `copies` copies of `party` earn it, in units of performance.

    Asks for every subset of the originals once: up to 12 parties, 16 with the copies. Raises
    `RefusedInputError` for other numbers.
    """
    if not 1 <= parties <= MAX_EXACT:
        raise RefusedInputError("parties", f"must be 1 … {MAX_EXACT}, got {parties}")
    performance = np.array([0.0, *(gain(subset) for subset in range(1, 1 << parties))])
    return audit_performance(performance, party, copies=copies, non_refundable=non_refundable)


def audit_performance(
    performance: Floats,
    party: int,
    *,
    copies: int = 1,
    non_refundable: float = 0.0,
    rule: ShapleyRule = replication_robust,
) -> ReplicationAudit:
    """Return the audit from the performances of all subsets (2^M), under a rule for ψ."""
    parties = parties_of(performance)
    if not 0 <= party < parties:
        raise RefusedInputError("party", f"must be 0 … {parties - 1}, got {party}")
    if copies < 1 or parties + copies > MAX_WITH_COPIES:
        raise RefusedInputError("copies", f"must be 1 … {MAX_WITH_COPIES - parties}, got {copies}")
    if not non_refundable >= 0:
        raise RefusedInputError("non_refundable", f"must be at least 0, got {non_refundable}")
    honest = _net(performance, rule)[party]
    copied = _net(with_copies(performance, party, copies), rule)
    heads = [party, *range(parties, parties + copies)]
    return ReplicationAudit(
        party=party,
        copies=copies,
        honest=float(honest) - non_refundable,
        copied=float(copied[heads].sum()) - non_refundable * len(heads),
    )


def with_copies(performance: Floats, party: int, copies: int) -> Floats:
    """Return the performances (2^(M+copies)) of the market in which `party` has copies."""
    parties = parties_of(performance)
    subsets = np.arange(1 << (parties + copies))
    copied = (subsets >> parties) != 0
    originals = (subsets & ((1 << parties) - 1)) | (copied.astype(np.int64) << party)
    return np.asarray(performance[originals], dtype=np.float64)


def _net(performance: Floats, rule: ShapleyRule) -> Floats:
    parties = parties_of(performance)
    alone = performance[1 << np.arange(parties)]
    psi = rule(performance)
    division = divide(alone, np.full(parties, performance[-1]), psi[None, :], alone[None, :])
    return division.net if division.reason is None else np.zeros(parties)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationFigures:
    """One audit of every party of many random markets."""

    audits: int
    profitable: int
    """Audits in which a copy earns more than rounding."""
    most_earned: float
    most_lost: float


def coverage_market(parties: int, generator: np.random.Generator, *, examples: int = 60) -> Floats:
    """Return performances (2^M): the weight of the examples that some member's data covers.

    Monotone and submodular, and a copy covers nothing new; weights sum to 1.
    """
    covers = generator.random((parties, examples)) < generator.uniform(0.05, 0.4, (parties, 1))
    weight = generator.random(examples)
    uncovered = np.ones((1, examples))
    for party in range(parties):  # each doubles the subsets: without it, then with it
        uncovered = np.concatenate([uncovered, uncovered * ~covers[party]])
    return np.asarray((1 - uncovered) @ (weight / weight.sum()), dtype=np.float64)


def monotone_market(parties: int, generator: np.random.Generator) -> Floats:
    """Return performances (2^M) that never fall as data is added, and are otherwise arbitrary."""
    performance = generator.random(1 << parties)
    performance[0] = 0
    for party in range(parties):
        halves = performance.reshape(-1, 2, 1 << party)
        halves[:, 1] = np.maximum(halves[:, 0], halves[:, 1])
    return performance


def simulate_replication(
    market: Callable[[int, np.random.Generator], Floats],
    *,
    markets: int,
    parties: int,
    copies: int = 1,
    seed: int,
    rule: ShapleyRule = replication_robust,
) -> ReplicationFigures:
    """Return how often, and how well, copying pays over random markets."""
    generator = np.random.Generator(np.random.Philox(seed))
    earned = []
    for _ in range(markets):
        performance = market(parties, generator)
        earned += [
            audit_performance(performance, party, copies=copies, rule=rule).earned
            for party in range(parties)
        ]
    return ReplicationFigures(
        audits=len(earned),
        profitable=sum(gained > 1e-9 for gained in earned),
        most_earned=max(earned),
        most_lost=-min(earned),
    )


def plain_shapley(performance: Floats) -> Floats:
    """Return the Shapley values of G itself: the rule that replication is known to game."""
    grounded = performance.copy()
    grounded[..., 0] = 0
    return shapley_values(grounded)
