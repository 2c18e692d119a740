"""What every merge method owes a buyer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge import coordinates, layer_alpha
from broker_node.merge.pairs import mean_loss
from broker_node.merge.registry import MERGERS, NEEDS_BASE, ONE_SELLER
from broker_node.merge.scoring import score
from broker_node.merge.stages import MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root
from node.params.families.mlp import Mlp
from node.params.recipe import apply_recipe, interpolate
from node.protocol.types import ONE, Millionths
from tests.compute.merging_cases import (
    LINEAR,
    SEED,
    SMALL,
    digits_rows,
    matched,
    model,
    rows_for,
    run,
    share_of,
    small_case,
    started,
    tensors_of,
)

ANY = set(MERGERS) - {"reset"}
"""What merges a perceptron: it normalises by nothing that could be reset."""


def test_a_broker_offers_these_methods_by_name() -> None:
    assert set(MERGERS) == {
        "lerp",
        "layer-alpha",
        "unit-alpha",
        "regmean",
        "fisher",
        "fusion",
        "task-arithmetic",
        "ties",
        "ensemble",
        "outright",
        "repair",
        "reset",
    }
    assert set(MERGERS) >= ONE_SELLER | NEEDS_BASE


@pytest.mark.parametrize("method", sorted(ANY))
def test_the_same_merge_comes_out_byte_for_byte_in_float32(method: str) -> None:
    aligned, rows, base = small_case(method)
    first, second = (run(method, aligned, rows, base) for _ in range(2))
    assert (first.method, first.detail) == (method, second.detail)
    assert first.row_evaluations == second.row_evaluations
    if method == "ensemble":
        assert first.tensors is None
        return
    tensors = tensors_of(first)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert list(tensors) == list(aligned[0].buyer.tensors)
    assert weights_root(dict(tensors)) == weights_root(dict(tensors_of(second)))


@pytest.mark.parametrize("method", sorted(ANY - {"ensemble"}))
def test_what_is_not_sold_stays_the_buyers_to_the_byte(method: str) -> None:
    aligned, rows, base = small_case(method)
    buyer = aligned[0].buyer
    whole = started(SMALL, 2)
    first = matched(buyer, model(SMALL, whole.tensors, layers=(0,)))
    second = matched(buyer, model(SMALL, started(SMALL, 3).tensors, layers=(0, 1)))
    pairs = [second] if method in ONE_SELLER else [first, second]
    tensors = tensors_of(run(method, pairs, rows, base))
    for name in ("layers.2.weight", "layers.2.bias"):
        assert torch.equal(tensors[name], buyer.tensors[name])
    changed = [name for name in tensors if not torch.equal(tensors[name], buyer.tensors[name])]
    if method in {"regmean", "fisher", "task-arithmetic", "ties", "outright"}:
        assert set(changed) == set(second.transformed)


# gradients, and REPAIR's look at each layer, are counted as runs and are none of the whole model
@pytest.mark.parametrize(
    "method", sorted(ANY - {"fisher", "ensemble", "outright", "repair", "unit-alpha"})
)
def test_a_method_has_run_as_many_rows_as_it_says(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = 0
    forward = Mlp.forward

    def counted(
        self: Mlp, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        nonlocal ran
        ran += len(inputs_RF)
        return forward(self, tensors, inputs_RF)

    aligned, rows, base = small_case(method)
    monkeypatch.setattr(Mlp, "forward", counted)
    # one row more shows how many answers there are
    assert run(method, aligned, rows, base).row_evaluations == ran - 1 > 0


def test_the_lerp_is_what_a_trade_would_sign(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    aligned = matched(*pair, "weight-matching")
    choice, scored = digits_rows(validation)
    merged = run("lerp", [aligned], choice)
    signed = evaluate(aligned, validation, seed=SEED, choice_rows=150, score_rows=150)
    assert weights_root(dict(tensors_of(merged))) == signed.merged_root
    assert merged.recipe == signed.recipe
    figure = score(merged, [aligned], scored)
    assert (figure.gain.gain, figure.gain.bound) == (signed.gain, signed.bound)
    assert merged.row_evaluations + figure.row_evaluations == signed.row_evaluations


def test_who_buys_outright_computes_what_the_seller_does(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    buyer, seller = pair
    aligned = matched(buyer, seller, "weight-matching")
    choice, _ = digits_rows(validation)
    merged = run("outright", [aligned], choice)
    ours = apply(buyer.architecture, tensors_of(merged), choice.inputs_RF)
    theirs = apply(seller.architecture, seller.tensors, choice.inputs_RF)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert merged.recipe is not None
    assert merged.recipe.alpha == ONE
    again = apply_recipe(buyer.architecture, buyer.tensors, seller.tensors, merged.recipe)
    assert weights_root(again) == weights_root(dict(tensors_of(merged)))
    assert merged.row_evaluations == 0


@given(seed=st.integers(0, 2**20))
@settings(max_examples=10, deadline=None)
def test_a_share_for_each_layer_is_never_worse_than_one_for_all(seed: int) -> None:
    torch.set_num_threads(1)
    aligned = matched(started(SMALL, seed), started(SMALL, seed + 1))
    # more rows than the first screen of a search looks at
    rows = rows_for(SMALL, 400, seed)
    one, each = (run(method, [aligned], rows) for method in ("lerp", "layer-alpha"))
    losses = [mean_loss(aligned.buyer, tensors_of(merged), rows) for merged in (one, each)]
    assert losses[1] <= losses[0]
    assert each.detail["alpha"] == one.detail["alpha"]


def test_the_layers_start_at_the_share_that_is_best_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligned, rows, _ = small_case("layer-alpha")
    monkeypatch.setattr(coordinates, "MAX_PASSES", 0)
    one, each = (run(method, aligned, rows) for method in ("lerp", "layer-alpha"))
    assert share_of(one, "alpha") > 0
    assert weights_root(dict(tensors_of(one))) == weights_root(dict(tensors_of(each)))
    assert each.recipe == one.recipe


def planted_halves() -> tuple[Aligned, Rows]:
    """Return a buyer that knows the last layer of a truth, a seller that knows the first."""
    architecture = Architecture("mlp", {"widths": [6, 8, 1]})
    truth = random_init(architecture, 1)
    other = random_init(architecture, 2)
    first = {name for name in truth if name.startswith("layers.0")}
    buyer, seller = (
        {name: (truth if (name in first) is knows else other)[name] for name in truth}
        for knows in (False, True)
    )
    inputs_RF = torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    rows = Rows(inputs_RF, apply(architecture, truth, inputs_RF).squeeze(1))
    return matched(model(architecture, buyer), model(architecture, seller)), rows


def test_of_two_models_each_good_in_one_layer_the_good_layers_are_taken() -> None:
    aligned, rows = planted_halves()
    merged = run("layer-alpha", [aligned], rows)
    alphas = merged.detail["alphas"]
    assert isinstance(alphas, list)
    assert alphas == pytest.approx([ONE, 0], abs=0.1 * ONE)
    one = run("lerp", [aligned], rows)
    losses = [mean_loss(aligned.buyer, tensors_of(found), rows) for found in (one, merged)]
    assert losses[1] < losses[0] / 20
    assert merged.recipe is not None
    sold = aligned.seller.tensors
    again = apply_recipe(aligned.buyer.architecture, aligned.buyer.tensors, sold, merged.recipe)
    assert weights_root(again) == weights_root(dict(tensors_of(merged)))


def test_a_layer_of_a_model_that_is_sold_whole_is_a_module() -> None:
    assert layer_alpha.layers_of(LINEAR, ["weight", "bias"]) == (("bias", "weight"),)
    assert layer_alpha.layers_of(SMALL, ["layers.2.bias", "layers.0.weight"]) == (
        ("layers.0.weight",),
        ("layers.2.bias",),
    )


def test_a_move_that_fewer_rows_praise_is_not_taken_on_trust(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aligned, rows = planted_halves()
    buyer = aligned.buyer
    monkeypatch.setattr(coordinates, "halving_brent", lambda curve: Millionths(ONE))

    def make(shares: Sequence[Millionths]) -> dict[str, torch.Tensor]:
        return interpolate(buyer.tensors, random_init(buyer.architecture, 5), shares[0])

    start = [Millionths(0)]
    assert mean_loss(buyer, make([Millionths(ONE)]), rows) > mean_loss(buyer, make(start), rows)
    assert coordinates.descend(buyer, rows, make, start).shares == (0,)


def test_the_gain_of_a_merge_is_the_paired_one_of_the_scored_rows(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    aligned = matched(*pair, "weight-matching")
    choice, scored = digits_rows(validation)
    merged = run("regmean", [aligned], choice)
    before_R, after_R = (
        row_losses(aligned.buyer.architecture, tensors, scored.inputs_RF, scored.targets_R)
        for tensors in (aligned.buyer.tensors, tensors_of(merged))
    )
    expected = paired_gain(before_R, after_R)
    found = score(merged, [aligned], scored).gain
    assert found.gain == pytest.approx(expected.gain, abs=2)
    assert found.bound == pytest.approx(expected.bound, abs=2)


def refused(reason: str, act: Callable[..., object], *given: Any) -> None:
    with pytest.raises(MergeError) as refusal:
        act(*given)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("method", sorted(ANY))
def test_what_cannot_be_merged_is_refused_by_name_in_every_method(method: str) -> None:
    aligned, rows, base = small_case(method)
    first = aligned[0]
    sold = dict(first.transformed)
    strange: list[tuple[str, list[Aligned]]] = [
        ("no-sellers", []),
        ("duplicate-seller", [first, first]),
        ("mismatch", [*aligned, matched(started(SMALL, 7), started(SMALL, 8))]),
        ("mismatch", [replace(first, seller=started(LINEAR, 1))]),
        ("mismatch", [replace(first, transformed={})]),
        ("mismatch", [replace(first, transformed=sold | {"more": torch.ones(1)})]),
        ("mismatch", [replace(first, transformed=sold | {"layers.0.bias": torch.ones(1)})]),
        ("mismatch", [replace(first, transformed=sold | {"layers.2.bias": torch.ones(3).half()})]),
    ]
    for bad in (float("nan"), float("inf")):
        poisoned = replace(first, transformed=sold | {"layers.2.bias": torch.full((3,), bad)})
        strange.append(("not-finite", [poisoned]))
    for reason, pairs in strange:
        refused(reason, run, method, pairs, rows, base)
    shapes = Architecture("random", {"shapes": {"a": [2]}})
    tensors = [model(shapes, {"a": torch.tensor([float(n), 1.0])}) for n in (1, 2)]
    refused("computes-nothing", run, method, [matched(tensors[0], tensors[1])], rows, base)
    refused("wrong-rows", run, method, aligned, rows_for(LINEAR), base)
    foreign = Rows(rows.inputs_RF, rows.targets_R + 1)
    refused("wrong-rows", run, method, aligned, foreign, base)
    values = Rows(rows.inputs_RF, rows.inputs_RF[:, 0])
    refused("wrong-rows", run, method, aligned, values, base)


@pytest.mark.parametrize("method", sorted(ONE_SELLER))
def test_a_method_for_one_seller_refuses_several(method: str) -> None:
    aligned, rows, _ = small_case("fusion")
    refused("several-sellers", run, method, aligned, rows)


@pytest.mark.parametrize("method", sorted(NEEDS_BASE))
def test_differences_from_a_base_cannot_be_had_without_one(method: str) -> None:
    aligned, rows, _ = small_case(method)
    refused("no-base", run, method, aligned, rows)
    refused("mismatch", run, method, aligned, rows, started(LINEAR, 1))
    part = model(SMALL, started(SMALL, 9).tensors, layers=(0,))
    refused("mismatch", run, method, aligned, rows, part)


def test_a_merge_that_overflows_is_refused_and_not_returned() -> None:
    aligned, rows, _ = small_case("fisher")
    huge = {name: torch.full_like(t, 3e38) for name, t in aligned[0].transformed.items()}
    pairs = [replace(pair, transformed=huge) for pair in aligned]
    buyer = replace(aligned[0].buyer, tensors={n: t.clone() for n, t in huge.items()})
    pairs = [replace(pair, buyer=buyer) for pair in pairs]
    refused("not-finite", run, "fisher", pairs, rows)


def test_rows_that_can_choose_nothing_are_refused_by_name() -> None:
    inputs_RF = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    classes_R = torch.arange(6) % 3
    for reason, wrong in (
        ("no-rows", (inputs_RF[:0], classes_R[:0])),
        ("no-rows", (inputs_RF[:1], classes_R[:1])),
        ("one-class-rows", (inputs_RF, torch.ones(6, dtype=torch.int64))),
        ("one-class-rows", (inputs_RF, torch.ones(6))),
        ("wrong-rows", (inputs_RF, classes_R[:5])),
        ("wrong-rows", (inputs_RF, classes_R - 1)),
        ("wrong-rows", (inputs_RF.double(), classes_R)),
        ("wrong-rows", (inputs_RF, classes_R.int())),
        ("wrong-rows", (inputs_RF[:, 0], classes_R)),
        ("not-finite", (inputs_RF / 0, classes_R)),
        ("not-finite", (inputs_RF, torch.tensor([0.0, 1, 2, 3, 4, float("nan")]))),
    ):
        refused(reason, Rows, *wrong)
