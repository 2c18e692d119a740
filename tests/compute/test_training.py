from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from node.data.rows import Rows
from node.data.split import Dirichlet
from node.params.architecture import layout
from node.params.encoding import layout_of, weights_root
from node.protocol.errors import LocalProtocolError
from node.training.mlp import SETTINGS, MlpTrainer, Settings, mlp_trainer
from node.training.noise import NoiseTrainer
from node.training.registry import TrainerError, build_trainer
from node.training.trainer import Task, Trainer
from tests.data.small import write_cifar, write_tiny_imagenet

TASK = Task(dataset="digits", data_folder=Path("/nowhere"), agent=0, agents=2, seed=1)


def run(trainer: Trainer, tensors: dict[str, torch.Tensor], first: int, last: int) -> bytes:
    for epoch in range(first, last):
        tensors = trainer.train_epoch(tensors, epoch).parameters
    return weights_root(tensors)


def test_training_makes_the_model_better() -> None:
    trainer = build_trainer("mlp", TASK)
    tensors = trainer.initial()
    before = trainer.evaluate(tensors)
    for epoch in range(10):
        trained = trainer.train_epoch(tensors, epoch)
        tensors = trained.parameters
    after = trainer.evaluate(tensors)
    assert before.accuracy < 0.25
    assert after.accuracy > 0.45
    assert after.loss < before.loss
    assert trained.loss < 0.5
    assert layout_of(tensors) == layout(trainer.architecture)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_a_restart_goes_on_as_if_it_had_never_been() -> None:
    whole = build_trainer("mlp", TASK)
    root = run(whole, whole.initial(), 0, 4)
    tensors = whole.initial()
    for epoch in range(2):
        tensors = whole.train_epoch(tensors, epoch).parameters
    assert run(build_trainer("mlp", TASK), tensors, 2, 4) == root


def test_what_is_trained_upon_stays_as_it_is() -> None:
    trainer = build_trainer("mlp", TASK)
    tensors = trainer.initial()
    root = weights_root(tensors)
    trainer.train_epoch(tensors, 0)
    assert weights_root(tensors) == root
    assert weights_root(trainer.initial()) == root


def test_agents_begin_apart_and_batches_differ_by_epoch() -> None:
    ours = build_trainer("mlp", TASK)
    theirs = build_trainer(
        "mlp", Task(dataset="digits", data_folder=Path(), agent=1, agents=2, seed=1)
    )
    assert weights_root(ours.initial()) != weights_root(theirs.initial())
    start = ours.initial()
    assert run(ours, start, 0, 1) != run(ours, start, 1, 2)


def test_one_step_is_plain_gradient_descent() -> None:
    rows = Rows(
        inputs_RF=np.array([[1.0, -2.0], [0.5, 3.0]], dtype=np.float32),
        targets_R=np.array([0, 1], dtype=np.int64),
    )
    settings = Settings(hidden=(3,), learning_rate=0.1, batch_rows=2, scarce_percent=10)
    trainer = MlpTrainer(rows=rows, report=rows, classes=2, settings=settings, seed=0)
    start = trainer.initial()
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    names = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
    for name, parameter in zip(names, module.parameters(), strict=True):
        parameter.data = start[name].clone()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    logits_RC = module(torch.from_numpy(rows.inputs_RF.copy()))
    loss = torch.nn.functional.cross_entropy(logits_RC, torch.tensor([0, 1]))
    torch.autograd.backward(loss)
    optimiser.step()
    trained = trainer.train_epoch(start, 0)
    assert trained.loss == pytest.approx(loss.item())
    for name, parameter in zip(names, module.parameters(), strict=True):
        torch.testing.assert_close(trained.parameters[name], parameter.data)


@pytest.mark.parametrize("dataset", ["cifar10", "tiny-imagenet"])
def test_pixels_of_colour_images_are_learned_from(tmp_path: Path, dataset: str) -> None:
    if dataset == "cifar10":
        write_cifar(tmp_path / dataset, records=64)
    else:
        write_tiny_imagenet(tmp_path / dataset, images_each=130)
    trainer = build_trainer(
        "mlp", Task(dataset=dataset, data_folder=tmp_path, agent=1, agents=2, seed=1)
    )
    tensors = trainer.initial()
    losses = []
    for epoch in range(12):
        trained = trainer.train_epoch(tensors, epoch)
        tensors = trained.parameters
        losses.append(trained.loss)
    assert losses[-1] < losses[5] < losses[0]
    assert layout_of(tensors) == layout(trainer.architecture)
    assert 0 <= trainer.evaluate(tensors).accuracy <= 1


def test_fashion_is_trained_on_as_mnist_is() -> None:
    assert SETTINGS["fashion"] == SETTINGS["mnist"]


def test_an_agent_trains_on_what_its_task_says() -> None:
    tasks = [
        Task(
            dataset="digits",
            data_folder=Path("/nowhere"),
            agent=agent,
            agents=16,
            seed=37,  # whose first division leaves one of them half a batch
            endowment=Dirichlet(concentration=0.5),
            protocol="paper",
        )
        for agent in range(16)
    ]
    trainers = [mlp_trainer(task) for task in tasks]
    assert sum(len(trainer.labels_R) for trainer in trainers) == 1197
    assert min(len(trainer.labels_R) for trainer in trainers) >= SETTINGS["digits"].batch_rows
    assert {len(trainer._report_labels_R) for trainer in trainers} == {600}


def test_epochs_count_from_zero() -> None:
    trainer = build_trainer("mlp", TASK)
    with pytest.raises(LocalProtocolError):
        trainer.train_epoch(trainer.initial(), -1)


def test_noise_is_new_every_epoch_and_the_same_for_a_seed() -> None:
    first, again = NoiseTrainer(seed=1, agent=0), NoiseTrainer(seed=1, agent=0)
    start = first.initial()
    epoch = first.train_epoch(start, 0).parameters
    assert weights_root(start) != weights_root(epoch)
    assert weights_root(again.train_epoch(again.initial(), 0).parameters) == weights_root(epoch)
    other = NoiseTrainer(seed=1, agent=1)
    assert weights_root(other.initial()) != weights_root(start)
    assert layout_of(epoch) == layout(first.architecture)


def test_an_operators_own_trainer_is_loaded_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_trainer")
    module.make = lambda task: NoiseTrainer(seed=task.seed, agent=task.agent)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_trainer", module)
    assert isinstance(build_trainer("somebodys_trainer:make", TASK), NoiseTrainer)


@pytest.mark.parametrize("name", ["nothing", "no.such.module:make", "json:no_such_factory"])
def test_a_trainer_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(TrainerError, match=name.replace(".", r"\.")):
        build_trainer(name, TASK)
