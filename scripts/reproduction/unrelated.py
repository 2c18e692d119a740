"""Two agents that train perceptrons on tasks which are moved apart, and try each other's weights.

B's task is A's with its images turned, or with the meanings of some of its classes exchanged in a
cycle. Each is short of half of the images' classes, as in the paper; both train alone at first,
and then trade in rounds by the market's own alignment, α search and clean split. A trial is made
on rows of its buyer's task, and a purchase made where the gain's bound is over zero.

Beside each trial stand two that can teach nothing: of the buyer's own weights in disorder (a
lemon), and of weights of zero, which shrink the buyer's own. What a buyer that is too sure of
itself gains by these is no gain from the other's task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.evaluation import Evaluated, evaluate
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.agent.strategies.lemon import spoilt
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.rows import CLASSES, Dataset, Rows
from node.data.streams import stream
from node.devnet.floor import run_seed
from node.params.encoding import weights_root
from node.params.recipe import apply_recipe
from node.protocol.evaluation import trial_seed
from node.protocol.types import ONE, Digest
from node.training.mlp import SETTINGS, MlpTrainer, division_of
from node.training.trainer import Task
from scripts.reproduction.engine import Json
from scripts.reproduction.seeds import Given

Tensors = dict[str, torch.Tensor]
MNIST, DIGITS, QUICK = "mnist", "digits", "quick"
"""Variants; the last is the digits in little."""
ROTATION, PERMUTED = "rotation", "permuted"
"""The dials: degrees by which B's images are turned, percent of classes of another meaning."""
AGENTS: Final = 2
ALIGNMENT: Final = "weight-matching"
_CYCLE: Final = 11
"""Stream of the order in which classes change their meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is swept, and how long is trained and traded."""

    dataset: str
    rotations: tuple[int, ...]
    """Degrees, the first 0."""
    permuted: tuple[int, ...]
    """Percent of the classes, the first 0."""
    warmup_epochs: int
    """Before the first trade."""
    rounds: int
    epochs_per_round: int
    """After each trade."""


