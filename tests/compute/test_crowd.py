"""Many sellers and many buyers: each buyer finds its best seller by probes that all share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from broker_node.align.stages import AlignmentError
from broker_node.align.universe import Universe
from broker_node.evaluate import curve, merges
from broker_node.evaluate.crowd import (
    Budget,
    Crowd,
    Verdict,
    best_sellers,
)
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.evaluation import replay
from broker_node.evaluate.merges import MergeStack
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.verify.stages import Verified
from node.params.architecture import apply, random_init
from node.params.recipe import interpolate
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Digest, Millionths
from tests.compute.test_aligners import SMALL, disguised, rows_for, verified

SEED = Digest(hashlib.sha256(b"crowd").digest())
ROWS = 256
BUDGET = Budget(answer_rows=120, promise_rows=32, probe_rows=16, search_rows=64, confirm_rows=128)
SEARCH = BUDGET.search_calls * BUDGET.search_rows
"""Row evaluations of a buyer's search, at most."""


def spoilt(model: Verified, share: float, seed: int) -> Verified:
    """Return the model with noise of that share of each tensor's spread."""
    generator = torch.Generator().manual_seed(seed)
    return verified(
        SMALL,
        {
            name: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
            for name, tensor in model.tensors.items()
        },
    )


# sure of itself, so that whoever is near it has a loss near 0
TEACHER = verified(
    SMALL,
    {
        name: tensor * (100 if name.startswith("layers.3") else 2)
        for name, tensor in random_init(SMALL, 11).items()
    },
)
INPUTS_RF = rows_for(SMALL, ROWS, seed=8)
VALIDATION = ValidationSet(
    INPUTS_RF, apply(SMALL, TEACHER.tensors, INPUTS_RF).argmax(1).to(torch.int64)
)
BUYER = spoilt(TEACHER, 0.8, 1)
BEST = disguised(spoilt(TEACHER, 0.02, 2), 3)
WORSE = [disguised(spoilt(TEACHER, 1.0 + 0.2 * k, 20 + k), k) for k in range(8)]


def crowd_of(
    buyers: list[Verified], sellers: list[Verified], *, within: Universe | None = None, **how: Any
) -> Crowd:
    if within is None:
        every = {model.weights_root: model for model in (*buyers, *sellers)}
        within = Universe.of(every.values(), probe_RF=rows_for(SMALL, 64), seed=0)
    how = {"seed": SEED, "budget": BUDGET, **how}
    return best_sellers(within, SMALL, buyers, sellers, VALIDATION, **how)


def test_a_buyer_finds_the_one_seller_that_knows_more_among_many() -> None:
    (choice,) = crowd_of([BUYER], [*WORSE, BEST]).choices
    assert (choice.seller, choice.verdict) == (BEST.weights_root, Verdict.CONFIRMED)


def biased(by: float) -> Verified:
    """Return the teacher, that is for some classes and against the others."""
    bias_O = TEACHER.tensors["layers.3.bias"]
    signs_O = torch.where(torch.arange(len(bias_O)) % 2 == 0, 1.0, -1.0)
    return verified(SMALL, {**TEACHER.tensors, "layers.3.bias": bias_O + by * signs_O})


def test_whose_errors_are_the_buyers_reversed_is_found_though_many_know_more_alone() -> None:
    mirror = disguised(biased(-10), 4)
    better = [disguised(spoilt(TEACHER, 0.2, 50 + k), k) for k in range(8)]
    alone = [
        float(row_losses(SMALL, model.tensors, INPUTS_RF, VALIDATION.targets_R).mean())
        for model in (mirror, *better)
    ]
    assert sum(loss < alone[0] for loss in alone) > BUDGET.shortlist
    (choice,) = crowd_of([biased(10)], [mirror, *better]).choices
    assert (choice.seller, choice.verdict) == (mirror.weights_root, Verdict.CONFIRMED)
    assert choice.recipe is not None
    assert 0.25 < choice.recipe.alpha / ONE < 0.75


def test_the_gain_is_the_recipes_on_rows_that_chose_nothing() -> None:
    (choice,) = crowd_of([BUYER], [*WORSE, BEST]).choices
    assert choice.recipe is not None
    _, gain = replay(
        SMALL,
        BUYER.tensors,
        BEST.tensors,
        choice.recipe,
        VALIDATION,
        seed=SEED,
        choice_rows=ROWS // 2,
        score_rows=128,
    )
    assert gain == choice.gain


