from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from node.data.datasets import load
from node.data.files import DataError
from node.data.linear import load_linear
from node.data.rows import Dataset, Rows
from node.data.split import (
    Dirichlet,
    Division,
    Endowment,
    ScarceClasses,
    endowment,
    scarce_classes,
    split_test,
)
from tests.data.small import NOWHERE, numbers, toy


def test_brokers_rows_and_reported_rows_share_none() -> None:
    halves = split_test(toy(101))
    broker, report = numbers(halves.validation), numbers(halves.report)
    assert len(broker) == 50
    assert broker | report == set(range(101))
    assert not broker & report
    assert numbers(split_test(toy(101)).validation) == broker


def test_in_the_papers_protocol_both_are_all_rows() -> None:
    dataset = toy(101)
    held = split_test(dataset, protocol="paper")
    assert held.validation is dataset.test
    assert held.report is dataset.test
    with pytest.raises(DataError, match="no protocol 'fair'; there are \\['clean', 'paper'\\]"):
        split_test(dataset, protocol="fair")  # type: ignore[arg-type]


def test_two_agents_lack_the_two_halves_of_the_classes() -> None:
    assert scarce_classes(0, 2, 10) == (0, 1, 2, 3, 4)
    assert scarce_classes(1, 2, 10) == (5, 6, 7, 8, 9)


