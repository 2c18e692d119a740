"""What the weight market's buyers demand: measured on networks that are trained here.

The paper (§IV-A) gives random subsets of a data set to its service providers, and lets a
regression predict what accuracy a buyer would gain from a seller's weights. Here the networks
are trained and the gain is measured: buyer s, that holds w, fuses in the weights w' of seller j,
of each of three architectures r, by Eq. 16, and G_sjr is by how many points the better of
λ = ½ and λ = 1 is more accurate than w, at least `LEAST_GAIN`.

A demand is the share of a network that a unit of gain costs, d_sjr = unit/G_sjr: the paper gives
neither its unit nor any demand, only that utilities end at 300. The unit is such that a whole
seller is worth `WHOLE` to a buyer on average, so that a seventh of 40 sellers is worth 300, where
the total of its Figure 2b is level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from broker_node.mechanisms.fusion import Weights, fuse_layers
from broker_node.mechanisms.reading import Floats
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.rows import Rows
from node.data.streams import stream
from node.training.mlp import MlpTrainer, Settings

BUYERS: Final = 7
SELLERS: Final = 60
"""The most of Figures 2b, 3a and 3b; Figures 2a and 2c take the first 14."""
BUYER_ROWS: Final = (20, 25, 30, 35, 40, 50, 60)
"""Of SP 1 … SP 7."""
SELLER_ROWS: Final = (60, 160)
"""A seller holds a number drawn uniformly from these on."""
HIDDEN: Final[dict[str, tuple[int, ...]]] = {
    "AlexNet": (32, 16),
    "VGG-16": (32, 24, 16),
    "NiN": (48,),
}
"""What stands for the paper's convolutional networks: perceptrons of three depths."""
LEARNING_RATE: Final = 0.2
BATCH_ROWS: Final = 32
EPOCHS: Final = 15
LAMBDA: Final = 0.5
"""Tried besides 1."""
LEAST_GAIN: Final = 0.5
LIMIT: Final = 300.0
"""D of every buyer."""
WHOLE: Final = LIMIT * BUYERS / 40


def settings() -> dict[str, Any]:
    """Return all of the above as JSON."""
    return {
        "dataset": "digits",
        "buyer_rows": list(BUYER_ROWS),
        "seller_rows": list(SELLER_ROWS),
        "hidden": {name: list(widths) for name, widths in HIDDEN.items()},
        "learning_rate": LEARNING_RATE,
        "batch_rows": BATCH_ROWS,
        "epochs": EPOCHS,
        "lambdas": [LAMBDA, 1],
        "least_gain": LEAST_GAIN,
        "limit": LIMIT,
        "whole": WHOLE,
    }


def _trained(trainer: MlpTrainer) -> dict[str, torch.Tensor]:
    parameters = trainer.initial()
    for epoch in range(EPOCHS):
        parameters = trainer.train_epoch(parameters, epoch).parameters
    return parameters


def _arrays(parameters: Mapping[str, torch.Tensor]) -> dict[str, Weights]:
    return {name: tensor.numpy() for name, tensor in parameters.items()}


def _tensors(weights: Mapping[str, Weights]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def measured(seed: int, data_folder: Path, sellers: int = SELLERS) -> Floats:
    """Return G (buyers, sellers, types) in points, of random subsets of the digits.

    All networks of a type begin with the same weights, as those that were fine-tuned from one
    base do; accuracies are of the broker's rows, on which nobody trains.
    """
    torch.set_num_threads(1)
    dataset = load("digits", data_folder)
    judged = clean_split(dataset).validation
    sizes = [*BUYER_ROWS, *stream(seed, 61).integers(*SELLER_ROWS, size=sellers, endpoint=True)]
    held: list[Rows] = []
    for party, rows in enumerate(sizes):
        drawn = stream(seed, 62, party).permutation(len(dataset.train))[: int(rows)]
        held.append(dataset.train.take(drawn.astype(np.int64)))
    gain_SJR = np.zeros((BUYERS, sellers, len(HIDDEN)))
    for r, hidden in enumerate(HIDDEN.values()):
        recipe = Settings(
            hidden=hidden, learning_rate=LEARNING_RATE, batch_rows=BATCH_ROWS, scarce_percent=0
        )
        trainers = [
            MlpTrainer(rows=rows, report=judged, classes=10, settings=recipe, seed=seed)
            for rows in held
        ]
        weights = [_arrays(_trained(trainer)) for trainer in trainers]
        alone = [
            trainer.evaluate(_tensors(its)).accuracy
            for trainer, its in zip(trainers, weights, strict=True)
        ]
        for s in range(BUYERS):
            for j in range(sellers):
                fused = fuse_layers(weights[s], [weights[BUYERS + j]], [LAMBDA])
                # λ = 1 leaves the seller's own network
                best = max(alone[BUYERS + j], trainers[s].evaluate(_tensors(fused)).accuracy)
                gain_SJR[s, j, r] = 100 * (best - alone[s])
    return np.maximum(gain_SJR, LEAST_GAIN)


def demands(gain_SJR: Floats) -> Floats:
    """Return d (buyers, sellers, types) in shares of a network."""
    unit = float(gain_SJR.min(axis=2).mean()) / WHOLE
    return np.asarray(unit / gain_SJR)


def market(demand_SJR: Floats, sellers: int, budget: list[float] | None = None) -> dict[str, Any]:
    """Return the market of the first `sellers`; budgets are 1 unless given."""
    chosen = demand_SJR[:, :sellers]
    buyers, _, types = chosen.shape
    return {
        "demand": chosen.tolist(),
        "budget": budget or [1.0] * buyers,
        "max_utility": [LIMIT] * buyers,
        "capacity": np.ones((sellers, types)).tolist(),
    }
