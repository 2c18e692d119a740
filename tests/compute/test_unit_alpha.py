"""A share for each unit: taken where rows that had no part in it find it better, else not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.evaluation import Evaluated, evaluate
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge import unit_alpha
from broker_node.merge.pairs import mean_loss
from broker_node.merge.stages import Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root
from node.params.families.mlp import Mlp
from node.params.recipe import MAX_SHARES, apply_recipe, interpolate
from node.protocol.quorum import RECIPE_TOLERANCE
from node.protocol.types import ONE, Millionths
from tests.compute.merging_cases import (
    SEED,
    SMALL,
    digits_rows,
    matched,
    model,
    rows_for,
    run,
    started,
    tensors_of,
)

HALF = Millionths(ONE // 2)


def planted_units() -> tuple[Aligned, Rows]:
    """Two models, each of which has learnt what every other unit of the first layer should do."""
    architecture = Architecture("mlp", {"widths": [8, 12, 4]})
    good = {name: 3 * tensor for name, tensor in random_init(architecture, 1).items()}
    sides: list[Verified] = []
    for side in (0, 1):
        spoilt = {name: tensor.clone() for name, tensor in good.items()}
        noise = random_init(architecture, 2 + side)
        for name in ("layers.0.weight", "layers.0.bias"):
            spoilt[name][side::2] = 3 * noise[name][side::2]
        sides.append(model(architecture, spoilt))
    generator = torch.Generator().manual_seed(0)
    inputs_RF = torch.randn(1200, 8, generator=generator)
    labels_R = apply(architecture, good, inputs_RF).argmax(1)
    return matched(sides[0], sides[1]), Rows(inputs_RF, labels_R)


def deciding(rows: Rows) -> Rows:
    count = len(rows) // unit_alpha.DECIDING
    return Rows(rows.inputs_RF[-count:], rows.targets_R[-count:])


def test_units_that_only_the_seller_has_learnt_are_bought_and_the_others_kept() -> None:
    aligned, rows = planted_units()
    merged = run("unit-alpha", [aligned], rows)
    assert merged.recipe is not None
    shares = merged.recipe.shares["layers.0.bias"]
    # the buyer's even units are spoilt, and the seller's odd ones
    wanted, unwanted = sum(shares[0::2]) / 6, sum(shares[1::2]) / 6
    assert wanted > 0.75 * ONE
    assert unwanted < 0.35 * ONE
    line = run("lerp", [aligned], rows)
    losses = [mean_loss(aligned.buyer, tensors_of(each), rows) for each in (line, merged)]
    assert losses[1] < losses[0] / 2


def test_a_unit_has_one_share_for_its_weights_and_its_bias() -> None:
    aligned, rows = planted_units()
    merged = run("unit-alpha", [aligned], rows)
    assert merged.recipe is not None
    shares = merged.recipe.shares
    assert set(shares) == set(aligned.transformed)
    for layer in ("layers.0", "layers.1"):
        assert shares[f"{layer}.weight"] == shares[f"{layer}.bias"]
    assert merged.recipe.alpha == run("lerp", [aligned], rows).detail["alpha"]


@given(seed=st.integers(0, 2**20), count=st.integers(64, 400))
@settings(max_examples=15, deadline=None)
def test_on_the_rows_that_decide_it_is_never_behind_the_line(seed: int, count: int) -> None:
    torch.set_num_threads(1)
    aligned = matched(started(SMALL, seed), started(SMALL, seed + 1))
    rows = rows_for(SMALL, count, seed)  # labels that no model can know
    line, each = (run(method, [aligned], rows) for method in ("lerp", "unit-alpha"))
    losses = [mean_loss(aligned.buyer, tensors_of(found), deciding(rows)) for found in (line, each)]
    assert losses[1] <= losses[0]
    if each.recipe is not None and not each.recipe.shares:
        assert weights_root(dict(tensors_of(each))) == weights_root(dict(tensors_of(line)))


def test_what_the_fitted_rows_praise_alone_is_left() -> None:
    aligned, rows = planted_units()
    switched = rows.targets_R.clone()
    fitting = len(rows) - len(rows) // unit_alpha.DECIDING
    switched[:fitting] = (switched[:fitting] + 1) % 4
    found = unit_alpha.unit_shares(
        aligned.buyer, aligned.transformed, Rows(rows.inputs_RF, switched), HALF
    )
    assert found.shares == {}
    assert found.row_evaluations > 0


@pytest.mark.parametrize(
    ("count", "alpha"), [(unit_alpha.FEWEST_ROWS - 1, HALF), (400, Millionths(0))]
)
def test_without_rows_or_without_a_trade_nothing_is_fitted(count: int, alpha: Millionths) -> None:
    aligned = matched(started(SMALL, 1), started(SMALL, 2))
    found = unit_alpha.unit_shares(
        aligned.buyer, aligned.transformed, rows_for(SMALL, count), alpha
    )
    assert (dict(found.shares), found.row_evaluations) == ({}, 0)


def test_more_rows_than_a_recipe_holds_are_left_at_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligned, rows = planted_units()
    monkeypatch.setattr(unit_alpha, "MAX_SHARES", 31)  # 2 * (12 + 4) are needed
    assert not unit_alpha.unit_shares(aligned.buyer, aligned.transformed, rows, HALF).shares
    monkeypatch.setattr(unit_alpha, "MAX_SHARES", 32)
    assert unit_alpha.unit_shares(aligned.buyer, aligned.transformed, rows, HALF).shares
    assert MAX_SHARES >= 2**18


def test_the_bytes_are_those_that_a_buyer_makes_of_the_recipe(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    aligned = matched(*pair, "weight-matching")
    choice, _ = digits_rows(validation)
    merged = run("unit-alpha", [aligned], choice)
    assert merged.recipe is not None
    assert merged.recipe.shares
    buyer, seller = pair
    again = apply_recipe(buyer.architecture, buyer.tensors, seller.tensors, merged.recipe)
    assert weights_root(again) == weights_root(dict(tensors_of(merged)))


def test_a_gradient_is_counted_as_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0
    forward = Mlp.forward

    def counted(
        self: Mlp, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        nonlocal ran
        fits = any(tensor.requires_grad for tensor in tensors.values())
        ran += len(inputs_RF) * (3 if fits else 1)
        return forward(self, tensors, inputs_RF)

    aligned, rows = planted_units()
    monkeypatch.setattr(Mlp, "forward", counted)
    found = unit_alpha.unit_shares(aligned.buyer, aligned.transformed, rows, HALF)
    assert found.row_evaluations == ran > 40 * 3 * 256


def test_only_layers_that_are_sold_have_shares() -> None:
    whole = started(SMALL, 2)
    aligned = matched(started(SMALL, 1), model(SMALL, whole.tensors, layers=(1,)))
    found = unit_alpha.unit_shares(aligned.buyer, aligned.transformed, rows_for(SMALL, 300), HALF)
    assert set(found.shares) <= {"layers.1.weight", "layers.1.bias"}


def test_a_module_of_several_heights_is_taken_apart() -> None:
    ones = {
        "a.weight": torch.ones(3, 2),
        "a.bias": torch.ones(3),
        "a.steps": torch.tensor(1.0),
        "b.weight": torch.ones(3, 2),
        "b.other": torch.ones(2),
        "w": torch.ones(2),
    }
    assert unit_alpha.modules_of(ones) == {
        "a": ("a.bias", "a.weight"),
        "b.other": ("b.other",),
        "b.weight": ("b.weight",),
        "": ("w",),
    }


def test_a_network_with_normalisation_is_merged_by_its_recipe() -> None:
    architecture = Architecture(
        "resnet", {"classes": 3, "depth": 10, "image": [1, 8, 8], "widen": 1}
    )
    buyer, seller = started(architecture, 1), started(architecture, 2)
    aligned = matched(buyer, seller)
    rows = rows_for(architecture, 80)
    found = unit_alpha.unit_shares(buyer, aligned.transformed, rows, HALF)
    assert found.row_evaluations > unit_alpha.STEPS * 3 * 60
    assert aligned.recipe is not None
    recipe = aligned.recipe.with_alpha(HALF).with_shares(found.shares)
    merged = interpolate(buyer.tensors, aligned.transformed, HALF, shares=found.shares)
    again = apply_recipe(architecture, buyer.tensors, seller.tensors, recipe)
    assert weights_root(again) == weights_root(merged)


def test_who_sums_in_another_order_agrees_on_what_a_recipe_is_worth(
    pair: tuple[Verified, Verified], validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads, and gradients that are off by a part in a million, as other machines' may be."""
    aligned = matched(*pair, "weight-matching")

    def measured() -> Evaluated:
        return evaluate(aligned, validation, seed=SEED, merging="unit-alpha")

    own = measured()
    assert own.recipe.shares
    try:
        torch.set_num_threads(2)
        others = [measured()]
    finally:
        torch.set_num_threads(1)
    grad = torch.autograd.grad
    draws = torch.Generator().manual_seed(0)

    def shaken(loss: torch.Tensor, of: list[torch.Tensor], **how: Any) -> list[torch.Tensor]:
        return [
            each * (1 + 1e-6 * torch.randn(each.shape, generator=draws))
            for each in grad(loss, of, **how)
        ]

    monkeypatch.setattr(torch.autograd, "grad", shaken)
    others += [measured() for _ in range(5)]
    apart = [max(abs(own.gain - o.gain), abs(own.bound - o.bound)) for o in others]
    assert any(own.recipe != other.recipe for other in others)  # the noise was felt
    assert max(apart) < RECIPE_TOLERANCE / 10


def test_a_broker_that_fits_shares_scores_them_on_rows_that_had_no_part(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    aligned = matched(*pair, "weight-matching")
    _, scored = digits_rows(validation)
    half = len(validation) // 2
    found = evaluate(
        aligned, validation, seed=SEED, choice_rows=half, score_rows=half, merging="unit-alpha"
    )
    merged = interpolate(
        aligned.buyer.tensors, aligned.transformed, found.alpha, shares=found.recipe.shares
    )
    assert weights_root(merged) == found.merged_root
    loss = float(
        row_losses(aligned.buyer.architecture, merged, scored.inputs_RF, scored.targets_R).mean()
    )
    assert found.loss_after == pytest.approx(loss * 1e9, rel=1e-6)
    line = evaluate(aligned, validation, seed=SEED, choice_rows=half, score_rows=half)
    assert found.alpha == line.alpha
    assert found.row_evaluations > line.row_evaluations
