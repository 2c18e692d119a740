"""The control: what a buyer gains by the broker's labels alone."""

from __future__ import annotations

import pytest
import torch

from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate import tuning
from broker_node.evaluate.curve import training_loss
from broker_node.evaluate.tuning import tuned, tuned_gain
from broker_node.evaluate.validation import ValidationSet, require_classes
from broker_node.scanning import scan_of
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, random_init
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest
from tests.protocol import cast

SEED = Digest(bytes(32))
Pair = tuple[Verified, Verified]


def test_labels_alone_make_a_poor_model_better_and_say_when_to_stop(
    pair: Pair, validation: ValidationSet
) -> None:
    base = pair[0]
    gain = tuned_gain(
        base.architecture, base.tensors, validation, seed=SEED, choice_rows=200, score_rows=100
    )
    assert gain.gain > 0
    again = tuned_gain(
        base.architecture, base.tensors, validation, seed=SEED, choice_rows=200, score_rows=100
    )
    assert again == gain


def test_a_model_that_labels_make_worse_is_left_as_it_is_and_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Architecture("mlp", {"widths": [4, 8, 2]})
    start = random_init(net, 0)
    rows_RF = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    targets_R = torch.zeros(64, dtype=torch.int64)
    targets_R[48:] = 1  # what is fitted to is the opposite of what says when to stop
    passes: list[int] = []

    def counted(outputs_RO: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        passes.append(len(outputs_RO))
        return training_loss(outputs_RO, wanted)

    monkeypatch.setattr(tuning, "training_loss", counted)
    found = tuned(net, start, rows_RF, targets_R, seed=0)
    assert found.epochs == 0
    assert found.tensors is start
    assert passes == [48] * tuning.PATIENCE


def test_values_are_fitted_by_squares() -> None:
    net = Architecture("linear", {"inputs": 4, "outputs": 1})
    rows_RF = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    rows = ValidationSet(rows_RF, rows_RF.sum(1))
    gain = tuned_gain(net, random_init(net, 0), rows, seed=SEED, choice_rows=200, score_rows=200)
    assert gain.gain > 0


def test_too_few_rows_and_too_large_models_are_refused(
    pair: Pair, validation: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tensors = pair[0].architecture, pair[0].tensors
    rows_RF, targets_R = validation.inputs_RF, validation.targets_R
    with pytest.raises(LocalProtocolError, match="7 rows"):
        tuned(net, tensors, rows_RF[:7], targets_R[:7], seed=0)
    with pytest.raises(LocalProtocolError, match="too many"):
        tuned(net, tensors, rows_RF, targets_R, seed=0, work=1e3)

    # a trial has no such control then, and fails by nothing
    monkeypatch.setattr(tuning, "TRIAL_WORK", 1e3)
    trial = MarketAppraiser(validation, classes=10, tune=True).measure(
        *pair, task="digits", notice=(cast.NOTICE_DIGEST, cast.NOTICE)
    )
    assert trial.tuned is None


def test_the_control_changes_nothing_that_is_signed(pair: Pair, validation: ValidationSet) -> None:
    plain, controlled = (
        MarketAppraiser(validation, classes=10, tune=tune).measure(
            *pair, task="digits", notice=(cast.NOTICE_DIGEST, cast.NOTICE)
        )
        for tune in (False, True)
    )
    assert (plain.tuned, plain.evaluation) == (None, controlled.evaluation)
    assert controlled.tuned is not None
    assert controlled.recipe == plain.recipe


def test_a_broker_with_rows_of_one_class_does_not_open(validation: ValidationSet) -> None:
    require_classes(validation)
    same = ValidationSet(validation.inputs_RF, torch.full_like(validation.targets_R, 3))
    with pytest.raises(LocalProtocolError, match=r"^one-class: all .* have the target 3"):
        require_classes(same)


def test_the_merge_of_a_trial_is_looked_at_and_never_said_to_be_safe(
    pair: Pair, validation: ValidationSet
) -> None:
    trial = MarketAppraiser(validation, classes=10).measure(
        *pair, task="digits", notice=(cast.NOTICE_DIGEST, cast.NOTICE)
    )
    seen = scan_of(trial, *pair, validation.inputs_RF)
    assert seen.verdict in ("found", "not found")
    assert seen.rows == min(512, len(validation))
    unseen = scan_of(trial, *pair, None)
    assert (unseen.verdict, unseen.found) == ("not scanned", ("no rows",))
