from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.gain_cache import OnceGain
from broker_node.mechanisms.shapley import Shapley, clear_exact
from broker_node.mechanisms.shapley_values import (
    replication_robust,
    robust_game,
    shapley_by_dividends,
    shapley_values,
)

Floats = npt.NDArray[np.float64]
SHAPLEY = Shapley()
performance = st.floats(0, 1, allow_subnormal=False)


def games(
    least: int = 1, most: int = 6, *, value: st.SearchStrategy[float] = performance
) -> st.SearchStrategy[Floats]:
    return st.integers(least, most).flatmap(
        lambda parties: st.lists(value, min_size=1 << parties, max_size=1 << parties).map(np.array)
    )


def parties_of(game: Floats) -> int:
    return len(game).bit_length() - 1


def by_permutations(game: Floats) -> Floats:
    """Return the mean marginal contribution over every order in which parties can join."""
    parties = parties_of(game)
    orders = list(permutations(range(parties)))
    total = np.zeros(parties)
    for order in orders:
        subset = 0
        for party in order:
            total[party] += game[subset | 1 << party] - game[subset]
            subset |= 1 << party
    return total / len(orders)


def market_of(given_performance: Floats, **more: Json) -> dict[str, Json]:
    parties = parties_of(given_performance.reshape(-1, given_performance.shape[-1])[0])
    return {
        "parties": parties,
        "performance_by_bitmask": given_performance.tolist(),
        **more,
    }


def clear(market: dict[str, Json]) -> Outcome:
    return SHAPLEY.clear(market, tolerance=1e-9, seed=0)


def figures(outcome: Outcome, key: str) -> Floats:
    return np.array(outcome.values[key], dtype=np.float64)


@given(game=games(most=5))
def test_shapley_values_are_the_mean_over_every_order_of_joining(game: Floats) -> None:
    brute = by_permutations(game)
    np.testing.assert_allclose(shapley_values(game), brute, atol=1e-12)
    np.testing.assert_allclose(shapley_by_dividends(game), brute, atol=1e-12)


def test_six_parties_agree_with_all_720_orders() -> None:
    generator = np.random.Generator(np.random.Philox(6))
    game = generator.normal(size=64)
    np.testing.assert_allclose(shapley_values(game), by_permutations(game), atol=1e-12)


@given(game=games(value=st.floats(-10, 10)))
def test_shapley_values_share_out_what_the_whole_is_worth(game: Floats) -> None:
    assert shapley_values(game).sum() == pytest.approx(game[-1] - game[0], abs=1e-10)


@given(first=games(3, 3), second=games(3, 3), factor=st.floats(-5, 5))
def test_the_values_of_a_sum_of_games_are_the_sums_of_the_values(
    first: Floats, second: Floats, factor: float
) -> None:
    together = shapley_values(first + factor * second)
    apart = shapley_values(first) + factor * shapley_values(second)
    np.testing.assert_allclose(together, apart, atol=1e-12)


@given(game=games(1, 5), null=st.integers(0, 4))
def test_a_party_that_adds_nothing_anywhere_is_worth_nothing(game: Floats, null: int) -> None:
    parties = parties_of(game)
    assume(null < parties)
    without = game[np.arange(len(game)) & ~(1 << null)]
    assert shapley_values(without)[null] == pytest.approx(0, abs=1e-12)


@given(game=games(2, 5), data=st.data())
def test_parties_that_add_the_same_everywhere_get_the_same(
    game: Floats, data: st.DataObject
) -> None:
    parties = parties_of(game)
    i, j = data.draw(st.permutations(range(parties)))[:2]
    subsets = np.arange(len(game))
    ones = (subsets >> i & 1) + (subsets >> j & 1)
    same = game[np.where(ones == 1, (subsets & ~(1 << j)) | 1 << i, subsets)]
    values = shapley_values(same)
    assert values[i] == pytest.approx(values[j], abs=1e-12)
    psi = replication_robust(same)
    assert psi[i] == pytest.approx(psi[j], abs=1e-12)


@given(game=games(most=5))
def test_psi_is_the_shapley_value_of_the_replication_robust_game(game: Floats) -> None:
    np.testing.assert_allclose(
        replication_robust(game), by_permutations(robust_game(game)), atol=1e-12
    )


def test_what_no_data_achieves_does_not_enter_the_game() -> None:
    with_chance = np.array([0.5, 0.6, 0.7, 0.9])
    without = np.array([0.0, 0.6, 0.7, 0.9])
    np.testing.assert_array_equal(replication_robust(with_chance), replication_robust(without))


def test_two_parties_are_divided_as_by_hand() -> None:
    # v({0}) = .5, v({1}) = .7, v(M) = .9 + .4 + .2 = 1.5; a = .4 + .2
    outcome = clear(market_of(np.array([0, 0.5, 0.7, 0.9]), ceiling=1))
    psi = (0.5 + 0.15, 0.7 + 0.15)
    assert figures(outcome, "psi") == pytest.approx(psi)
    assert figures(outcome, "payout") == pytest.approx([0.6 * p / 1.5 for p in psi])
    assert figures(outcome, "net") == pytest.approx([0.26 - 0.4, 0.34 - 0.2])
    assert figures(outcome, "fee") == pytest.approx([0.5, 0.3])
    assert outcome.status is Status.TRADE


