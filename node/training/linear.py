"""Linear regression under full gradient descent: the learner of Train 'n Trade §6.1.3.

An epoch is one step θ ← θ − η Xᵀ(Xθ − y)/n over all of the agent's rows, from θ = 0. The
study's model has no constant term: the bias of the family `linear` is left as it is, at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.data.split import Division, split_test
from node.params.architecture import Architecture, apply
from node.protocol.errors import LocalProtocolError
from node.training.trainer import Score, Task, TrainedEpoch

LEARNING_RATE: Final = 0.01


class LinearTrainer:
    """Fits `rows`, reports on `report`; losses are mean squared errors."""

    def __init__(self, *, rows: Rows, report: Rows, learning_rate: float = LEARNING_RATE) -> None:
        if len(rows) == 0 or len(report) == 0:
            raise LocalProtocolError("there are no rows to train or report on")
        self.architecture: Architecture = Architecture(
            "linear", {"inputs": int(rows.inputs_RF.shape[1]), "outputs": 1}
        )
        self._learning_rate = learning_rate
        self._inputs_RF, self._values_R = _tensors(rows)
        self._report_RF, self._report_values_R = _tensors(report)

    def initial(self) -> dict[str, torch.Tensor]:
        inputs = self._inputs_RF.shape[1]
        return {"weight": torch.zeros(1, inputs), "bias": torch.zeros(1)}

    @torch.inference_mode()
    def train_epoch(self, parameters: Mapping[str, torch.Tensor], epoch: int) -> TrainedEpoch:
        if epoch < 0:
            raise LocalProtocolError(f"epoch must be at least 0, got {epoch}")
        residuals_R = self._residuals(parameters, self._inputs_RF, self._values_R)
        gradient_F = residuals_R @ self._inputs_RF / len(residuals_R)
        return TrainedEpoch(
            parameters={
                "weight": parameters["weight"] - self._learning_rate * gradient_F,
                "bias": parameters["bias"].clone(),
            },
            loss=float(residuals_R.double().square().mean()),
        )

    @torch.inference_mode()
    def evaluate(self, parameters: Mapping[str, torch.Tensor]) -> Score:
        residuals_R = self._residuals(parameters, self._report_RF, self._report_values_R)
        return Score(accuracy=0.0, loss=float(residuals_R.double().square().mean()))

    def _residuals(
        self,
        parameters: Mapping[str, torch.Tensor],
        inputs_RF: torch.Tensor,
        values_R: torch.Tensor,
    ) -> torch.Tensor:
        return apply(self.architecture, parameters, inputs_RF).squeeze(1) - values_R


def _tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.values_R.copy())


def division_of(task: Task, dataset: Dataset) -> Division:
    """Return who holds which rows. Raises `DataError` if they have classes instead of values."""
    if dataset.kind != "regression":
        raise DataError(f"the trainer `linear` fits values, and {dataset.name} has classes")
    return Division(dataset=dataset, agents=task.agents, seed=task.seed, rule=task.endowment)


def linear_trainer(task: Task) -> LinearTrainer:
    """Return the study's learner for this agent's share of the task's data.

    All agents start from the same weights. Raises `DataError` if the data set has classes
    instead of values, or cannot be shared out as the task says (`division_of`).
    """
    dataset = load(task.dataset, task.data_folder, seed=task.seed)
    return LinearTrainer(
        rows=division_of(task, dataset).rows_of(task.agent),
        report=split_test(dataset, protocol=task.protocol).report,
    )