def test_who_knows_all_already_buys_nothing() -> None:
    for choice in crowd_of([TEACHER], WORSE).choices:
        assert choice.verdict in {Verdict.NO_GAIN, Verdict.UNCONFIRMED}


def test_nobody_buys_of_himself() -> None:
    members = [BUYER, BEST, WORSE[0]]
    choices = crowd_of(members, members).choices
    assert len(choices) == 3
    assert all(choice.seller != choice.buyer for choice in choices)
    (alone,) = crowd_of([BUYER], [BUYER]).choices
    assert alone.verdict is Verdict.NO_SELLER


def test_every_row_that_a_model_reads_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sellers = [*WORSE, BEST]
    within = Universe.of([BUYER, *sellers], probe_RF=rows_for(SMALL, 64), seed=0)
    seen = 0

    def counting(real: Callable[..., torch.Tensor], *, stacked: bool) -> Any:
        def forward(architecture: Any, tensors: Any, inputs_RF: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += len(inputs_RF) * (len(next(iter(tensors.values()))) if stacked else 1)
            return real(architecture, tensors, inputs_RF)

        return forward

    for name in ("together", "one_by_one"):
        monkeypatch.setattr(merges, name, counting(getattr(merges, name), stacked=True))
    monkeypatch.setattr(curve, "outputs_of", counting(curve.outputs_of, stacked=False))
    found = crowd_of([BUYER], sellers, within=within)
    assert found.row_evaluations == seen + 10 * 64
    assert found.choices[0].row_evaluations == seen - 10 * BUDGET.answer_rows


def test_a_seller_more_costs_its_place_and_its_answers_and_no_probe_of_its_own() -> None:
    few, many = (crowd_of([BUYER], [*sellers, BEST]) for sellers in (WORSE[:4], WORSE))
    answers = 64 + BUDGET.answer_rows
    assert many.row_evaluations - few.row_evaluations <= 4 * answers + SEARCH
    assert many.row_evaluations - few.row_evaluations >= 4 * answers - SEARCH


def test_who_all_buy_and_sell_probe_a_pair_once_and_stay_within_the_budget_of_each() -> None:
    probing = replace(BUDGET, probe_rows=64, search_calls=1, confirm_rows=20)
    pair = crowd_of([BUYER, BEST], [BUYER, BEST], budget=probing)
    first, second = (choice.row_evaluations for choice in pair.choices)
    assert first >= 5 * 64
    assert second <= 64 + 2 * 20
    probes = 5 * BUDGET.probe_rows
    members = [BUYER, BEST, *WORSE]
    spent = BUDGET.shortlist * probes + SEARCH + 2 * BUDGET.confirm_rows
    crowd = crowd_of(members, members)
    assert crowd.row_evaluations <= len(members) * (64 + BUDGET.answer_rows + spent)


def test_among_kin_the_choice_is_all_but_that_of_trying_every_merge_on_all_rows() -> None:
    kin = [disguised(spoilt(TEACHER, 0.05, 70 + k), k) for k in range(12)]
    within = Universe.of(kin, probe_RF=rows_for(SMALL, 64), seed=0)
    drawn = draw_rows(SEED, ROWS, choice=ROWS // 2, score=128).choice[: BUDGET.answer_rows]
    rows = INPUTS_RF[drawn], VALIDATION.targets_R[drawn]
    standing = {model.weights_root: within.standing(model) for model in kin}

    def loss(buyer: Digest, seller: Digest, alpha: int) -> float:
        merged = interpolate(standing[buyer], standing[seller], Millionths(alpha))
        return float(row_losses(SMALL, merged, *rows).mean())

    taken, least, own = 0.0, 0.0, 0.0
    for choice in crowd_of(kin, kin, within=within).choices:
        assert choice.seller is not None
        assert choice.recipe is not None
        taken += loss(choice.buyer, choice.seller, choice.recipe.alpha)
        own += loss(choice.buyer, choice.buyer, 0)
        least += min(
            loss(choice.buyer, seller, k * ONE // 20)
            for seller in standing
            if seller != choice.buyer
            for k in range(1, 21)
        )
    assert taken - least < 0.05 * own


def test_a_model_that_answers_everybody_alike_is_nobodys_best() -> None:
    constant = verified(SMALL, {n: torch.zeros_like(t) for n, t in TEACHER.tensors.items()})
    (choice,) = crowd_of([BUYER], [constant, BEST, *WORSE[:3]]).choices
    assert (choice.seller, choice.verdict) == (BEST.weights_root, Verdict.CONFIRMED)
    (only,) = crowd_of([TEACHER], [constant]).choices
    assert (only.verdict, only.gain) == (Verdict.NO_GAIN, None)


def test_whoever_is_constant_itself_buys_what_knows_most() -> None:
    constant = verified(SMALL, {n: torch.zeros_like(t) for n, t in TEACHER.tensors.items()})
    (choice,) = crowd_of([constant], [BEST, *WORSE[:3]]).choices
    assert (choice.seller, choice.verdict) == (BEST.weights_root, Verdict.CONFIRMED)


def test_a_replica_of_the_buyer_sells_it_nothing_and_hides_nobody() -> None:
    replicas = [disguised(BUYER, seed) for seed in (31, 32, 33)]
    (choice,) = crowd_of([BUYER], replicas).choices
    assert choice.verdict in {Verdict.NO_GAIN, Verdict.UNCONFIRMED}
    (choice,) = crowd_of([BUYER], [*replicas, BEST]).choices
    assert (choice.seller, choice.verdict) == (BEST.weights_root, Verdict.CONFIRMED)


def test_a_single_seller_is_looked_at_as_closely_as_one_of_many() -> None:
    (alone,) = crowd_of([BUYER], [BEST]).choices
    assert (alone.seller, alone.verdict) == (BEST.weights_root, Verdict.CONFIRMED)


def test_rows_of_one_class_choose_nothing_and_are_refused_by_name() -> None:
    label = int(VALIDATION.targets_R.mode().values)
    of_class = VALIDATION.targets_R == label
    rows = ValidationSet(INPUTS_RF[of_class], VALIDATION.targets_R[of_class])
    within = Universe.of([BUYER, BEST], probe_RF=rows_for(SMALL, 64), seed=0)
    with pytest.raises(LocalProtocolError, match="one-class"):
        best_sellers(within, SMALL, [BUYER], [BEST], rows, seed=SEED, budget=BUDGET)


def test_in_whatever_order_they_come_and_however_many_at_once_the_choices_are_the_same() -> None:
    members = [BUYER, *WORSE[:5], BEST]
    shuffled = [*members[3:], *members[2::-1]]
    straight, other = crowd_of(members, members), crowd_of(shuffled, shuffled)
    assert straight == other
    singly = crowd_of(members, members, batch=1)
    assert [c.seller for c in singly.choices] == [c.seller for c in straight.choices]


def test_sellers_of_one_function_tie_and_the_lower_root_is_taken() -> None:
    found = crowd_of([BUYER], [BEST, *WORSE[:3]])
    assert found.choices[0].tied == ()
    twin = verified(SMALL, {name: tensor.clone() for name, tensor in BEST.tensors.items()})
    with pytest.raises(LocalProtocolError, match="twice"):
        crowd_of([BUYER], [BEST, twin])
    doubled = verified(SMALL, {**BEST.tensors, **_doubled_first(BEST)})
    (choice,) = crowd_of([BUYER], [BEST, doubled]).choices
    both = {BEST.weights_root, doubled.weights_root}
    assert {choice.seller, *choice.tied} == both
    assert choice.seller == min(both)


def _doubled_first(model: Verified) -> dict[str, torch.Tensor]:
    """Return the first layer doubled and the second halved: the same function to the bit."""
    second = "layers.1.weight"
    first = {name: 2 * model.tensors[name] for name in ("layers.0.weight", "layers.0.bias")}
    return {**first, second: model.tensors[second] / 2}


def test_a_seller_whose_losses_overflow_is_named_and_left_out() -> None:
    huge = verified(
        SMALL, {n: t * 1e4 if n.endswith("weight") else t for n, t in TEACHER.tensors.items()}
    )
    (choice,) = crowd_of([BUYER], [huge, BEST, *WORSE[:3]]).choices
    assert choice.overflowed == (huge.weights_root,)
    assert choice.seller == BEST.weights_root
    (only,) = crowd_of([BUYER], [huge]).choices
    assert (only.verdict, only.seller) == (Verdict.OVERFLOWS, None)
    (buyer,) = crowd_of([huge], [BEST]).choices
    assert buyer.verdict is Verdict.OVERFLOWS


def test_many_merges_at_once_have_the_losses_of_each_by_itself() -> None:
    members = [TEACHER, BUYER, *WORSE[:3]]
    stack = MergeStack(SMALL, [m.tensors for m in members], INPUTS_RF, VALIDATION.targets_R)
    alpha = Millionths(3 * ONE // 10)
    found_KR = stack.losses(1, [(seller, alpha) for seller in (0, 2, 3, 4)], slice(0, 100))
    for losses_R, seller in zip(found_KR, (0, 2, 3, 4), strict=True):
        merged = interpolate(members[1].tensors, members[seller].tensors, alpha)
        expected_R = row_losses(SMALL, merged, INPUTS_RF[:100], VALIDATION.targets_R[:100])
        torch.testing.assert_close(losses_R, expected_R, rtol=1e-5, atol=1e-5)
    assert stack.row_evaluations == 400


HALVES = [(seller, Millionths(ONE // 2)) for seller in range(1, 9)]


def test_where_memory_runs_out_fewer_go_through_together(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [BUYER, *WORSE]
    stack = MergeStack(SMALL, [m.tensors for m in members], INPUTS_RF, VALIDATION.targets_R)
    expected_KR = stack.losses(0, HALVES, slice(0, 8))
    real = merges.together

    def cramped(architecture: Any, stacked: Any, inputs_RF: torch.Tensor) -> torch.Tensor:
        if len(stacked["layers.0.bias"]) > 3:
            raise torch.OutOfMemoryError
        return real(architecture, stacked, inputs_RF)

    monkeypatch.setattr(merges, "together", cramped)
    found_KR = stack.losses(0, HALVES, slice(0, 8))
    torch.testing.assert_close(found_KR, expected_KR)
    assert stack.batch == 2
    assert stack.row_evaluations == 2 * 64
    monkeypatch.setattr(merges, "together", _never)
    assert stack.fallbacks == ("out-of-memory: at most 2 merges at once on cpu",)
    with pytest.raises(LocalProtocolError, match=r"^out-of-memory: cpu has no room for one model"):
        stack.losses(0, HALVES[:1], slice(0, 8))


def _never(*_: Any) -> list[torch.Tensor]:
    raise torch.OutOfMemoryError


def test_models_stand_in_the_universe_as_the_functions_that_they_are() -> None:
    within = Universe.of([BUYER, BEST], probe_RF=rows_for(SMALL, 64), seed=0)
    ours, theirs = within.standing(BUYER), within.standing(BEST)
    torch.testing.assert_close(
        apply(SMALL, theirs, INPUTS_RF), apply(SMALL, BEST.tensors, INPUTS_RF), rtol=1e-4, atol=1e-4
    )
    alpha = Millionths(ONE // 4)
    by_recipe = interpolate(BUYER.tensors, within.pair(BUYER, BEST).transformed, alpha)
    torch.testing.assert_close(
        apply(SMALL, interpolate(ours, theirs, alpha), INPUTS_RF),
        apply(SMALL, by_recipe, INPUTS_RF),
        rtol=1e-4,
        atol=1e-4,
    )
    with pytest.raises(AlignmentError, match="not in the universe"):
        within.standing(TEACHER)
    some = Universe.of([BUYER], probe_RF=rows_for(SMALL, 64), seed=0, layers=(0,))
    with pytest.raises(AlignmentError, match="all layers"):
        some.standing(BUYER)


def test_rows_that_confirm_chose_nothing() -> None:
    drawn = draw_rows(SEED, ROWS, choice=ROWS // 2, score=128)
    assert not set(drawn.choice) & set(drawn.score)
    with pytest.raises(LocalProtocolError, match="cannot draw"):
        crowd_of([BUYER], [BEST], choice_rows=ROWS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"promise_rows": 0},
        {"probe_rows": 0},
        {"shortlist": 0},
        {"promising": 3},
        {"search_calls": 0},
        {"search_rows": 8},
        {"answer_rows": 63},
        {"promise_rows": 121},
        {"confirm_rows": 1},
    ],
)
def test_a_budget_that_decides_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        replace(BUDGET, **wrong)
