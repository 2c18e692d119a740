"""One buyer that fuses sellers' weights into its own and trains on, seed by seed.

The parties' networks are trained each on its own rows (the sources). The buyer then fuses the
sellers' weights into its own by Eq. 16, one λ for all, and is fine-tuned on its own rows; λ = 0
and λ = 1 are not trained on, as in the paper. FedAvg starts from the sources' mean and averages
them after every epoch, weighted by rows. The buyer that just trains on alone is a control that
the paper leaves out: it says how much of a gain is the training's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch

from broker_node.mechanisms.fusion import fuse_layers
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.rows import Dataset, Rows
from node.data.streams import stream
from node.training.mlp import MlpTrainer, Settings
from scripts.reproduction.engine import Json
from scripts.reproduction.seeds import Given

SPLITS: Final[dict[str, tuple[int, ...]]] = {
    "4a": (30, 70),
    "4b": (40, 60),
    "4c": (50, 50),
    "5a": (15, 35, 50),
    "5b": (33, 33, 33),
    "5c": (50, 30, 20),
}
"""By figure: percent of the rows that the buyer holds, then each seller."""
LAMBDAS: Final = (0.25, 0.5, 0.75)
KEPT, REPLACED = "λ = 0", "λ = 1"
FEDAVG: Final = "FedAvg"
ALONE: Final = "alone, trained on"
SOURCE_EPOCHS: Final = 10
EPOCHS: Final = 50
ROWS: Final = 416
"""Of all parties: 41.6 a class, as Stanford Cars has (8,144 of 196 classes)."""
REPORT_ROWS: Final = 2_000
"""Test rows that accuracies are of, or all where there are fewer."""
RECIPE: Final = Settings(hidden=(64, 32), learning_rate=0.05, batch_rows=16, scarce_percent=0)
MNIST, DIGITS, APART = "mnist", "digits", "mnist-apart"
"""Variants; in the last every party starts from weights of its own, in the others from the same,
as networks that were fine-tuned from one base do."""

Parameters = dict[str, torch.Tensor]


def fused_name(share: float) -> str:
    return f"λ = {share:g}"


CURVES: Final = (
    KEPT,
    *(fused_name(share) for share in LAMBDAS),
    REPLACED,
    FEDAVG,
    ALONE,
)


def settings(variant: str) -> Json:
    """Return all on which figures depend but the seed, as JSON."""
    return {
        "dataset": DIGITS if variant == DIGITS else MNIST,
        "apart": variant == APART,
        "splits": {name: list(split) for name, split in SPLITS.items()},
        "lambdas": list(LAMBDAS),
        "rows": ROWS,
        "report_rows": REPORT_ROWS,
        "source_epochs": SOURCE_EPOCHS,
        "epochs": EPOCHS,
        "hidden": list(RECIPE.hidden),
        "learning_rate": RECIPE.learning_rate,
        "batch_rows": RECIPE.batch_rows,
    }


def play(seed: int, given: Given) -> Json:
    """Return every split's curves, accuracies in percent from before the first epoch on."""
    torch.set_num_threads(1)
    chosen = settings(given.variant)
    dataset = load(chosen["dataset"], given.data_folder)
    found: Json = {}
    for name, split in SPLITS.items():
        trainers = _trainers(dataset, split, seed, apart=chosen["apart"])
        found[name] = curves(trainers, dealt(split, ROWS))
    return {"curves": found}


def dealt(split: Sequence[int], rows: int) -> list[int]:
    """Return how many of `rows` each party holds."""
    return [rows * percent // sum(split) for percent in split]


def _trainers(
    dataset: Dataset, split: Sequence[int], seed: int, *, apart: bool
) -> list[MlpTrainer]:
    report = clean_split(dataset).report
    report = report.take(np.arange(min(len(report), REPORT_ROWS), dtype=np.int64))
    order = stream(seed, 81).permutation(len(dataset.train)).astype(np.int64)
    edges = np.cumsum([0, *dealt(split, ROWS)])
    held: list[Rows] = [dataset.train.take(order[start:end]) for start, end in pairwise(edges)]
    return [
        MlpTrainer(
            rows=rows,
            report=report,
            classes=dataset.classes,
            settings=RECIPE,
            seed=1_000 * seed + (party if apart else 0),
        )
        for party, rows in enumerate(held)
    ]


def curves(trainers: Sequence[MlpTrainer], rows: Sequence[int]) -> dict[str, list[float]]:
    """Return accuracies by curve; the first trainer is the buyer's, and evaluates all."""
    buyer = trainers[0]
    sources = [_trained(trainer, trainer.initial(), 0, SOURCE_EPOCHS)[-1] for trainer in trainers]
    own, bought = sources[0], sources[1:]
    found = {
        KEPT: [_accuracy(buyer, own)] * (EPOCHS + 1),
        REPLACED: [_accuracy(buyer, fused(own, bought, 1.0))] * (EPOCHS + 1),
        ALONE: _fine_tuned(buyer, own),
        FEDAVG: _federated(trainers, sources, rows),
    }
    for share in LAMBDAS:
        found[fused_name(share)] = _fine_tuned(buyer, fused(own, bought, share))
    return {name: found[name] for name in CURVES}


def fused(own: Parameters, bought: Sequence[Parameters], share: float) -> Parameters:
    """Return Eq. 16 of all layers, with λ = `share` for every seller."""
    arrays = [{name: t.numpy() for name, t in one.items()} for one in (own, *bought)]
    mixed = fuse_layers(arrays[0], arrays[1:], [share] * len(bought))
    return {name: torch.from_numpy(array) for name, array in mixed.items()}


def _trained(
    trainer: MlpTrainer, parameters: Parameters, first: int, epochs: int
) -> list[Parameters]:
    """Return the parameters before, and after each of `epochs` from number `first` on."""
    found = [parameters]
    for epoch in range(first, first + epochs):
        found.append(trainer.train_epoch(found[-1], epoch).parameters)
    return found


def _fine_tuned(buyer: MlpTrainer, start: Parameters) -> list[float]:
    return [_accuracy(buyer, now) for now in _trained(buyer, start, SOURCE_EPOCHS, EPOCHS)]


def _federated(
    trainers: Sequence[MlpTrainer], sources: Sequence[Parameters], rows: Sequence[int]
) -> list[float]:
    shared = averaged(sources, rows)
    found = [_accuracy(trainers[0], shared)]
    for epoch in range(SOURCE_EPOCHS, SOURCE_EPOCHS + EPOCHS):
        local = [trainer.train_epoch(shared, epoch).parameters for trainer in trainers]
        shared = averaged(local, rows)
        found.append(_accuracy(trainers[0], shared))
    return found


def averaged(models: Sequence[Mapping[str, torch.Tensor]], rows: Sequence[int]) -> Parameters:
    """Return the mean of the models, weighted by rows (McMahan et al. 2017, Algorithm 1)."""
    return {
        name: sum(
            (model[name] * (held / sum(rows)) for model, held in zip(models, rows, strict=True)),
            start=torch.zeros_like(models[0][name]),
        )
        for name in models[0]
    }


def _accuracy(trainer: MlpTrainer, parameters: Parameters) -> float:
    return round(100 * trainer.evaluate(parameters).accuracy, 4)
