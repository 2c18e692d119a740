"""What a buyer's model gains by itself is told apart from what it gains by a purchase."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_node.align.registry import ALIGNERS
from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.control import LARGEST_FACTOR, MOST_ROWS, best_factor, own_gain
from broker_node.evaluate.curve import losses_of, outputs_of
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.gain import Gain
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.agent.strategies.lemon import spoilt
from node.params.architecture import Architecture
from node.params.encoding import weights_root
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Digest
from tests.protocol import cast

SEED = Digest(hashlib.sha256(b"trial").digest())
LINEAR = Architecture("linear", {"inputs": 3, "outputs": 1})


def scaled(model: Verified, factor: float) -> Verified:
    """The same model with its answers multiplied: by its last layer."""
    last = max(name.rpartition(".")[0] for name in model.tensors)
    tensors = {
        name: tensor * factor if name.startswith(last) else tensor
        for name, tensor in model.tensors.items()
    }
    return model_of(model.architecture, tensors)


def model_of(architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def control_of(model: Verified, validation: ValidationSet) -> Gain:
    half = len(validation) // 2
    return own_gain(
        model.architecture,
        model.tensors,
        validation,
        seed=SEED,
        choice_rows=half,
        score_rows=len(validation) - half,
    )


def test_a_model_that_is_too_sure_of_itself_gains_by_being_less_sure() -> None:
    """It says e³ : 1, and is right three times in four: ln 3 is what it should say."""
    outputs_RO = torch.tensor([[3.0, 0.0]] * 4, dtype=torch.float64)
    targets_R = torch.tensor([0, 0, 0, 1])
    assert best_factor(outputs_RO, targets_R) == pytest.approx(1.0986 / 3, abs=1e-3)


def test_of_values_the_factor_is_that_of_least_squares() -> None:
    outputs_RO = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    targets_R = torch.tensor([0.5, 2.0, 1.0])
    assert best_factor(outputs_RO, targets_R) == pytest.approx(3.5 / 6, abs=1e-3)


@given(seed=st.integers(0, 2**32), size=st.floats(0.01, 30))
def test_no_factor_of_a_fine_grid_loses_less_than_the_best(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs_RO = size * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    targets_R = torch.randint(4, (40,), generator=generator)

    def loss(factor: float) -> float:
        return float(losses_of(factor * outputs_RO, targets_R).mean())

    grid = [k * LARGEST_FACTOR / 400 for k in range(401)]
    best = min(map(loss, grid))
    found = loss(best_factor(outputs_RO, targets_R))
    assert found <= loss(1.0)
    assert found <= best + 1e-6


def test_on_the_same_rows_a_calibrated_model_gains_nothing_more_by_itself(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    """Choice and score on all rows: once by the factor, and then there is none that is better."""
    ours, rows = pair[0], len(validation)
    outputs_RO = outputs_of(ours.architecture, ours.tensors, validation.inputs_RF)
    factor = best_factor(outputs_RO, validation.targets_R)

    def gain(model: Verified) -> int:
        return own_gain(
            model.architecture, model.tensors, validation,
            seed=SEED, choice_rows=rows, score_rows=rows,
        ).gain  # fmt: skip

    assert gain(ours) > 50_000
    assert 0 <= gain(scaled(ours, factor)) < 100
    assert gain(scaled(ours, 2.0)) > gain(ours)


def test_the_factor_is_chosen_and_scored_on_different_rows(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    """Rows that choose no α choose no factor: what they say changes the score alone."""
    ours, half = pair[0], len(validation) // 2
    drawn = draw_rows(SEED, len(validation), choice=half, score=len(validation) - half)
    chosen_R, scored_R = torch.from_numpy(drawn.choice), torch.from_numpy(drawn.score)
    outputs_RO = outputs_of(ours.architecture, ours.tensors, validation.inputs_RF)
    factor = best_factor(outputs_RO[chosen_R], validation.targets_R[chosen_R])
    targets_R = validation.targets_R[scored_R]
    before, after = (
        float(losses_of(k * outputs_RO[scored_R], targets_R).mean()) for k in (1.0, factor)
    )
    assert control_of(ours, validation).gain / ONE == pytest.approx(1 - after / before, abs=1e-5)


def test_what_a_lemon_gains_its_buyer_could_have_had_by_itself(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    """A model that is trained does better than that; none at all, and weights in disorder, not.

    One disorder may be luckier than another: lemons are held to it on average.
    """
    ours, theirs = pair
    control = control_of(ours, validation).gain

    def gain(tensors: Mapping[str, torch.Tensor]) -> int:
        sold = model_of(ours.architecture, tensors)
        aligned = ALIGNERS["weight-matching"](ours, sold, seed=1)
        return evaluate(aligned, validation, seed=SEED).gain

    nothing = gain({name: torch.zeros_like(t) for name, t in theirs.tensors.items()})
    lemons = [gain(spoilt(theirs.tensors, draw=Digest(bytes([k] * 32)))) for k in range(8)]
    assert gain(theirs.tensors) > 2 * control > 60_000
    assert nothing == pytest.approx(control, abs=30_000)
    assert statistics.mean(lemons) < control + 40_000


def test_the_control_is_beside_what_is_signed_and_changes_none_of_it(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    plain, controlled = (
        MarketAppraiser(validation, classes=10, control=control).measure(
            *pair, task="digits", notice=(cast.NOTICE_DIGEST, cast.NOTICE)
        )
        for control in (False, True)
    )
    assert plain.control is None
    found = controlled.evaluation
    assert (found, controlled.recipe) == (plain.evaluation, plain.recipe)
    own = own_gain(
        pair[0].architecture, pair[0].tensors, validation,
        seed=found.seed, choice_rows=found.choice_rows, score_rows=found.score_rows,
    )  # fmt: skip
    assert controlled.control == own.gain != 0
    assert own.loss_before == found.loss_before


def test_no_more_rows_than_one_number_needs_are_asked() -> None:
    """Rows past the bound are wrong on purpose, and the factor does not hear of them."""
    count = 2 * MOST_ROWS
    drawn = draw_rows(SEED, count + 2, choice=count, score=2)
    targets_R = torch.zeros(count + 2)
    inputs_RF = torch.zeros(count + 2, 3)
    inputs_RF[:, 0] = 1
    targets_R[torch.from_numpy(drawn.choice[:MOST_ROWS])] = 0.5
    targets_R[torch.from_numpy(drawn.choice[MOST_ROWS:])] = 99.0
    targets_R[torch.from_numpy(drawn.score)] = 0.5
    tensors = {"weight": torch.tensor([[1.0, 0.0, 0.0]]), "bias": torch.zeros(1)}
    rows = ValidationSet(inputs_RF, targets_R)
    found = own_gain(LINEAR, tensors, rows, seed=SEED, choice_rows=count, score_rows=2)
    assert found.gain / ONE == pytest.approx(1, abs=1e-4)


def test_a_model_of_values_that_answers_more_than_one_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="2 outputs"):
        best_factor(torch.ones(4, 2, dtype=torch.float64), torch.ones(4))
