"""A learner of any module of an operator's own, by the same steps as the paper's perceptron.

The module itself is trained, in training mode, so that dropout drops and batch normalisation sees
batches and keeps its statistics. What there is of a state between epochs is the parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch.nn import functional

from node.params.alone import drawing
from node.params.families.own import OwnModule, OwnTokens
from node.protocol.errors import LocalProtocolError
from node.training.mlp import MlpTrainer, trainer_of_rows
from node.training.trainer import Task, TrainedEpoch

MOMENTUM: Final = 0.9
LEAST_BATCH: Final = 2
"""Batch normalisation knows no spread of a single row."""


class ModuleTrainer(MlpTrainer):
    """Trains a module; batches, their order and the rate are those of the perceptron's settings."""

    def train_epoch(self, parameters: Mapping[str, torch.Tensor], epoch: int) -> TrainedEpoch:
        """Return what an epoch makes of the parameters. Raises `ArchitectureError`."""
        model = self.architecture.model
        assert isinstance(model, OwnModule)
        order_R = torch.from_numpy(self.batch_order(epoch))
        total, seen = 0.0, 0
        seeds = torch.Generator().manual_seed(self.seed + epoch)
        module = model.module_with(parameters).train()
        steps = torch.optim.SGD(
            module.parameters(), lr=self.settings.learning_rate, momentum=MOMENTUM
        )
        for batch_R in torch.split(order_R, self.settings.batch_rows):
            if len(batch_R) < LEAST_BATCH:
                continue
            steps.zero_grad()
            # what dropout drops: a step at a time, for nobody else draws meanwhile
            with drawing(int(torch.randint(2**62, (), generator=seeds))):
                logits_RC = model.run(module, self.inputs_RF[batch_R])
                loss = functional.cross_entropy(logits_RC, self.labels_R[batch_R])
                loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            total += loss.item() * len(batch_R)
            seen += len(batch_R)
        return TrainedEpoch(parameters=model.tensors_of(module), loss=total / max(1, seen))


def module_trainer(task: Task) -> ModuleTrainer:
    """Return the learner of the task's architecture; raises as `trainer_of_rows`.

    Raises `LocalProtocolError` if it names none, or one that is no module for rows of classes.
    """
    architecture = task.architecture
    if architecture is None:
        raise LocalProtocolError(
            "the trainer `module` has no model: name a JSON file of {name, config} in the setting "
            "`architecture`, and its function in `modules`"
        )
    if not isinstance(architecture.model, OwnModule) or isinstance(architecture.model, OwnTokens):
        raise LocalProtocolError(
            f"the trainer `module` trains modules of one's own, for rows of classes, and not "
            f"{architecture.text[:100]}"
        )
    trainer = trainer_of_rows(ModuleTrainer, task, architecture)
    features, width = trainer.inputs_RF.shape[1], architecture.model.input_width()
    if features != width:
        raise LocalProtocolError(
            f"{task.dataset} has rows of {features} features, and the module takes {width}"
        )
    return trainer
