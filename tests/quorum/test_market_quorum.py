"""Brokers of a quorum that measure real models on real rows: which ones is nobody's choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker_node.appraisal import Appraiser, MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.recipe import Recipe
from node.protocol.quorum import (
    figure_of,
)
from node.protocol.types import Millionths
from tests.protocol.cast import BUYER, SELLER
from tests.quorum.chamber import Room, open_room
from tests.quorum.liar import Liar, nothing_came_of_it, refused
from tests.quorum.test_receipts_replayed import BASE, SOLD

ROWS = ValidationSet.of(split_test(load_digits(Path("/nowhere"))).validation)


def market_appraiser(*, shared: bool = False) -> Callable[[], Appraiser]:
    return lambda: MarketAppraiser(ROWS, classes=10, shared_rows=shared)


def digits_room(folder: Path, *, shared: bool = False) -> Any:
    names = ("first", "second", "third")
    return open_room(folder, **{name: market_appraiser(shared=shared) for name in names})


def digits(room: Room) -> Liar:
    for model in (BASE, SOLD):
        room.models[model.weights_root] = model
    return Liar(room, base=room.statement(BUYER, BASE), sold=room.statement(SELLER, SOLD))


@pytest.mark.parametrize(
    ("choice", "score"), [(1, len(ROWS) - 1), (10, 20), (len(ROWS), len(ROWS)), (0, 2)]
)
async def test_the_numbers_of_rows_are_no_choice_of_the_lead(
    tmp_path: Path, choice: int, score: int
) -> None:
    """Each of these replays to sound figures, of rows that the lead could pick."""
    with digits_room(tmp_path) as room:
        liar = digits(room)
        await refused("choice-rows", liar.replay(choice_rows=choice, score_rows=score))
        await nothing_came_of_it(liar)


async def test_where_all_rows_do_both_no_halves_are_measured(tmp_path: Path) -> None:
    half = len(ROWS) // 2
    with digits_room(tmp_path, shared=True) as room:
        liar = digits(room)
        await refused("choice-rows", liar.replay(choice_rows=half, score_rows=len(ROWS) - half))
        await nothing_came_of_it(liar)


async def test_brokers_that_measure_agree_on_what_the_weights_give(tmp_path: Path) -> None:
    """The real appraiser: what is signed is what each of them has found."""
    with digits_room(tmp_path) as room:
        liar = digits(room)
        trial = await room["first"].agree(liar.base, liar.sold)
        assert figure_of(trial.evaluation) == figure_of(liar.trial.evaluation)
        assert trial.evaluation.choice_rows + trial.evaluation.score_rows == len(ROWS)
        await nothing_came_of_it(liar)


async def test_another_merge_weight_is_measured_by_none(tmp_path: Path) -> None:
    with digits_room(tmp_path) as room:
        liar = digits(room)
        other = Recipe.decode(liar.trial.recipe).with_alpha(Millionths(123_456))
        await refused(
            "merged-root",
            liar.replay(recipe=other.encode(), recipe_hash=other.hash, alpha=other.alpha),
        )
        await nothing_came_of_it(liar)
