"""What a trainer answers.

A trainer's whole state is its parameters: optimisers start afresh every epoch, batch order
is a function of the seed and the epoch. So an agent that is stopped goes on from its last
parameters and epoch number as if it had never been, and one that adopts bought parameters
needs to say nothing to its trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from node.data.split import Endowment, SplitProtocol
from node.params.architecture import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an agent is asked to train: enough for any factory to build the same trainer."""

    dataset: str
    """A name that `node.data` knows."""
    data_folder: Path
    agent: int
    """This agent's number, 0 … agents - 1: decides which rows it holds."""
    agents: int
    seed: int
    endowment: Endowment | None = None
    """How rows are shared out; None: as the paper does, or as the data set was made."""
    protocol: SplitProtocol = "clean"
    """Which of the rows to test with are reported on."""
    architecture: Architecture | None = None
    """What the trainer `module` trains; others have their own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedEpoch:
    """Parameters after one pass over the agent's rows."""

    parameters: dict[str, torch.Tensor]
    loss: float
    """Mean training loss over the epoch, in nats a row; of values, their mean squared error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How parameters do on the rows that are reported on."""

    accuracy: float
    """0 … 1; always 0 where there are no classes, and the loss alone says anything."""
    loss: float
    """Nats a row; of values, their mean squared error."""


class Trainer(Protocol):
    """Something that makes parameters better. Calls may take long; none of them awaits."""

    @property
    def architecture(self) -> Architecture:
        """What the parameters are of; fixed for the trainer's life."""

    def initial(self) -> dict[str, torch.Tensor]:
        """Return the parameters before the first epoch; the same at every call."""

    def train_epoch(self, parameters: Mapping[str, torch.Tensor], epoch: int) -> TrainedEpoch:
        """Return what epoch number `epoch` makes of `parameters`, which stay as they are."""

    def evaluate(self, parameters: Mapping[str, torch.Tensor]) -> Score:
        """Return how `parameters` do on rows that nobody trains on or prices by."""
