"""What the search for α costs in rows, and what it loses, against the paper's grid.

Two agents are trained on MNIST (on digits where MNIST was not fetched), aligned at several
epochs, and each search chooses α on the same rows. The regret is measured on rows that no
search saw: the loss at the chosen α over the lowest loss of a grid of 101 values, minus 1.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from broker_node.align.stages import Aligned
from broker_node.align.weight_matching import weight_matching
from broker_node.evaluate.curve import LossCurve
from broker_node.evaluate.search import SEARCHES
from broker_node.evaluate.validation import draw_rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.data.clean import clean_split
from node.data.datasets import Rows, load
from node.data.files import DataError
from node.params.encoding import weights_root
from node.protocol.types import ONE, Digest, Millionths
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer

FOLDER: Final = Path(__file__).resolve().parent.parent / ".data"
BASELINE: Final = "paper-grid"
NAMES: Final = ("halving-brent", BASELINE)
"""The searches that look for the bottom of any curve."""
EPOCHS: Final = {"mnist": (6, 10, 15), "digits": (6, 12, 24)}
SEEDS: Final = (1, 2, 3)
DRAWS: Final = 2


def _dataset() -> str:
    try:
        load("mnist", FOLDER)
    except DataError:
        return "digits"
    return "mnist"


def _verified(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(
            weights_root=weights_root(tensors),
            architecture=trainer.architecture,
            tensors=tensors,
        )
    )


def _pairs(dataset: str) -> Iterator[Aligned]:
    """Yield both directions of every pair of agents, at every epoch that is looked at."""
    for seed in SEEDS:
        trainers = [
            build_trainer(
                "mlp", Task(dataset=dataset, data_folder=FOLDER, agent=agent, agents=2, seed=seed)
            )
            for agent in (0, 1)
        ]
        tensors = [trainer.initial() for trainer in trainers]
        for epoch in range(max(EPOCHS[dataset])):
            tensors = [
                trainer.train_epoch(current, epoch).parameters
                for trainer, current in zip(trainers, tensors, strict=True)
            ]
            if epoch + 1 in EPOCHS[dataset]:
                ours, theirs = map(_verified, trainers, tensors)
                yield weight_matching(ours, theirs, seed=epoch)
                yield weight_matching(theirs, ours, seed=epoch)


def _curve(aligned: Aligned, rows: Rows) -> LossCurve:
    return LossCurve(
        aligned.buyer.architecture,
        aligned.buyer.tensors,
        aligned.transformed,
        torch.from_numpy(rows.inputs_RF.copy()),
        torch.from_numpy(rows.labels_R.copy()),
    )


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread."""
    torch.set_num_threads(1)
    dataset = _dataset()
    halves = clean_split(load(dataset, FOLDER))
    half = len(halves.validation) // 2
    costs: dict[str, list[float]] = {name: [] for name in NAMES}
    regrets: dict[str, list[float]] = {name: [] for name in NAMES}
    for aligned in _pairs(dataset):
        unseen = _curve(aligned, halves.report)
        total = len(unseen)
        lowest = min(unseen.loss(Millionths(k * ONE // 100), total) for k in range(101))
        for draw in range(DRAWS):
            seed = Digest(hashlib.sha256(bytes([draw])).digest())
            drawn = draw_rows(seed, 2 * half, choice=half, score=half)
            for name in NAMES:
                curve = _curve(aligned, halves.validation.take(drawn.choice))
                loss = unseen.loss(SEARCHES[name](curve), total)
                costs[name].append(curve.row_evaluations)
                regrets[name].append(loss / min(lowest, loss) - 1)
    measured: list[dict[str, Any]] = []
    for name in NAMES:
        for what, unit, values in (
            ("rows evaluated a search", "rows", costs),
            ("regret on unseen rows", "relative loss", regrets),
        ):
            mean, baseline = statistics.mean(values[name]), statistics.mean(values[BASELINE])
            measured.append(
                {
                    "case": f"{dataset} {name}, {what}",
                    "value": mean,
                    "unit": unit,
                    "against": None if name == BASELINE else BASELINE,
                    "ratio": None if name == BASELINE or baseline == 0 else mean / baseline,
                }
            )
    return measured