@given(game=games(most=5))
def test_payouts_are_balanced_where_the_printed_rule_is_not(game: Floats) -> None:
    market = market_of(game)
    outcome = clear(market)
    assume(outcome.values["reason"] is None)
    gain, psi = figures(outcome, "gain"), figures(outcome, "psi")
    sums = np.abs(figures(outcome, "payout")).sum()
    assert figures(outcome, "payout").sum() == pytest.approx(gain.sum(), abs=1e-9 * (1 + sums))
    printed = gain.sum() * psi
    assume(abs(psi.sum() - 1) > 1e-3 and gain.sum() > 1e-3)
    assert printed.sum() != pytest.approx(gain.sum(), rel=1e-4)
    wrong = Outcome(
        status=outcome.status,
        values={**outcome.values, "payout": printed.tolist(), "net": (printed - gain).tolist()},
    )
    assert not SHAPLEY.verify(market, wrong).valid


@given(game=games(most=5), entry=st.sampled_from([0.0, 0.1]), capped=st.booleans())
def test_every_division_is_certified(game: Floats, entry: float, capped: bool) -> None:
    market = market_of(game, non_refundable=entry, ceiling=1 if capped else None)
    assert SHAPLEY.verify(market, clear(market)).valid


@given(tasks=st.lists(games(3, 3), min_size=3, max_size=3))
def test_every_division_of_several_tasks_is_certified(tasks: list[Floats]) -> None:
    market = market_of(np.array(tasks))
    assert SHAPLEY.verify(market, clear(market)).valid


@pytest.mark.parametrize("key", ["psi", "payout", "net", "gain", "fee"])
@pytest.mark.parametrize("party", [0, 2])
def test_a_division_with_one_figure_changed_is_not_certified(key: str, party: int) -> None:
    game = np.array([0, 0.2, 0.3, 0.5, 0.4, 0.55, 0.6, 0.8])
    market = market_of(game, ceiling=1)
    outcome = clear(market)
    changed = figures(outcome, key)
    changed[party] += 1e-6
    forged = Outcome(status=outcome.status, values={**outcome.values, key: changed.tolist()})
    assert not SHAPLEY.verify(market, forged).valid


@pytest.mark.parametrize(
    "changes",
    [{"hurt": [1]}, {"reason": "psi-sums-to-zero"}, {"fee": [0, 0, 0]}, {"payout": [9, -9, 0]}],
)
def test_a_division_that_says_something_else_is_not_certified(changes: dict[str, Json]) -> None:
    market = market_of(np.array([0, 0.2, 0.3, 0.5, 0.4, 0.55, 0.6, 0.8]))
    outcome = clear(market)
    forged = Outcome(status=outcome.status, values={**outcome.values, **changes})
    assert not SHAPLEY.verify(market, forged).valid


def test_money_moved_between_parties_is_not_certified() -> None:
    market = market_of(np.array([0, 0.2, 0.3, 0.5]))
    outcome = clear(market)
    moved = np.array([0.01, -0.01])
    values = {key: (figures(outcome, key) + moved).tolist() for key in ("payout", "net")}
    forged = Outcome(status=outcome.status, values={**outcome.values, **values})
    assert not SHAPLEY.verify(market, forged).valid


def test_who_is_hurt_by_pooling_is_named_and_paid() -> None:
    # party 1 alone does better than the pool
    outcome = clear(market_of(np.array([0, 0.2, 0.9, 0.8])))
    assert outcome.values["hurt"] == [1]
    assert outcome.status is Status.TRADE
    assert figures(outcome, "net")[1] > 0
    assert figures(outcome, "net").sum() == pytest.approx(0)


@pytest.mark.parametrize(
    ("game", "reason"),
    [
        ([0, 0.5, 0.5, 0.5], "pooling-gains-nothing"),
        ([0, 0, 0, 0], "pooling-gains-nothing"),
        ([0, 0.5, 0.7, 0.55], "pooling-gains-nothing"),
        ([0, 0.9, 0.9, 0.5], "psi-sums-below-zero"),
        ([0, 0.75, 0.75, 0.5], "psi-sums-to-zero"),
    ],
)
def test_a_pool_without_anything_to_divide_says_why(game: list[float], reason: str) -> None:
    market = market_of(np.array(game))
    outcome = clear(market)
    assert (outcome.status, outcome.values["reason"]) == (Status.NO_TRADE, reason)
    assert SHAPLEY.verify(market, outcome).valid
    forged = Outcome(status=Status.TRADE, values={**outcome.values, "reason": None})
    assert not SHAPLEY.verify(market, forged).valid


def test_equal_tasks_are_one_shared_task() -> None:
    game = np.array([0, 0.2, 0.3, 0.5, 0.4, 0.55, 0.6, 0.8])
    shared, own = clear(market_of(game)), clear(market_of(np.array([game] * 3)))
    np.testing.assert_allclose(figures(own, "payout"), figures(shared, "payout"), atol=1e-12)
    np.testing.assert_allclose(figures(own, "net"), figures(shared, "net"), atol=1e-12)


