"""Every input is read by one reader: the entry at fault is named, and what it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_node.mechanisms.base import Json, Outcome, RefusedInputError, Status
from broker_node.mechanisms.reading import (
    LARGEST,
    amount,
    amounts,
    array,
    number,
    shown,
    table,
    with_null,
)
from broker_node.mechanisms.stated import stated_indices

nan = math.nan


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, -2], "cost[1]: must be at least 0, got -2"),
        ([1, nan], "cost[1]: must be finite, got nan"),
        ([1, "2"], "cost[1]: must be a number, got '2'"),
        ([1, True], "cost[1]: must be a number, got True"),
        ([1, [2]], "cost[1]: must be a number, got a list of 1 items"),
        ([[1], 2], "cost[0]: must be a number, got a list of 1 items"),
        ([1, {}], "cost[1]: must be a number, got an object"),
        ([1, 1e151], "cost[1]: must be at most 1e+150 in size, got 1e+151"),
        ([1, 10**5000], "cost[1]: must be finite, got about 2**16610"),
        ([], "cost: must have 1 … 4000000 items, got 0"),
        ("12", "cost: must be a list, got '12'"),
        (None, "cost: must be a list, got None"),
    ],
)
def test_a_list_of_amounts_is_refused_at_the_entry_at_fault(value: Json, message: str) -> None:
    with pytest.raises(RefusedInputError) as refused:
        amounts(value, "cost")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "v[1]: must have 2 items, got 1"),
        ([[1, 2], 3], "v[1]: must be a list of 2 items, got 3"),
        ([[1, 2], [3, None]], "v[1][1]: must be a number, got None"),
        ([1, 2], "v[0]: must be a list, got 1"),
        ([[1], [-1]], "v[1][0]: must be at least 0, got -1"),
        ([], "v: must have a row, got a list of 0 items"),
    ],
)
def test_a_ragged_table_is_refused_at_the_row_at_fault(value: Json, message: str) -> None:
    with pytest.raises(RefusedInputError) as refused:
        table(value, "v")
    assert str(refused.value) == message


@given(value=st.floats() | st.integers(-(10**400), 10**400))
def test_a_number_alone_and_in_a_list_are_refused_in_the_same_words(value: float) -> None:
    def reason(read: object, given: Json) -> str:
        assert callable(read)
        try:
            read(given)
        except RefusedInputError as refused:
            return refused.reason
        return ""

    alone = reason(lambda given: amount(given, "a"), value)
    listed = reason(lambda given: amounts(given, "a"), [value])
    assert alone == listed
    assert (alone == "") == (0 <= value <= LARGEST)


def test_a_huge_value_is_told_in_a_few_words() -> None:
    assert shown([[0.0] * 1000] * 1000) == "a list of 1000 items"
    assert len(shown("x" * 10**6)) == 42
    with pytest.raises(RefusedInputError, match=r"got about 2\*\*33220"):
        number(10**10_000, "a")


def test_null_is_no_limit_and_anything_else_is_a_number() -> None:
    assert with_null([[1, None]], "r", (1, 2)).tolist() == [[1, math.inf]]
    assert np.isinf(with_null(None, "r", (2, 2))).all()
    with pytest.raises(RefusedInputError, match=r"r\[0\]\[1\]: must be a number, got 'x'"):
        with_null([[1, "x"]], "r", (1, 2))


def test_an_array_of_a_shape_says_where_it_has_another() -> None:
    assert array([[1, 2]], "a", (1, None)).shape == (1, 2)
    with pytest.raises(RefusedInputError, match=r"a\[0\]: must have 3 items, got 2"):
        array([[1, 2]], "a", (1, 3))
    with pytest.raises(RefusedInputError, match="a: must not be empty"):
        array([], "a", (None, None))


def test_an_index_that_is_none_is_named() -> None:
    outcome = Outcome(status=Status.TRADE, values={"winners": [0, 2]})
    assert stated_indices(outcome, "winners", 3) == [0, 2]
    with pytest.raises(RefusedInputError, match=r"winners\[1\]: must be an index under 2, got 2"):
        stated_indices(outcome, "winners", 2)
