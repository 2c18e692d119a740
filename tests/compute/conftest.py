"""Small models that have learned something, trained once for all tests of compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from broker_node.align.registry import ALIGNERS
from broker_node.appraisal import MarketAppraiser, Trial
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.adapters import Base
from node.params.encoding import weights_root
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer
from tests.params.learned_adapters import PERCEPTRON, base_of, buyers, sellers, verified
from tests.protocol import cast

# the machine may be shared: property tests are not timed
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair() -> tuple[Verified, Verified]:
    """Two agents' models of digits: trained, merged once half and half, and trained on."""
    trainers = [
        build_trainer(
            "mlp",
            Task(dataset="digits", data_folder=Path("/nowhere"), agent=agent, agents=2, seed=5),
        )
        for agent in (0, 1)
    ]
    models = [trained(trainer, trainer.initial(), range(4)) for trainer in trainers]
    aligned = ALIGNERS["weight-matching"](models[0], models[1], seed=0)
    merged = interpolate(models[0].tensors, aligned.transformed, Millionths(ONE // 2))
    ours, theirs = (trained(trainer, merged, range(4, 12)) for trainer in trainers)
    return ours, theirs


def trained(trainer: Trainer, tensors: dict[str, torch.Tensor], epochs: range) -> Verified:
    for epoch in epochs:
        tensors = trainer.train_epoch(tensors, epoch).parameters
    return verify(
        Received(
            weights_root=weights_root(tensors),
            architecture=trainer.architecture,
            tensors=tensors,
        )
    )


@pytest.fixture(scope="session")
def validation() -> ValidationSet:
    """The broker's rows of digits."""
    return ValidationSet.of(split_test(load_digits(Path("/nowhere"))).validation)


@pytest.fixture(scope="session")
def perceptron_base() -> Base:
    """The perceptron that the adapters are of."""
    torch.set_num_threads(1)
    return base_of(PERCEPTRON)


@pytest.fixture(scope="session")
def adapter_appraiser(perceptron_base: Base, validation: ValidationSet) -> MarketAppraiser:
    """A broker's, of adapters of that base; it measures the control too."""
    return MarketAppraiser(validation, classes=10, base=perceptron_base, control=True)


@pytest.fixture(scope="session")
def adapter_pair(perceptron_base: Base) -> tuple[Verified, Verified]:
    """A buyer's adapters and a seller's, of one half of the digits each."""
    ours, theirs = (verified(each(PERCEPTRON), perceptron_base) for each in (buyers, sellers))
    return ours, theirs


@pytest.fixture(scope="session")
def adapter_trial(
    adapter_appraiser: MarketAppraiser, adapter_pair: tuple[Verified, Verified]
) -> Trial:
    """The sellers' tried on the buyers'."""
    notice = (cast.NOTICE_DIGEST, cast.NOTICE)
    return adapter_appraiser.measure(*adapter_pair, task="digits", notice=notice)
