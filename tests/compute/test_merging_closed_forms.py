"""Merge methods against closed forms and sums by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional

from broker_node.evaluate.affine import grams
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.gain import paired_gain
from broker_node.mechanisms.fusion import fuse_layers
from broker_node.merge import fisher, regmean, ties
from broker_node.merge.pairs import mean_loss
from broker_node.merge.scoring import answers, score
from broker_node.merge.stages import Rows
from node.params.architecture import FAMILIES, Architecture, apply, random_init
from node.params.encoding import weights_root
from node.params.families.mlp import Mlp
from node.params.fusion import fuse_merges
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from tests.compute.merging_cases import (
    LINEAR,
    SMALL,
    VALUES,
    linear_values,
    matched,
    model,
    rows_for,
    run,
    share_of,
    small_case,
    started,
    tensors_of,
)


def least_squares(inputs_RF: torch.Tensor, targets_RO: torch.Tensor) -> torch.Tensor:
    solution_FO: torch.Tensor = torch.linalg.lstsq(inputs_RF, targets_RO).solution
    return solution_FO


def test_regmean_of_two_least_squares_is_the_least_squares_of_all_data() -> None:
    generator = torch.Generator().manual_seed(1)
    sets = [
        (
            torch.randn(rows, 4, generator=generator, dtype=torch.float64),
            torch.randn(rows, 2, generator=generator, dtype=torch.float64),
        )
        for rows in (30, 50)
    ]
    merged = regmean.regression_mean(
        [least_squares(*data) for data in sets], [x.T @ x for x, _ in sets]
    )
    pooled = least_squares(torch.cat([x for x, _ in sets]), torch.cat([y for _, y in sets]))
    torch.testing.assert_close(merged, pooled, rtol=1e-6, atol=1e-8)


def test_where_the_rows_say_nothing_regmean_is_the_plain_mean() -> None:
    weights = [torch.full((2, 3), value, dtype=torch.float64) for value in (1.0, 5.0)]
    blind = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    merged = regmean.regression_mean(weights, [blind, 3 * blind])
    torch.testing.assert_close(merged[0], torch.full((3,), 4.0).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(merged[1], torch.full((3,), 3.0).double(), rtol=1e-6, atol=0)
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    torch.testing.assert_close(
        regmean.regression_mean(weights, [nothing, nothing]), torch.full((2, 3), 3.0).double()
    )


def test_regmean_fits_a_hidden_layer_to_what_enters_it_in_each_model() -> None:
    pairs, rows, _ = small_case("regmean")
    merged = tensors_of(run("regmean", pairs, rows))
    models = [pairs[0].buyer.tensors, *(pair.transformed for pair in pairs)]
    left, right = torch.zeros(9, 9).double(), torch.zeros(9, 5).double()
    for tensors in models:
        hidden = functional.relu(
            functional.linear(rows.inputs_RF, tensors["layers.0.weight"], tensors["layers.0.bias"])
        )
        ones = torch.ones(len(hidden), 1)
        x = torch.cat((hidden, ones), dim=1).double()
        gram = x.T @ x
        gram = regmean.KEPT * gram + (1 - regmean.KEPT) * torch.diag(gram.diagonal())
        weights = torch.cat((tensors["layers.1.weight"].T, tensors["layers.1.bias"][None]))
        left += gram
        right += gram @ weights.double()
    expected = torch.linalg.solve(left, right)
    torch.testing.assert_close(merged["layers.1.weight"], expected[:8].T.float())
    torch.testing.assert_close(merged["layers.1.bias"], expected[8].float())


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_who_sells_one_layer_has_no_say_in_another(method: str) -> None:
    buyer, rows = started(SMALL, 1), rows_for(SMALL)
    first, second = (
        matched(buyer, model(SMALL, started(SMALL, seed).tensors, layers=(layer,)))
        for seed, layer in ((2, 0), (3, 1))
    )
    both, alone = run(method, [first, second], rows), run(method, [second], rows)
    for name in second.transformed:
        torch.testing.assert_close(
            tensors_of(both)[name], tensors_of(alone)[name], rtol=1e-3, atol=1e-3
        )
    if method == "regmean":
        assert (both.detail["regressed"], alone.detail["regressed"]) == (2, 1)


@dataclass(frozen=True)
class Pictures:
    """Images of 2 x 5 x 5, one convolution of stride 2, its mean over places, and one number."""

    def config(self) -> dict[str, object]:
        return {}

    def layout(self) -> Any:
        return Mlp((3, 3)).layout()

    def input_width(self) -> int:
        return 50

    def forward(self, tensors: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor) -> torch.Tensor:
        images = inputs_RF.reshape(-1, 2, 5, 5)
        maps = functional.conv2d(images, tensors["w"], tensors["b"], stride=2, padding=1)
        return maps.flatten(1)


def test_the_inputs_of_a_convolution_are_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "pictures", lambda config: Pictures())
    architecture = Architecture("pictures", {})
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "w": torch.randn(4, 2, 3, 3, generator=generator),
        "b": torch.randn(4, generator=generator),
    }
    inputs_RF = torch.randn(700, 50, generator=generator)
    ((use, gram_FF),) = grams(architecture, tensors, inputs_RF).items()
    assert (use.weight, use.bias) == ("w", "b")
    weights = torch.cat((tensors["w"].flatten(1).T, tensors["b"][None])).double()
    energy = apply(architecture, tensors, inputs_RF).double().square().sum() / 700
    torch.testing.assert_close((weights.T @ gram_FF @ weights).trace(), energy)


def test_where_both_models_hang_on_a_parameter_alike_fisher_is_the_mean() -> None:
    buyer, seller = started(VALUES, 1), started(VALUES, 2)
    inputs_RF = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    rows = Rows(inputs_RF, inputs_RF[:, 0])
    merged = tensors_of(run("fisher", [matched(buyer, seller)], rows))
    for name, tensor in merged.items():
        mean = (buyer.tensors[name] + seller.tensors[name]) / 2
        torch.testing.assert_close(tensor, mean)


def test_fisher_weighs_by_information_by_hand() -> None:
    weights = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])]
    fishers = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])]
    merged = fisher.fisher_mean(weights, fishers, floor=1e-9)
    torch.testing.assert_close(merged, torch.tensor([1.5, 3.0, 2.0]).double())


def test_the_information_of_a_softmax_layer_is_p_times_one_minus_p_times_x_squared() -> None:
    tensors = random_init(LINEAR, 3)
    inputs_RF = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
    found = fisher.diagonal_fisher(
        LINEAR, tensors, inputs_RF, classes=True, wanted=["weight", "bias"]
    )
    p_RC = functional.softmax(apply(LINEAR, tensors, inputs_RF).double(), dim=1)
    spread_RC = p_RC * (1 - p_RC)
    torch.testing.assert_close(
        found["weight"], spread_RC.T @ inputs_RF.double().square() / 40, rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(found["bias"], spread_RC.mean(0), rtol=1e-5, atol=1e-9)


def test_fusion_is_equation_sixteen_to_the_bit_layer_by_layer() -> None:
    buyer = started(SMALL, 1)
    sellers = [started(SMALL, 2), model(SMALL, started(SMALL, 3).tensors, layers=(0,))]
    aligned = [matched(buyer, seller) for seller in sellers]
    rows = rows_for(SMALL)
    merged = run("fusion", aligned, rows)
    shares = merged.detail["shares"]
    assert isinstance(shares, list)
    lam = [share / ONE for share in shares if isinstance(share, int)]
    expected = fuse_layers(
        {name: tensor.numpy() for name, tensor in buyer.tensors.items()},
        [{name: t.numpy() for name, t in pair.transformed.items()} for pair in aligned],
        lam,
    )
    for name, tensor in tensors_of(merged).items():
        torch.testing.assert_close(tensor, torch.from_numpy(expected[name]), rtol=1e-6, atol=1e-7)


def test_fusion_of_several_is_no_worse_than_fusing_each_as_bought_alone() -> None:
    aligned, rows, _ = small_case("fusion")
    merged = run("fusion", aligned, rows)
    alone, shares = merged.detail["alone"], merged.detail["shares"]
    assert alone == [run("lerp", [one], rows).detail["alpha"] for one in aligned]
    buyer = aligned[0].buyer
    merges = [
        interpolate(buyer.tensors, pair.transformed, Millionths(alpha))
        for pair, alpha in zip(aligned, alone, strict=True)
        if isinstance(alpha, int)
    ]
    as_bought = fuse_merges(buyer.tensors, merges)
    before, after = (mean_loss(buyer, tensors, rows) for tensors in (as_bought, tensors_of(merged)))
    assert after < before
    assert shares != alone


def test_fusion_with_one_seller_is_the_lerp_with_its_recipe() -> None:
    aligned, rows, _ = small_case("lerp")
    fused, line = (run(method, aligned, rows) for method in ("fusion", "lerp"))
    assert fused.recipe == line.recipe
    assert fused.row_evaluations == line.row_evaluations
    assert weights_root(dict(tensors_of(fused))) == weights_root(dict(tensors_of(line)))


def test_skills_learned_apart_from_one_base_add_up() -> None:
    base = linear_values(1, 1, 1, 1)
    buyer, seller = linear_values(3, 1, 1, 1), linear_values(1, -4, 1, 1)
    inputs_RF = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    truth = torch.tensor([3.0, -4.0, 1.0, 1.0])
    rows = Rows(inputs_RF, inputs_RF @ truth)
    merged = run("task-arithmetic", [matched(buyer, seller)], rows, base)
    assert share_of(merged, "lambda") == 1
    torch.testing.assert_close(tensors_of(merged)["weight"], truth[None])


@pytest.mark.parametrize("scale", [0.5, 0.3])
def test_task_arithmetic_is_the_base_and_a_share_of_the_sum(scale: float) -> None:
    base = linear_values(1, 1, 1, 1)
    buyer, seller = linear_values(3, 1, 1, 2), linear_values(1, -4, 1, 2)
    inputs_RF = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    # base + scale · ((2, 0, 0, 1) + (0, -5, 0, 1))
    truth = torch.tensor([1 + 2 * scale, 1 - 5 * scale, 1, 1 + 2 * scale])
    merged = run(
        "task-arithmetic", [matched(buyer, seller)], Rows(inputs_RF, inputs_RF @ truth), base
    )
    assert share_of(merged, "lambda") == pytest.approx(scale, abs=0.02)
    torch.testing.assert_close(tensors_of(merged)["weight"], truth[None], rtol=0, atol=0.1)


def test_ties_trims_elects_and_averages_as_by_hand() -> None:
    vectors = [
        torch.tensor([4.0, -3.0, 1.0, 0.0, 0.5]),
        torch.tensor([2.0, 5.0, -1.0, 0.1, 0.0]),
        torch.tensor([-1.0, 0.0, 0.2, 6.0, -3.0]),
    ]
    # two of five are kept: (4, -3), (2, 5) and (6, -3); of the second entry the sum is 2 > 0
    merged = ties.ties_vector({"w": vectors}, kept=0.4)
    assert merged["w"].tolist() == [3.0, 5.0, 0.0, 6.0, -3.0]


def test_ties_trims_a_models_vector_over_all_its_tensors_together() -> None:
    parts = [torch.tensor([9.0, 8.0]), torch.tensor([1.0, -7.0])]
    cut = ties.trimmed(parts, 0.5)
    assert [part.tolist() for part in cut] == [[9.0, 8.0], [0.0, 0.0]]
    ten = ties.trimmed([torch.arange(1.0, 11.0)], ties.KEPT)
    assert ten[0].tolist() == [0.0] * 8 + [9.0, 10.0]


def test_ties_moves_the_base_along_the_elected_mean() -> None:
    base = linear_values(1, 1, 1, 1)
    buyer, seller = linear_values(3, 1, 1, 1.5), linear_values(5, 0, 1, 1)
    inputs_RF = torch.randn(50, 4, generator=torch.Generator().manual_seed(4))
    # one of five entries is kept, (2) and (4): the mean is 3 in the first place
    rows = Rows(inputs_RF, inputs_RF @ torch.tensor([5.5, 1.0, 1.0, 1.0]))
    merged = run("ties", [matched(buyer, seller)], rows, base)
    assert share_of(merged, "lambda") == pytest.approx(1.5, abs=0.04)
    weights = tensors_of(merged)["weight"]
    assert weights[0, 0] == pytest.approx(1 + 3 * share_of(merged, "lambda"), rel=1e-6)
    assert weights[0, 1:].tolist() == [1.0, 1.0, 1.0]


def test_an_ensemble_answers_with_the_mean_probability() -> None:
    aligned, rows, _ = small_case("ensemble")
    merged = run("ensemble", aligned, rows)
    members = [aligned[0].buyer.tensors, *(pair.transformed for pair in aligned)]
    p_RC = torch.stack(
        [functional.softmax(apply(SMALL, m, rows.inputs_RF).double(), dim=1) for m in members]
    ).mean(0)
    found = answers(merged, aligned, rows.inputs_RF, classes=True)
    torch.testing.assert_close(found.exp(), p_RC)
    figure = score(merged, aligned, rows)
    after_R = -p_RC[torch.arange(len(rows)), rows.targets_R].log()
    before_R = row_losses(SMALL, members[0], rows.inputs_RF, rows.targets_R)
    assert figure.gain == paired_gain(before_R, after_R)
    assert figure.row_evaluations == 4 * len(rows)
    assert merged.row_evaluations == 0


def test_an_ensemble_of_values_answers_with_their_mean() -> None:
    aligned = [matched(linear_values(1, 0, 0, 0), linear_values(3, 0, 0, 0))]
    inputs_RF = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    rows = Rows(inputs_RF, 2 * inputs_RF[:, 0])
    merged = run("ensemble", aligned, rows)
    found = answers(merged, aligned, inputs_RF, classes=False)
    torch.testing.assert_close(found[:, 0], 2 * inputs_RF[:, 0].double())
    assert score(merged, aligned, rows).gain.gain == pytest.approx(ONE, abs=1)
