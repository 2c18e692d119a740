"""What a trainer answers, and which trainers there are.

A trainer's whole state is its parameters: optimisers start afresh every epoch, batch order
is a function of the seed and the epoch. So an agent that is stopped goes on from its last
parameters and epoch number as if it had never been, and one that adopts bought parameters
needs to say nothing to its trainer.

An operator's own trainer is named ``package.module:factory``; the factory takes a `Task`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch

from node.params.architecture import Architecture
from node.protocol.errors import LocalProtocolError


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedEpoch:
    """Parameters after one pass over the agent's rows."""

    parameters: dict[str, torch.Tensor]
    loss: float
    """Mean training loss over the epoch, in nats a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How parameters do on the rows that are reported on."""

    accuracy: float
    """0 … 1."""
    loss: float
    """Nats a row."""


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


TrainerFactory = Callable[[Task], Trainer]


class TrainerError(LocalProtocolError):
    """A trainer that the operator named and that is not to be had."""


def _mlp(task: Task) -> Trainer:
    from node.training.mlp import mlp_trainer

    return mlp_trainer(task)


def _random(task: Task) -> Trainer:
    from node.training.noise import NoiseTrainer

    return NoiseTrainer(seed=task.seed, agent=task.agent)


TRAINERS: Final[dict[str, TrainerFactory]] = {"mlp": _mlp, "random": _random}
"""Built-in trainers by name; each is imported when it is first asked for."""


def build_trainer(name: str, task: Task) -> Trainer:
    """Return the trainer `name`, built-in or ``package.module:factory``.

    Raises `TrainerError` if there is none; what a factory raises is passed on.
    """
    if name in TRAINERS:
        return TRAINERS[name](task)
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise TrainerError(f"no trainer {name!r}; built in are {sorted(TRAINERS)}")
    try:
        factory: TrainerFactory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise TrainerError(f"cannot load trainer {name!r}: {error}") from error
    return factory(task)
