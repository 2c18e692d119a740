"""What one arm is better by than another, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.devnet.report.differences import better_by, differences, interval
from node.devnet.report.document import Arm

figures = st.floats(0, 100, allow_nan=False)


def arm(**by_seed: Mapping[str, float | None]) -> Arm:
    """Return an arm with these last figures, each after epoch 9; seeds are `s0`, `s1` …"""
    return Arm(
        accuracy=dict.fromkeys(name for agents in by_seed.values() for name in agents),
        by_seed=by_seed,
        curves={
            seed: {name: [(9, figure)] for name, figure in agents.items()}
            for seed, agents in by_seed.items()
        },
    )


def test_the_interval_of_three_seeds_is_the_one_of_the_tables() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t at 0.975 with two degrees of freedom
    assert mean == 2.0
    assert low == pytest.approx(2.0 - half, abs=1e-8)
    assert high == pytest.approx(2.0 + half, abs=1e-8)


def test_one_seed_has_a_mean_and_no_interval() -> None:
    assert interval([7.5]) == (7.5, None, None)


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert interval([4.0, 4.0, 4.0, 4.0]) == (4.0, 4.0, 4.0)


def test_no_seed_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-50, 50))
def test_an_interval_moves_with_what_it_is_of(values: list[float], shift: float) -> None:
    mean, low, high = interval(values)
    moved = interval([value + shift for value in values])
    assert low is not None
    assert high is not None
    assert low <= mean <= high
    assert moved == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-6)


def test_seeds_are_paired_before_the_mean_is_taken() -> None:
    alone = arm(s0={"A": 70.0}, s1={"A": 50.0}, s2={"A": 30.0})
    market = arm(s0={"A": 75.0}, s1={"A": 55.0}, s2={"A": 35.0})
    found = {
        row["agent"]: row for row in differences({"out-of-market": alone, "m": market}, "accuracy")
    }
    # the seeds are 20 points apart, the arms 5 in each: unpaired, this would drown
    assert found["A"]["mean"] == 5.0
    assert (found["A"]["low"], found["A"]["high"], found["A"]["n"]) == (5.0, 5.0, 3)
    assert found["A"]["unit"] == "points"


def test_all_is_the_mean_over_agents_in_each_seed() -> None:
    alone = arm(s0={"A": 10.0, "B": 10.0}, s1={"A": 10.0, "B": 10.0})
    market = arm(s0={"A": 12.0, "B": 18.0}, s1={"A": 18.0, "B": 12.0})
    rows = differences({"out-of-market": alone, "aligned": market}, "accuracy")
    assert [row["agent"] for row in rows] == ["all", "A", "B"]
    # each seed's mean is 5, so all agents together are sure, and neither is by itself
    assert (rows[0]["mean"], rows[0]["low"], rows[0]["high"]) == (5.0, 5.0, 5.0)
    assert rows[1]["low"] is not None
    assert rows[1]["low"] < 0


def test_every_later_arm_is_compared_with_every_earlier_one() -> None:
    same = arm(s0={"A": 1.0})
    arms = dict.fromkeys(("aligned", "fedavg", "out-of-market", "unaligned"), same)
    pairs = [(r["of"], r["against"]) for r in differences(arms, "accuracy") if r["agent"] == "all"]
    assert pairs == [
        ("fedavg", "out-of-market"),
        ("unaligned", "out-of-market"),
        ("aligned", "out-of-market"),
        ("unaligned", "fedavg"),
        ("aligned", "fedavg"),
        ("aligned", "unaligned"),
    ]


def test_a_loss_is_compared_as_the_part_of_it_that_is_spared() -> None:
    assert better_by(6.0, 10.0, "loss") == pytest.approx(40.0)
    assert better_by(12.0, 10.0, "loss") == pytest.approx(-20.0)
    rows = differences(
        {"out-of-market": arm(s0={"A": 10.0}), "unaligned": arm(s0={"A": 6.0})}, "loss"
    )
    assert {row["unit"] for row in rows} == {"percent"}
    assert rows[0]["mean"] == pytest.approx(40.0)


def test_a_loss_of_nothing_or_of_no_number_is_left_out() -> None:
    alone = arm(s0={"A": 0.0}, s1={"A": None}, s2={"A": 10.0})
    market = arm(s0={"A": 1.0}, s1={"A": 1.0}, s2={"A": 5.0})
    rows = differences({"out-of-market": alone, "unaligned": market}, "loss")
    assert [(row["agent"], row["mean"], row["n"]) for row in rows] == [
        ("all", 50.0, 1),
        ("A", 50.0, 1),
    ]


def test_a_run_that_was_cut_short_is_no_equal_of_one_that_was_not() -> None:
    alone, market = arm(s0={"A": 70.0}, s1={"A": 70.0}), arm(s0={"A": 90.0}, s1={"A": 20.0})
    market["curves"] = {**market["curves"], "s1": {"A": [(3, 20.0)]}}
    rows = differences({"out-of-market": alone, "aligned": market}, "accuracy")
    assert [(row["mean"], row["n"]) for row in rows] == [(20.0, 1), (20.0, 1)]


def test_a_seed_without_one_of_the_agents_does_not_count_for_all() -> None:
    alone = arm(s0={"A": 10.0, "B": 10.0}, s1={"A": 10.0, "B": 10.0})
    market = arm(s0={"A": 11.0, "B": 13.0}, s1={"A": 50.0})
    rows = {r["agent"]: r for r in differences({"out-of-market": alone, "x": market}, "accuracy")}
    assert (rows["all"]["mean"], rows["all"]["n"]) == (2.0, 1)
    assert rows["A"]["n"] == 2


def test_arms_without_a_common_seed_are_not_compared() -> None:
    arms = {"out-of-market": arm(s0={"A": 1.0}), "aligned": arm(s1={"A": 2.0})}
    assert differences(arms, "accuracy") == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(figures, figures), min_size=1))
def test_turned_round_a_difference_of_accuracies_changes_its_sign(
    seeds: dict[str, tuple[float, float]],
) -> None:
    one = arm(**{seed: {"A": pair[0]} for seed, pair in seeds.items()})
    other = arm(**{seed: {"A": pair[1]} for seed, pair in seeds.items()})
    forth = differences({"fedavg": one, "aligned": other}, "accuracy")[0]
    back = differences({"fedavg": other, "aligned": one}, "accuracy")[0]
    assert forth["mean"] == pytest.approx(-back["mean"], abs=1e-9)
