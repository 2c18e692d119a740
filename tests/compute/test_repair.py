"""REPAIR: a merge whose units answer with the spread of both models' units."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.validation import ValidationSet
from broker_node.merge.repair import repaired, repaired_curve, spreads
from broker_node.merge.stages import MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, layout, random_init
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from tests.compute.merging_cases import (
    SMALL,
    digits_rows,
    matched,
    model,
    rows_for,
    run,
    share_of,
    started,
    tensors_of,
)

ALPHA = Millionths(300_000)


def before_activation(
    tensors: Mapping[str, torch.Tensor], rows_RF: torch.Tensor
) -> list[torch.Tensor]:
    """What every hidden unit answers before ReLU, layer after layer."""
    found, values_RU = [], rows_RF.double()
    for at in range(2):
        weight, bias = (tensors[f"layers.{at}.{part}"].double() for part in ("weight", "bias"))
        found.append(functional.linear(values_RU, weight, bias))
        values_RU = found[-1].relu()
    return found


def mean_of(values_RU: torch.Tensor) -> torch.Tensor:
    return values_RU.mean(0)


def spread_of(values_RU: torch.Tensor) -> torch.Tensor:
    return values_RU.std(0, correction=0)


def pair_of(seed: int = 1) -> tuple[Aligned, Rows]:
    return matched(started(SMALL, seed), started(SMALL, seed + 1)), rows_for(SMALL, 200)


def made(aligned: Aligned, rows: Rows, alpha: Millionths) -> dict[str, torch.Tensor]:
    chain = aligned.buyer.architecture.model.affine_chain()
    ends = tuple(
        spreads(chain, side, rows.inputs_RF)
        for side in (aligned.buyer.tensors, aligned.transformed)
    )
    merged = interpolate(aligned.buyer.tensors, aligned.transformed, alpha)
    return repaired(
        chain, merged, (ends[0], ends[1]), alpha, rows.inputs_RF, sold=set(aligned.transformed)
    )


def test_every_units_mean_and_spread_on_the_rows_lie_between_those_of_the_ends() -> None:
    aligned, rows = pair_of()
    tensors = made(aligned, rows, ALPHA)
    plain = interpolate(aligned.buyer.tensors, aligned.transformed, ALPHA)
    ours, theirs, found, without = (
        before_activation(side, rows.inputs_RF)
        for side in (aligned.buyer.tensors, aligned.transformed, tensors, plain)
    )
    for at in range(2):
        for figure in (mean_of, spread_of):
            wanted_U = 0.7 * figure(ours[at]) + 0.3 * figure(theirs[at])
            torch.testing.assert_close(figure(found[at]), wanted_U, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(without[at].std(0), found[at].std(0), rtol=0.05)
    # what reads no unit of a merge is no unit's business
    assert torch.equal(tensors["layers.2.weight"], plain["layers.2.weight"])


def test_at_either_end_it_is_the_model_itself_to_the_byte() -> None:
    aligned, rows = pair_of()
    for alpha, end in ((0, aligned.buyer.tensors), (ONE, aligned.transformed)):
        tensors = made(aligned, rows, Millionths(alpha))
        assert all(torch.equal(tensors[name], tensor) for name, tensor in end.items())


def test_a_model_merged_with_itself_stays_itself() -> None:
    _, rows = pair_of()
    same = matched(started(SMALL, 1), started(SMALL, 1))
    for name, tensor in made(same, rows, ALPHA).items():
        torch.testing.assert_close(tensor, same.buyer.tensors[name], rtol=1e-5, atol=1e-6)


def test_units_that_are_constant_in_the_merge_are_shifted_alone() -> None:
    tensors = random_init(SMALL, 1)
    tensors["layers.0.weight"][2] = 0
    aligned = matched(
        model(SMALL, tensors), model(SMALL, {**tensors, "layers.0.bias": torch.ones(8)})
    )
    rows = rows_for(SMALL)
    found = made(aligned, rows, ALPHA)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    assert not found["layers.0.weight"][2].any()
    wanted = 0.7 * tensors["layers.0.bias"][2] + 0.3
    torch.testing.assert_close(found["layers.0.bias"][2], wanted)


def test_alpha_is_that_of_the_repaired_line_and_labels_have_no_say_in_a_repair() -> None:
    aligned, rows = pair_of()
    merged = run("repair", [aligned], rows)
    alpha = Millionths(round(share_of(merged, "alpha") * ONE))
    assert merged.recipe is None
    wanted = made(aligned, rows, alpha)
    assert all(torch.equal(tensors_of(merged)[name], tensor) for name, tensor in wanted.items())
    chain = SMALL.model.affine_chain()
    curve = repaired_curve(aligned, chain, rows)
    losses_R = row_losses(SMALL, made(aligned, rows, ALPHA), rows.inputs_RF, rows.targets_R)
    torch.testing.assert_close(curve.losses(ALPHA, 200), losses_R)
    assert curve.loss(alpha, 200) <= min(curve.loss(Millionths(k), 200) for k in (0, ONE // 2, ONE))
    other = repaired_curve(aligned, chain, Rows(rows.inputs_RF, (rows.targets_R + 1) % 3))
    for name, tensor in curve.model(ALPHA).items():
        assert torch.equal(other.model(ALPHA)[name], tensor)


def test_looking_at_rows_is_counted_as_running_them() -> None:
    aligned, rows = pair_of()
    curve = repaired_curve(aligned, SMALL.model.affine_chain(), rows)
    assert curve.row_evaluations == 2 * 200  # both ends
    curve.loss(ALPHA, 50)
    curve.loss(ALPHA, 120)
    assert curve.row_evaluations == 3 * 200 + 120
    curve.loss(Millionths(0), 10)
    assert curve.row_evaluations == 3 * 200 + 130


def test_units_of_unlike_models_are_no_longer_silenced_by_the_mean(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    aligned = matched(*pair, "weight-matching")
    choice, _ = digits_rows(validation)
    half = Millionths(ONE // 2)
    plain = interpolate(aligned.buyer.tensors, aligned.transformed, half)
    fixed = repaired_curve(aligned, aligned.buyer.architecture.model.affine_chain(), choice)
    loss = float(
        row_losses(aligned.buyer.architecture, plain, choice.inputs_RF, choice.targets_R).mean()
    )
    assert fixed.loss(half, len(choice)) < loss


def test_a_network_of_convolutions_is_refused_by_name() -> None:
    small = {"classes": 3, "depth": 10, "image": [1, 4, 4], "widen": 1}
    network = Architecture("resnet", small)
    aligned = matched(started(network, 1), started(network, 2))
    with pytest.raises(MergeError, match="`resnet` is no chain") as refusal:
        run("repair", [aligned], rows_for(network))
    assert refusal.value.reason == "no-chain"


def test_built_in_families_keep_no_running_figures_that_could_be_reset() -> None:
    with pytest.raises(MergeError, match="no-running-figures: `mlp`"):
        run("reset", [matched(started(SMALL, 1), started(SMALL, 2))], rows_for(SMALL))
    of_family: dict[str, dict[str, object]] = {
        "mlp": {"widths": [4, 3, 2]},
        "linear": {"inputs": 4, "outputs": 2},
        "resnet": {"classes": 3, "depth": 10, "image": [1, 4, 4], "widen": 1},
        "random": {"shapes": {"a": [2]}},
    }
    for name, config in of_family.items():
        tensors = layout(Architecture(name, config))
        assert not any("running" in spec.name for spec in tensors)
