"""Which trainers there are, by name; each is imported when it is first asked for.

An operator's own trainer is named ``package.module:factory``; the factory takes a `Task`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

from node.data.rows import Dataset
from node.data.split import Division
from node.protocol.errors import LocalProtocolError
from node.training.trainer import Task, Trainer

TrainerFactory = Callable[[Task], Trainer]


class TrainerError(LocalProtocolError):
    """A trainer that the operator named and that is not to be had."""


def _mlp(task: Task) -> Trainer:
    from node.training.mlp import mlp_trainer

    return mlp_trainer(task)


def _linear(task: Task) -> Trainer:
    from node.training.linear import linear_trainer

    return linear_trainer(task)


def _module(task: Task) -> Trainer:
    from node.training.module import module_trainer

    return module_trainer(task)


def _random(task: Task) -> Trainer:
    from node.training.noise import NoiseTrainer

    return NoiseTrainer(seed=task.seed, agent=task.agent)


TRAINERS: Final[dict[str, TrainerFactory]] = {
    "mlp": _mlp,
    "linear": _linear,
    "module": _module,
    "random": _random,
}
"""Built-in trainers by name; each is imported when it is first asked for."""


def _mlp_division(task: Task, dataset: Dataset) -> Division:
    from node.training.mlp import division_of

    return division_of(task, dataset)


def _linear_division(task: Task, dataset: Dataset) -> Division:
    from node.training.linear import division_of

    return division_of(task, dataset)


DIVISIONS: Final[dict[str, Callable[[Task, Dataset], Division]]] = {
    "mlp": _mlp_division,
    "module": _mlp_division,
    "linear": _linear_division,
}
"""How the built-in trainers that need rows have them dealt out, by name."""


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