def test_each_task_is_paid_for_by_the_party_whose_it_is() -> None:
    # only party 0's task gains, and only by the data of party 1
    of_0, of_1 = [0, 0.4, 0.4, 0.8], [0, 0.5, 0.5, 0.5]
    outcome = clear(market_of(np.array([of_0, of_1])))
    assert figures(outcome, "gain") == pytest.approx([0.4, 0])
    psi = figures(outcome, "psi")
    assert psi.shape == (2, 2)
    assert figures(outcome, "payout") == pytest.approx(0.4 * psi[0] / psi[0].sum())
    assert figures(outcome, "net").sum() == pytest.approx(0)


def test_the_entry_is_on_top_of_fee_and_net() -> None:
    game = np.array([0, 0.5, 0.7, 0.9])
    plain, charged = clear(market_of(game)), clear(market_of(game, non_refundable=0.25, ceiling=1))
    assert figures(charged, "net") == pytest.approx(figures(plain, "net") - 0.25)
    assert figures(charged, "fee") == pytest.approx([0.75, 0.55])
    assert plain.values["fee"] is None


def test_twelve_parties_are_cleared_and_certified_and_thirteen_refused() -> None:
    generator = np.random.Generator(np.random.Philox(12))
    market = market_of(np.sort(generator.random(4096)))
    assert SHAPLEY.verify(market, clear(market)).valid
    issues = SHAPLEY.validate({**market, "parties": 13})
    assert (issues[0].field, issues[0].reason) == ("parties", "must be 1 … 12, got 13")


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"parties": 0}, "parties", "1 … 12, got 0"),
        ({"parties": 10**5000}, "parties", "about 2**16610"),
        ({"parties": 2.0}, "parties", "whole number, got 2.0"),
        ({"parties": True}, "parties", "whole number, got True"),
        ({"parties": ["a", "a"]}, "parties", "names that differ"),
        ({"parties": 3}, "performance_by_bitmask", "8 items, got 4"),
        ({"performance_by_bitmask": []}, "performance_by_bitmask", "4 items, got 0"),
        ({"performance_by_bitmask": None}, "performance_by_bitmask", "list"),
        ({"performance_by_bitmask": [0, 1, 1, -0.5]}, "performance_by_bitmask[3]", "got -0.5"),
        ({"performance_by_bitmask": [0, 1, float("nan"), 1]}, "performance_by_bitmask[2]", "nan"),
        ({"performance_by_bitmask": [0, 1, 1e200, 1]}, "performance_by_bitmask[2]", "1e+200"),
        ({"performance_by_bitmask": [[0, 1, 1, 1]]}, "performance_by_bitmask", "2 items, got 1"),
        (
            {"performance_by_bitmask": [[0, 1, 1, 1], [0, 1]]},
            "performance_by_bitmask[1]",
            "4 items, got 2",
        ),
        ({"ceiling": 0.5}, "ceiling", "0.5 is below a performance of 0.9"),
        ({"ceiling": float("inf")}, "ceiling", "finite"),
        ({"non_refundable": -1}, "non_refundable", "at least 0, got -1"),
        ({"partys": 2}, "partys", "not a key"),
    ],
)
def test_a_bad_pool_is_refused_under_its_field(
    changes: dict[str, Json], field: str, reason: str
) -> None:
    market: dict[str, Json] = {**market_of(np.array([0, 0.5, 0.7, 0.9])), **changes}
    issues = SHAPLEY.validate(market)
    assert [issue.field for issue in issues] == [field]
    assert reason in issues[0].reason
    with pytest.raises(RefusedInputError):
        clear(market)


@pytest.mark.parametrize("key", ["psi", "payout", "net", "gain"])
def test_an_outcome_without_a_figure_is_refused(key: str) -> None:
    market = market_of(np.array([0, 0.5, 0.7, 0.9]))
    outcome = clear(market)
    missing = {name: value for name, value in outcome.values.items() if name != key}
    with pytest.raises(RefusedInputError, match=key):
        SHAPLEY.verify(market, Outcome(status=outcome.status, values=missing))


def test_a_gain_function_is_asked_for_every_subset_once() -> None:
    asked: list[int] = []

    def gain(subset: int) -> float:
        asked.append(subset)
        return 0.2 * subset.bit_count()

    once = OnceGain(gain)
    division = clear_exact(once, 4)
    clear_exact(once, 4)
    assert sorted(asked) == list(range(1, 16))
    # alike in all, they share alike what they owe alike
    assert division.net == pytest.approx(np.zeros(4))
    with pytest.raises(RefusedInputError, match=r"parties: must be 1 … 12, got 13"):
        clear_exact(once, 13)


def test_a_division_of_next_to_nothing_is_certified() -> None:
    # the square of such a performance is no number any more
    market = market_of(np.array([0, 0, 0, 0, 0, 0, 0, 1.4e-219]))
    assert SHAPLEY.verify(market, clear(market)).valid