SIZES: Final[dict[str, Size]] = {
    MNIST: Size(
        dataset="mnist",
        rotations=(0, 45, 90, 180),
        permuted=(0, 20, 50, 100),
        warmup_epochs=30,
        rounds=10,
        epochs_per_round=1,
    ),
    DIGITS: Size(
        dataset="digits",
        rotations=(0, 15, 30, 45, 60, 90, 120, 150, 180),
        permuted=(0, 20, 40, 60, 80, 100),
        warmup_epochs=10,
        rounds=10,
        epochs_per_round=2,
    ),
    QUICK: Size(
        dataset="digits",
        rotations=(0, 90, 180),
        permuted=(0, 50, 100),
        warmup_epochs=5,
        rounds=3,
        epochs_per_round=1,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How far a task is from A's."""

    rotation: int = 0
    """Degrees, counterclockwise."""
    permuted: int = 0
    """Percent of the classes, to whole classes and never one alone."""


def moves(size: Size) -> list[Move]:
    """Return every place of the two dials once: they begin at the same one."""
    turned = [Move(rotation=degrees) for degrees in size.rotations]
    return [*turned, *(Move(permuted=percent) for percent in size.permuted if percent)]


# ── a task that is moved ──


def moved(rows: Rows, move: Move, seed: int) -> Rows:
    """Return `rows` of the task that is `move` away."""
    if move == Move():
        return rows
    inputs_RF = turned(rows.inputs_RF, move.rotation) if move.rotation else rows.inputs_RF
    return Rows(inputs_RF=inputs_RF, targets_R=meanings(move.permuted, seed)[rows.labels_R])


def turned(inputs_RF: NDArray[np.float32], degrees: int) -> NDArray[np.float32]:
    """Return square images turned about their middle, bilinear, on their darkest value."""
    side = math.isqrt(inputs_RF.shape[1])
    found_RHW = ndimage.rotate(
        inputs_RF.reshape(-1, side, side),
        degrees,
        axes=(2, 1),
        reshape=False,
        order=1,
        cval=float(inputs_RF.min()),
    )
    return np.ascontiguousarray(found_RHW.reshape(inputs_RF.shape), dtype=np.float32)


def meanings(percent: int, seed: int) -> NDArray[np.int64]:
    """Return the label of each of ten classes where `percent` of them stand in a cycle.

    The classes that are in it at one percentage are in it at every higher one.
    """
    cycle = stream(seed, _CYCLE).permutation(CLASSES)[: round(CLASSES * percent / 100)]
    found_C = np.arange(CLASSES, dtype=np.int64)
    found_C[cycle] = np.roll(cycle, 1)
    return found_C


# ── the agents ──


class Agent:
    """One agent of a task, and the rows of this task on which its trials are made."""

    def __init__(self, dataset: Dataset, number: int, seed: int, given: Given, move: Move) -> None:
        task = Task(
            dataset=dataset.name,
            data_folder=given.data_folder,
            agent=number,
            agents=AGENTS,
            seed=seed,
        )
        held_out = clean_split(dataset)
        self.trainer = MlpTrainer(
            rows=moved(division_of(task, dataset).rows_of(number), move, seed),
            report=moved(held_out.report, move, seed),
            classes=dataset.classes,
            settings=SETTINGS[dataset.name],
            seed=int(np.random.SeedSequence([seed, 3, number]).generate_state(1)[0]),
        )
        self.validation = ValidationSet.of(moved(held_out.validation, move, seed))

    def trained(self, held: Tensors, first: int, epochs: int) -> Tensors:
        """Return `held` after `epochs` more, the first of which has the index `first`."""
        for epoch in range(first, first + epochs):
            held = self.trainer.train_epoch(held, epoch).parameters
        return held

    def accuracy(self, held: Tensors) -> float:
        """Return the percent of its task's rows that it knows."""
        return 100 * self.trainer.evaluate(held).accuracy

    def verified(self, tensors: Mapping[str, torch.Tensor]) -> Verified:
        architecture = self.trainer.architecture
        root = weights_root(tensors)
        return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


@dataclass(frozen=True, slots=True)
class Alone:
    """An agent that never trades."""

    warm: Tensors
    """Before the first trade."""
    accuracy: float
    """At the end, percent."""


def alone(agent: Agent, size: Size) -> Alone:
    warm = agent.trained(agent.trainer.initial(), 0, size.warmup_epochs)
    end = agent.trained(warm, size.warmup_epochs, size.rounds * size.epochs_per_round)
    return Alone(warm, agent.accuracy(end))


# ── trade ──


def tried(base: Verified, sold: Verified, validation: ValidationSet, seed: Digest) -> Evaluated:
    """Return what the market's trial finds, on the half of the rows that did not choose α."""
    aligned = ALIGNERS[ALIGNMENT](base, sold, seed=int.from_bytes(seed[:8], "big"))
    return evaluate(aligned, validation, seed=seed)


def sure(found: Evaluated) -> bool:
    """Return whether it would be bought."""
    return found.alpha > 0 and found.gain > 0 and found.bound > 0


def market(agents: Sequence[Agent], warm: Sequence[Tensors], size: Size, seed: int) -> Json:
    """Return each agent's trials round by round, and its accuracy at the end, in percent.

    Both trade what they have at the start of the round, and train after it.
    """
    held, epoch = list(warm), size.warmup_epochs
    trials: list[list[Json]] = [[] for _ in agents]
    for _ in range(size.rounds):
        bases = [agent.verified(own) for agent, own in zip(agents, held, strict=True)]
        for number, agent in enumerate(agents):
            base, sold = bases[number], bases[1 - number]
            draw = trial_seed(run_seed(seed), base.weights_root, sold.weights_root)
            found = tried(base, sold, agent.validation, draw)
            worthless = {
                "lemon": spoilt(held[number], draw=base.weights_root),
                "shrunk": {name: torch.zeros_like(own) for name, own in held[number].items()},
            }
            # on the same rows, so that they can be compared trial by trial
            controls = {
                name: tried(base, agent.verified(goods), agent.validation, draw)
                for name, goods in worthless.items()
            }
            trials[number].append(
                {
                    "alpha": found.alpha / ONE,
                    **{name: told(one) for name, one in {"gain": found, **controls}.items()},
                }
            )
            if sure(found):
                held[number] = apply_recipe(
                    agent.trainer.architecture, dict(base.tensors), sold.tensors, found.recipe
                )
        held = [
            agent.trained(own, epoch, size.epochs_per_round)
            for agent, own in zip(agents, held, strict=True)
        ]
        epoch += size.epochs_per_round
    ends = [agent.accuracy(own) for agent, own in zip(agents, held, strict=True)]
    return {"trials": trials, "market": ends}


def told(found: Evaluated) -> Json:
    """Return the percent of its loss that a trial spares its buyer, and whether surely."""
    return {"percent": 100 * found.gain / ONE, "sure": sure(found)}


# ── playing ──


def settings(variant: str) -> Json:
    """Return all on which figures depend but the seed, as JSON."""
    size = SIZES[variant]
    return {
        **dataclasses.asdict(size),
        "learning": dataclasses.asdict(SETTINGS[size.dataset]),
        "alignment": ALIGNMENT,
        "protocol": "clean",
        "trials": "scored on rows of the buyer's task",
    }


def play(seed: int, given: Given) -> Json:
    """Return, by place of the dials, what both agents came to alone and in the market."""
    torch.set_num_threads(1)
    size = SIZES[given.variant]
    dataset = load(size.dataset, given.data_folder, seed=seed)
    first = Agent(dataset, 0, seed, given, Move())
    first_alone = alone(first, size)
    sweep = []
    for move in moves(size):
        second = Agent(dataset, 1, seed, given, move)
        second_alone = alone(second, size)
        found = market((first, second), (first_alone.warm, second_alone.warm), size, seed)
        sweep.append(
            {
                **dataclasses.asdict(move),
                "alone": [first_alone.accuracy, second_alone.accuracy],
                **found,
            }
        )
    return {"sweep": sweep}
