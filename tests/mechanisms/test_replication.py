from __future__ import annotations

import numpy as np
import pytest

from broker_node.mechanisms.base import RefusedInputError
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.replication import (
    audit_performance,
    audit_replication,
    coverage_market,
    monotone_market,
    plain_shapley,
    simulate_replication,
    with_copies,
)

FREE_TO_COPY = np.array([0, 1, 0.9, 1])
"""Party 0 does as well alone as the pool: what it owes, and its fee, are 0."""


@pytest.mark.parametrize("copies", [1, 2])
def test_copying_pays_nobody_in_a_coverage_market(copies: int) -> None:
    figures = simulate_replication(coverage_market, markets=100, parties=5, copies=copies, seed=1)
    assert figures.audits == 500
    assert figures.profitable == 0
    assert figures.most_earned < -0.05
    assert figures.most_lost > 0.3


def test_copying_pays_under_plain_shapley_values_even_there() -> None:
    figures = simulate_replication(
        coverage_market, markets=300, parties=5, seed=1, rule=plain_shapley
    )
    assert figures.profitable == 26  # of 1,500
    assert figures.most_earned == pytest.approx(0.143, abs=0.001)


def test_copying_pays_one_in_six_where_performance_only_never_falls() -> None:
    figures = simulate_replication(monotone_market, markets=300, parties=5, seed=1)
    assert figures.profitable == 251  # of 1,500
    assert figures.most_earned == pytest.approx(0.139, abs=0.001)


def test_a_copy_is_free_and_earns_where_its_owner_needs_nobody() -> None:
    audit = audit_performance(FREE_TO_COPY, 0)
    # v = 1, 0.9 and 1.1, so ψ_0 = 0.6 of 1.1, and a = 0.1; with the copy, 2/3 of it
    assert audit.honest == pytest.approx(0.6 / 11)
    assert audit.copied == pytest.approx(2 / 30)
    assert audit.earned == pytest.approx(2 / 30 - 0.6 / 11)
    assert audit_performance(FREE_TO_COPY, 1).earned < 0


def test_the_entry_that_deters_a_copy_does() -> None:
    entry = audit_performance(FREE_TO_COPY, 0).entry_that_deters
    assert entry == pytest.approx(0.0121, abs=1e-4)
    charged = audit_performance(FREE_TO_COPY, 0, non_refundable=entry)
    assert charged.earned == pytest.approx(0, abs=1e-12)
    less = audit_performance(FREE_TO_COPY, 0, non_refundable=entry / 2)
    assert less.earned > 0


def test_the_audit_asks_the_gain_function_once_a_subset() -> None:
    asked: list[int] = []

    def gain(subset: int) -> float:
        asked.append(subset)
        return float(FREE_TO_COPY[subset])

    audit = audit_replication(OnceGain(gain), 2, 0, copies=3)
    assert sorted(asked) == [1, 2, 3]
    assert audit.entry_that_deters == pytest.approx(audit.earned / 3)


def test_a_copy_performs_as_its_original_and_adds_nothing_to_it() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    game = monotone_market(3, generator)
    copied = with_copies(game, 1, 2)
    assert copied.shape == (32,)
    for subset in range(32):
        originals = subset & 0b111 | (0b010 if subset >> 3 else 0)
        assert copied[subset] == game[originals]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"party": 2}, "party"),
        ({"party": -1}, "party"),
        ({"party": 0, "copies": 0}, "copies"),
        ({"party": 0, "copies": 15}, "copies"),
        ({"party": 0, "non_refundable": -0.1}, "non_refundable"),
        ({"party": 0, "non_refundable": float("nan")}, "non_refundable"),
    ],
)
def test_a_bad_audit_is_refused_under_its_field(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(RefusedInputError) as refused:
        audit_performance(FREE_TO_COPY, **arguments)  # type: ignore[arg-type]
    assert refused.value.field == field
    with pytest.raises(RefusedInputError, match="parties: must be 1 … 12, got 13"):
        audit_replication(OnceGain(lambda _: 0.5), 13, 0)
