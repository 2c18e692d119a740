"""What models answered to shared rows tells of their merges, before one of them is made."""

from __future__ import annotations

import math

import pytest
import torch

from broker_node.evaluate.answers import ALL, ALONG, Answers, Line, controlled
from broker_node.evaluate.curve import LossCurve, outputs_of, row_losses
from node.params.architecture import Architecture, random_init
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from tests.compute.test_aligners import SMALL, disguised, rows_for
from tests.compute.test_crowd import TEACHER, biased

ROWS = 200
HALF = Millionths(ONE // 2)
INPUTS_RF = rows_for(SMALL, ROWS, seed=3)
TARGETS_R = torch.randint(0, 3, (ROWS,), generator=torch.Generator().manual_seed(4))
Models = list[dict[str, torch.Tensor]]


def models(architecture: Architecture = SMALL) -> Models:
    return [dict(random_init(architecture, seed)) for seed in (1, 2)]


def line_of(
    ends: Models,
    architecture: Architecture = SMALL,
    inputs_RF: torch.Tensor = INPUTS_RF,
    targets_R: torch.Tensor = TARGETS_R,
) -> Line:
    answers_NRO = torch.stack([outputs_of(architecture, one, inputs_RF) for one in ends])
    curve = LossCurve(architecture, ends[0], ends[1], inputs_RF, targets_R)
    return Line(Answers(answers_NRO, targets_R), (0, 1), curve)


def losses(
    ends: Models, alphas: tuple[Millionths, ...], targets_R: torch.Tensor = TARGETS_R
) -> dict[Millionths, float]:
    return {
        alpha: float(
            row_losses(SMALL, interpolate(ends[0], ends[1], alpha), INPUTS_RF, targets_R).mean()
        )
        for alpha in alphas
    }


def test_of_linear_models_the_mean_of_the_answers_is_the_merge_and_nothing_need_be_measured() -> (
    None
):
    linear = Architecture("linear", {"inputs": 6, "outputs": 1})
    ends = models(linear)
    inputs_RF = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))
    wanted = interpolate(ends[0], ends[1], Millionths(3 * ONE // 10))
    targets_R = outputs_of(linear, wanted, inputs_RF).squeeze(1).float()
    line = line_of(ends, linear, inputs_RF, targets_R)
    loss, alpha = line.lowest(0)
    assert alpha == 3 * ONE // 10
    assert loss == pytest.approx(0, abs=1e-9)
    assert line.lowest(1) == (loss, 7 * ONE // 10)


def test_where_all_rows_were_measured_the_line_says_what_they_are() -> None:
    ends = models()
    line = line_of(ends)
    truly = losses(ends, ALONG)
    assert sum(line.measure(0, alpha, ROWS) for alpha in ALONG) == ROWS * len(ALONG)
    assert line.told(0, ROWS) == pytest.approx(truly)
    own = losses(ends, (ALL,))[ALL]
    assert line.lowest(0)[0] == pytest.approx(min(*truly.values(), own))


def test_a_barrier_that_was_measured_at_a_few_places_is_expected_between_them() -> None:
    # errors that cancel in the mean of the answers, and units that do not stand side by side
    ends = [dict(biased(10).tensors), dict(disguised(biased(-10), 4).tensors)]
    targets_R = outputs_of(SMALL, TEACHER.tensors, INPUTS_RF).argmax(1)
    blind, told = (line_of(ends, targets_R=targets_R) for _ in range(2))
    truly = losses(ends, (*ALONG, ALL), targets_R)
    hoped, hoping = blind.lowest(0)
    assert hoped < 0.5 * truly[hoping]
    for alpha in (ALONG[0], HALF, ALONG[-1]):
        told.measure(0, alpha, ROWS)
    expected, where = told.lowest(0)
    assert truly[where] == pytest.approx(min(truly.values()), rel=0.1)
    assert expected == pytest.approx(truly[where], rel=0.1)


def test_what_was_measured_for_the_one_is_told_to_the_other_from_its_own_side() -> None:
    ends = models()
    line = line_of(ends)
    alpha, beyond = Millionths(ONE // 5), Millionths(4 * ONE // 5)
    assert line.measure(0, alpha, 50) == 50
    assert line.measure(1, beyond, 50) == 0
    assert line.told(1, 50) == {beyond: line.told(0, 50)[alpha]}
    assert line.told(0, 51) == {}
    assert line.measure(1, beyond, 80) == 30
    assert (line.other(0), line.other(1)) == (1, 0)
    turned = line_of(ends[::-1])
    turned.measure(0, beyond, 80)
    assert turned.told(0, 80) == pytest.approx(line.told(1, 80), rel=1e-5)


def test_where_merges_overflow_nothing_is_expected_of_them() -> None:
    line = line_of(models())
    for alpha in ALONG[::2]:
        line.know(alpha, torch.full((20,), math.inf, dtype=torch.float64))
    (told,) = {*line.told(0, 20).values()}
    assert told == math.inf
    assert line.lowest(0)[1] == ALL
    line.know(HALF, torch.zeros(20, dtype=torch.float64))
    assert line.lowest(0) == (line.told(0, 20)[HALF], HALF)


def test_where_the_mean_of_the_answers_is_no_number_buying_outright_is_what_is_left() -> None:
    sure_NRO = torch.zeros(2, ROWS, 3)
    sure_NRO[:, :, 0] = -math.inf
    answers = Answers(sure_NRO, torch.ones_like(TARGETS_R))
    ends = models()
    line = Line(answers, (0, 1), LossCurve(SMALL, ends[0], ends[1], INPUTS_RF, TARGETS_R))
    line.measure(0, HALF, 20)
    loss, alpha = line.lowest(0)
    assert loss == pytest.approx(math.log(2))
    assert alpha == ALL


def test_answers_that_are_no_numbers_promise_nothing() -> None:
    broken_NRO = torch.zeros(2, ROWS, 3)
    broken_NRO[1] = math.nan
    answers = Answers(broken_NRO, TARGETS_R)
    assert math.isnan(answers.alone(1))
    assert answers.promise(0, [1], (HALF,), ROWS).tolist() == [[math.inf]]


def test_what_few_rows_say_is_mended_by_what_is_known_of_all() -> None:
    generator = torch.Generator().manual_seed(5)
    like_R = torch.rand(400, generator=generator, dtype=torch.float64) ** 4
    losses_R = like_R + 0.1
    told = controlled(losses_R[:20], like_R)
    assert told == pytest.approx(float(losses_R.mean()), abs=1e-12)
    assert abs(float(losses_R[:20].mean()) - float(losses_R.mean())) > 1e-3
    nothing_R = torch.full((400,), 0.5, dtype=torch.float64)
    assert controlled(losses_R[:20], nothing_R) == float(losses_R[:20].mean())
    assert controlled(losses_R[:20], losses_R * math.nan) == float(losses_R[:20].mean())
    assert controlled(losses_R[:20] * math.inf, like_R) == math.inf
