"""What a trade is made by: as the broker says, or by what stands in for it, by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import AlignmentError
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.methods import (
    MARKET,
    PAPER,
    ROWS,
    TRADED_ALIGNMENTS,
    Method,
    align,
    alignment_for,
)
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge.registry import MERGERS, TRADED
from broker_node.verify.stages import Verified
from node.config.table import SETTINGS
from node.devnet.arms import ARMS, OUT_OF_MARKET, PAPER_ARMS
from node.params.architecture import Architecture
from node.params.recipe import Recipe
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import BrokerNotice
from node.protocol.types import ONE, Digest, Millionths
from tests.compute.merging_cases import LINEAR, SEED, matched, model, rows_for, started

FOUR = Architecture("mlp", {"widths": [6, 5, 4, 5, 3]})


def test_the_market_and_the_paper_differ_in_both_alignment_and_merge() -> None:
    assert Method(alignment="universe", merging="unit-alpha") == MARKET
    assert Method(alignment="weight-matching", merging="lerp") == PAPER
    assert set(TRADED_ALIGNMENTS) <= set(ALIGNERS)
    assert set(TRADED_ALIGNMENTS) >= ROWS
    assert set(TRADED) <= set(MERGERS)


def test_settings_and_arms_name_what_there_is() -> None:
    assert SETTINGS["alignment"].choices == TRADED_ALIGNMENTS
    assert set(SETTINGS["merging"].choices) == set(TRADED)
    universe = ARMS["universe"]
    assert Method(alignment=universe.alignment, merging=universe.merging) == MARKET
    assert set(PAPER_ARMS) == set(ARMS) - {"universe"}
    for name in set(PAPER_ARMS) - {OUT_OF_MARKET}:
        assert ARMS[name].merging == PAPER.merging
    assert ARMS["aligned"].alignment == PAPER.alignment


@pytest.mark.parametrize("wrong", [("least-squares", "lerp"), ("x", "lerp"), ("universe", "ties")])
def test_what_no_buyer_could_follow_is_no_method_of_a_trade(wrong: tuple[str, str]) -> None:
    with pytest.raises(LocalProtocolError):
        Method(alignment=wrong[0], merging=wrong[1])


@pytest.mark.parametrize("alignment", sorted(ROWS))
@pytest.mark.parametrize(
    ("layers", "by_rows"),
    [((), True), ((0,), True), ((0, 1), True), ((0, 1, 2), True), ((1, 2), False), ((3,), False),
     ((0, 2), False)],
)  # fmt: skip
def test_layers_that_no_row_reaches_are_matched_by_their_weights(
    alignment: str, layers: tuple[int, ...], by_rows: bool
) -> None:
    whole = started(FOUR, 2)
    seller = model(FOUR, whole.tensors, layers=layers) if layers else whole
    probe_RF = rows_for(FOUR).inputs_RF
    pair = align(alignment, started(FOUR, 1), seller, seed=0, probe_RF=probe_RF)
    assert pair.method == (alignment if by_rows else "weight-matching")
    assert alignment_for("identity", seller) == "identity"
    if by_rows:
        with pytest.raises(AlignmentError):
            align(alignment, started(FOUR, 1), seller, seed=0)


def test_a_model_without_units_is_not_aligned_by_rows() -> None:
    assert alignment_for("universe", started(LINEAR, 1)) == "weight-matching"


@pytest.mark.parametrize("aligner", ["identity", "weight-matching"])
def test_units_as_they_are_numbered_have_no_share_of_their_own(
    aligner: str, pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    found = evaluate(matched(*pair, aligner), validation, seed=SEED, merging="unit-alpha")
    assert found.merging == ("lerp" if aligner == "identity" else "unit-alpha")
    assert bool(found.recipe.shares) == (aligner != "identity")
    ending = "" if aligner == "identity" else "+unit-alpha"
    assert found.named == f"{aligner}+halving-brent{ending}"


def test_rows_of_one_class_leave_it_at_the_line(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ones = ValidationSet(validation.inputs_RF, torch.zeros_like(validation.targets_R))
    found = evaluate(matched(*pair, "weight-matching"), ones, seed=SEED, merging="unit-alpha")
    assert found.merging == "lerp"
    assert not found.recipe.shares


def test_no_merge_that_is_not_registered() -> None:
    rows, pair = rows_for(FOUR, 40), matched(started(FOUR, 1), started(FOUR, 2))
    with pytest.raises(LocalProtocolError):
        evaluate(pair, ValidationSet(rows.inputs_RF, rows.targets_R), seed=SEED, merging="ties")


# ── a broker's trial ──


def trial(validation: ValidationSet, pair: tuple[Verified, Verified], method: Method) -> Trial:
    appraiser = MarketAppraiser(
        validation, classes=10, method=method.alignment, merging=method.merging
    )
    return appraiser.measure(*pair, task="digits", notice=(Digest(bytes(32)), NOTICE))


class _Notice:
    seed = SEED


NOTICE: BrokerNotice = _Notice()  # type: ignore[assignment]


def test_a_brokers_trial_by_the_default_is_replayed_from_its_recipe(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    found = trial(validation, pair, MARKET)
    subject, recipe = found.evaluation, Recipe.decode(found.recipe)
    assert subject.method == "universe+halving-brent+unit-alpha"
    assert recipe.shares
    assert recipe.alpha == subject.alpha
    anybody = MarketAppraiser(validation, classes=10)
    figure = anybody.replay(subject, found.recipe, *pair).figure
    assert (figure.gain, figure.bound) == (subject.gain, subject.bound)
    # one share moved by a millionth is another recipe, and another model
    name, shares = next(iter(recipe.shares.items()))
    nudged = recipe.with_shares(
        {**recipe.shares, name: (Millionths((shares[0] + 1) % ONE), *shares[1:])}
    )
    with pytest.raises(RemoteProtocolError) as refused:
        anybody.replay(subject, nudged.encode(), *pair)
    assert refused.value.reason == "recipe-hash"
    with pytest.raises(RemoteProtocolError) as refused:
        anybody.replay(
            dataclasses.replace(subject, recipe_hash=nudged.hash), nudged.encode(), *pair
        )
    assert refused.value.reason == "merged-root"


def test_the_default_gains_no_less_than_the_papers_method_on_digits(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    ours, papers = (trial(validation, pair, method) for method in (MARKET, PAPER))
    assert papers.evaluation.method == "weight-matching+halving-brent"
    assert not Recipe.decode(papers.recipe).shares
    assert ours.evaluation.gain >= papers.evaluation.gain


def test_a_pair_tried_twice_gives_the_same_bytes(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    first, second = (trial(validation, pair, MARKET) for _ in range(2))
    assert first.recipe == second.recipe
    assert first.evaluation == second.evaluation