@given(classes=st.integers(2, 12), data=st.data())
def test_every_agent_lacks_a_run_of_its_own(classes: int, data: st.DataObject) -> None:
    agents = data.draw(st.integers(1, classes))
    scarce = [scarce_classes(agent, agents, classes) for agent in range(agents)]
    assert all(0 < len(lacking) < classes for lacking in scarce)
    if agents >= 2:
        assert [label for lacking in scarce for label in lacking] == list(range(classes))
    else:
        assert scarce == [tuple(range(classes // 2))]


def test_more_agents_than_classes_are_sent_to_the_other_endowment() -> None:
    with pytest.raises(DataError, match=r"11 agents .* among 10: take the endowment `dirichlet`"):
        endowment(toy(1000), 0, 11, seed=3)
    assert endowment(toy(1000), 0, 11, seed=3, rule=Dirichlet())


def test_an_agent_holds_a_tenth_of_its_scarce_classes_and_all_of_the_others() -> None:
    counts = np.bincount(endowment(toy(1000), 0, 2, seed=3).labels_R)
    assert counts.tolist() == [10] * 5 + [100] * 5
    scarce = ScarceClasses(percent=25)
    counts = np.bincount(endowment(toy(1000), 1, 2, seed=3, rule=scarce).labels_R)
    assert counts.tolist() == [100] * 5 + [25] * 5


def test_the_endowment_depends_on_the_seed_alone() -> None:
    for rule in (ScarceClasses(), Dirichlet()):
        first, again, other = (
            numbers(endowment(toy(1000), 0, 2, seed=s, rule=rule)) for s in (1, 1, 2)
        )
        assert first == again
        assert first != other


def shares(dataset: Dataset, agents: int, seed: int, rule: Dirichlet, least: int = 1) -> list[Rows]:
    return [
        endowment(dataset, agent, agents, seed=seed, rule=rule, least_rows=least)
        for agent in range(agents)
    ]


@given(
    agents=st.integers(1, 20),
    classes=st.integers(1, 12),
    rows=st.integers(20, 400),
    concentration=st.floats(0.05, 100),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=60)
def test_every_row_is_one_agents_and_every_agent_has_enough(
    agents: int, classes: int, rows: int, concentration: float, seed: int, data: st.DataObject
) -> None:
    dataset = toy(rows, classes)
    least = data.draw(st.integers(1, max(1, rows // agents)))
    try:
        held = shares(dataset, agents, seed, Dirichlet(concentration=concentration), least)
    except DataError:
        assume(False)
    assert all(len(rows_of_one) >= least for rows_of_one in held)
    together = [number for rows_of_one in held for number in numbers(rows_of_one)]
    assert sorted(together) == list(range(rows))


def test_sixteen_agents_share_digits_by_the_batch() -> None:
    digits = load("digits", NOWHERE)
    for seed in range(10):
        held = shares(digits, 16, seed, Dirichlet(concentration=0.5), 16)
        assert sum(map(len, held)) == 1197
        assert min(map(len, held)) >= 16


def test_the_smaller_the_concentration_the_more_a_class_is_one_agents() -> None:
    def largest_share(concentration: float) -> float:
        held = shares(toy(5000), 4, 1, Dirichlet(concentration=concentration))
        counts = np.stack([np.bincount(rows.labels_R, minlength=10) for rows in held])
        return float((counts.max(axis=0) / counts.sum(axis=0)).mean())

    measured = [largest_share(concentration) for concentration in (0.05, 1.0, 1000.0)]
    assert all(more > fewer for more, fewer in pairwise(measured))
    assert measured[0] > 0.8
    assert measured[2] < 0.3


def test_a_division_that_leaves_somebody_short_is_drawn_again_until_it_is_hopeless() -> None:
    rule = Dirichlet(concentration=0.5)
    # the first draw of this seed leaves an agent less than it needs
    counts = [len(rows) for rows in shares(toy(400), 8, 3, rule)]
    again = [len(rows) for rows in shares(toy(400), 8, 3, rule, min(counts) + 1)]
    assert min(again) > min(counts)
    assert sum(again) == 400
    for agents, least in ((8, 50), (8, 51), (500, 1)):
        with pytest.raises(DataError, match="take fewer agents, or a higher concentration"):
            endowment(toy(400), 0, agents, seed=3, rule=rule, least_rows=least)


def test_the_division_is_the_same_on_every_machine() -> None:
    held = shares(toy(1000), 3, 7, Dirichlet(concentration=0.5))
    digest = hashlib.sha256(b"".join(rows.inputs_RF.tobytes() for rows in held)).hexdigest()
    assert [len(rows) for rows in held] == [330, 261, 409]
    assert digest[:16] == "2595227390b57d0e"


rules = st.one_of(
    st.none(),
    st.builds(ScarceClasses, percent=st.integers(0, 100)),
    st.builds(Dirichlet, concentration=st.floats(0.001, 1000)),
)


@given(
    agents=st.integers(0, 14),
    classes=st.integers(1, 12),
    rows=st.integers(20, 200),
    least=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    rule=rules,
)
@settings(max_examples=150)
def test_the_sizes_of_a_division_are_those_of_what_it_hands_out(
    agents: int, classes: int, rows: int, least: int, seed: int, rule: Endowment | None
) -> None:
    division = Division(
        dataset=toy(rows, classes), agents=agents, seed=seed, rule=rule, least_rows=least
    )

    def told(make: Callable[[], Sequence[int]]) -> list[int] | str:
        try:
            return list(make())
        except DataError as error:
            return str(error)

    held = told(lambda: [len(division.rows_of(agent)) for agent in range(max(agents, 1))])
    assert told(division.sizes) == held


def test_the_sizes_of_what_was_drawn_for_somebody_are_told_too() -> None:
    study = load_linear(1)
    assert Division(dataset=study, agents=2, seed=9).sizes() == (500, 800)
    assert Division(dataset=study, agents=1, seed=9).sizes() == (500,)
    with pytest.raises(DataError, match="made for 2 agents, not for 3"):
        Division(dataset=study, agents=3, seed=9).sizes()
    with pytest.raises(DataError, match="take the endowment `paper`"):
        Division(dataset=study, agents=2, seed=9, rule=Dirichlet()).sizes()
    with pytest.raises(DataError, match="would hold 500 rows of linear, fewer than 501"):
        Division(dataset=study, agents=2, seed=9, least_rows=501).sizes()


@pytest.mark.parametrize("concentration", [0.0, -1.0, 2000.0, float("nan"), float("inf")])
def test_a_concentration_that_is_none_is_refused(concentration: float) -> None:
    with pytest.raises(DataError, match="concentration"):
        Dirichlet(concentration=concentration)


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_that_is_none_is_refused(percent: int) -> None:
    with pytest.raises(DataError, match="0 … 100%"):
        ScarceClasses(percent=percent)


@pytest.mark.parametrize(("agent", "agents"), [(2, 2), (-1, 2), (0, 0), (0, 10_001)])
def test_an_agent_that_is_not_among_them_is_refused(agent: int, agents: int) -> None:
    with pytest.raises(DataError):
        endowment(toy(100), agent, agents, seed=1)


def test_the_two_agents_of_the_linear_study_hold_what_was_drawn_for_them() -> None:
    study = load_linear(1)
    ours, theirs = (endowment(study, agent, 2, seed=1) for agent in (0, 1))
    assert (len(ours), len(theirs)) == (500, 800)
    np.testing.assert_array_equal(
        np.concatenate([ours.values_R, theirs.values_R]), study.train.values_R
    )
    with pytest.raises(DataError, match="made for 2 agents, not for 3"):
        endowment(study, 0, 3, seed=1)
    with pytest.raises(DataError, match="the agents' already"):
        endowment(study, 0, 2, seed=1, rule=Dirichlet())
