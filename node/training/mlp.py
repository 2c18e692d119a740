"""The paper's learner: a multilayer perceptron under plain stochastic gradient descent.

Settings for MNIST are those of Train 'n Trade (§5.1 and its authors' configuration): widths
784-32-32-32-16-10, learning rate .01, no momentum, batches of 512, every agent short of half
of the classes. Fashion-MNIST is trained in the same way. For CIFAR-10 and TinyImageNet this is
a perceptron on pixels too: it does learn, but no convolution should be compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from torch.nn import functional

from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.data.split import Division, ScarceClasses, split_test
from node.params.architecture import Architecture, apply, random_init
from node.protocol.errors import LocalProtocolError
from node.training.trainer import Score, Task, TrainedEpoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train; the hidden widths stand between the features and the classes."""

    hidden: tuple[int, ...]
    learning_rate: float
    batch_rows: int
    scarce_percent: int
    """What an agent holds of its scarce classes, where its task names no endowment."""


_PAPER: Final = Settings(
    hidden=(32, 32, 32, 16), learning_rate=0.01, batch_rows=512, scarce_percent=10
)
SETTINGS: Final[dict[str, Settings]] = {
    "mnist": _PAPER,
    "fashion": _PAPER,
    # an epoch of digits has 50 times fewer rows than one of MNIST: smaller, bolder steps
    "digits": Settings(hidden=(32, 16), learning_rate=0.05, batch_rows=16, scarce_percent=5),
    # colours and more classes: wider layers, and smaller batches for steps enough in an epoch
    "cifar10": Settings(
        hidden=(256, 128, 64), learning_rate=0.01, batch_rows=128, scarce_percent=10
    ),
    "tiny-imagenet": Settings(
        hidden=(256, 256), learning_rate=0.01, batch_rows=128, scarce_percent=10
    ),
}
"""By data set."""


class MlpTrainer:
    """Trains on `rows`, reports on `report`; deterministic under `seed` on one machine."""

    def __init__(
        self,
        *,
        rows: Rows,
        report: Rows,
        classes: int,
        settings: Settings,
        seed: int,
        architecture: Architecture | None = None,
    ) -> None:
        """`architecture`: another one than the paper's perceptron, that takes and answers alike."""
        features = int(rows.inputs_RF.shape[1])
        self.architecture: Architecture = architecture or Architecture(
            "mlp", {"widths": [features, *settings.hidden, classes]}
        )
        self.settings = settings
        self.seed = seed
        self.inputs_RF, self.labels_R = _tensors(rows)
        self._report_RF, self._report_labels_R = _tensors(report)

    def initial(self) -> dict[str, torch.Tensor]:
        return random_init(self.architecture, self.seed)

    def train_epoch(self, parameters: Mapping[str, torch.Tensor], epoch: int) -> TrainedEpoch:
        names = list(parameters)
        current = {
            name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()
        }
        order_R = torch.from_numpy(self.batch_order(epoch))
        total = 0.0
        for batch_R in torch.split(order_R, self.settings.batch_rows):
            logits_RC = apply(self.architecture, current, self.inputs_RF[batch_R])
            loss = functional.cross_entropy(logits_RC, self.labels_R[batch_R])
            gradients = torch.autograd.grad(loss, [current[name] for name in names])
            with torch.no_grad():
                for name, gradient in zip(names, gradients, strict=True):
                    current[name] -= self.settings.learning_rate * gradient
            total += loss.item() * len(batch_R)
        return TrainedEpoch(
            parameters={name: tensor.detach() for name, tensor in current.items()},
            loss=total / len(order_R),
        )

    @torch.inference_mode()
    def evaluate(self, parameters: Mapping[str, torch.Tensor]) -> Score:
        logits_RC = apply(self.architecture, parameters, self._report_RF)
        labels_R = self._report_labels_R
        return Score(
            accuracy=float((logits_RC.argmax(1) == labels_R).double().mean()),
            loss=float(functional.cross_entropy(logits_RC.double(), labels_R)),
        )

    def batch_order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the rows of an epoch in the order of their batches."""
        if epoch < 0:
            raise LocalProtocolError(f"epoch must be at least 0, got {epoch}")
        key = np.random.SeedSequence([self.seed, 2, epoch])
        generator = np.random.Generator(np.random.Philox(key))
        return generator.permutation(len(self.labels_R)).astype(np.int64)


def _tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    if len(rows) == 0:
        raise LocalProtocolError("there are no rows to train or report on")
    return torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())


def division_of(task: Task, dataset: Dataset) -> Division:
    """Return who holds which rows of the task's data: everybody a whole batch at least.

    Raises `DataError` if the data set has no classes.
    """
    settings = _settings(dataset)
    return Division(
        dataset=dataset,
        agents=task.agents,
        seed=task.seed,
        rule=task.endowment or ScarceClasses(percent=settings.scarce_percent),
        least_rows=settings.batch_rows,
    )


def _settings(dataset: Dataset) -> Settings:
    if dataset.name not in SETTINGS:
        raise DataError(f"the trainer `mlp` learns classes, and {dataset.name} has none to learn")
    return SETTINGS[dataset.name]


T = TypeVar("T", bound=MlpTrainer)


def trainer_of_rows(kind: type[T], task: Task, architecture: Architecture | None = None) -> T:
    """Return a learner for this agent's share of the task's data.

    Agents start from different weights: each has a seed of its own, drawn from the task's.
    Raises `DataError` if the data set is not there, has no classes, or cannot be shared out as
    the task says (`division_of`).
    """
    dataset = load(task.dataset, task.data_folder, seed=task.seed)
    return kind(
        rows=division_of(task, dataset).rows_of(task.agent),
        report=split_test(dataset, protocol=task.protocol).report,
        classes=dataset.classes,
        settings=_settings(dataset),
        seed=int(np.random.SeedSequence([task.seed, 3, task.agent]).generate_state(1)[0]),
        architecture=architecture,
    )


def mlp_trainer(task: Task) -> MlpTrainer:
    """Return the paper's learner; raises as `trainer_of_rows`."""
    return trainer_of_rows(MlpTrainer, task)
