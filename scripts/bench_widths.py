"""Merging models whose hidden widths differ, beside what partial matching itself costs.

The buyer's perceptron has four hidden layers of 256, the sellers' of 128, 256 and 512; each agent
holds all rows of five classes and 10% of the others'. Of the broker's rows one half chooses α and
shows how units answer, without labels; accuracies are of the report's rows, which nobody saw.
Every merge is at its own α*.

The controls: the sold model alone in the buyer's widths, a merge of units matched at random, and
the buyer's model fine-tuned on the labels of the rows that chose. Where widths are equal the
methods of the market stand beside it, and REPAIR on one of them.

Trained models are kept under runs/widths, named by their settings.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from broker_node.align.activation_matching import activation_matching
from broker_node.align.partial import partial_matching, random_matching
from broker_node.align.stages import Aligned
from broker_node.merge.lerp import lerp
from broker_node.merge.repair import repair
from broker_node.merge.stages import Merger
from broker_node.merge.stages import Rows as Choice
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.protocol.types import ONE
from scripts.silo_models import Fit, fitted, silo

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".data"
KEPT: Final = ROOT / "runs" / "widths"
FITS: Final = {
    "digits": Fit(epochs=20, batch=32, learning_rate=1e-3),
    "mnist": Fit(epochs=5, batch=256, learning_rate=1e-3),
}
"""By data set; a control is tuned as its model was trained."""
PERCENT: Final = 10
SEEDS: Final = (0, 1, 2)
BUYER: Final = 256
SELLERS: Final = (128, 256, 512)
DEPTH: Final = 4
"""Hidden layers."""

Figures = dict[str, tuple[float, int | None]]
"""Accuracy in percent, and α, by case."""


def perceptron(dataset: Dataset, width: int) -> Architecture:
    """Return the architecture of this hidden width."""
    inputs = int(dataset.train.inputs_RF.shape[1])
    return Architecture("mlp", {"widths": [inputs, *[width] * DEPTH, 10]})


@torch.inference_mode()
def _accuracy(architecture: Architecture, tensors: Tensors, rows: Rows) -> float:
    inputs_RF, labels_R = (torch.from_numpy(t.copy()) for t in (rows.inputs_RF, rows.labels_R))
    right_R = apply(architecture, tensors, inputs_RF).argmax(1) == labels_R
    return 100 * float(right_R.double().mean())


def measured(dataset: Dataset, seed: int) -> Figures:
    """Return what a pair of each width scores on the report's rows."""
    halves = clean_split(dataset)
    half = halves.validation.take(np.arange(len(halves.validation) // 2))
    choice = Choice(torch.from_numpy(half.inputs_RF.copy()), torch.from_numpy(half.labels_R.copy()))
    fit, own = FITS[dataset.name], perceptron(dataset, BUYER)
    buyer = silo(own, dataset, fit, percent=PERCENT, agent=0, seed=seed, kept=KEPT)
    tuned = fitted(own, dict(buyer.tensors), half, fit, seed=seed)
    found: Figures = {
        "buyer alone": (_accuracy(own, buyer.tensors, halves.report), None),
        "control: buyer fine-tuned on the rows that chose": (
            _accuracy(own, tuned, halves.report),
            None,
        ),
    }

    def merged(case: str, aligned: Aligned, merge: Merger) -> None:
        product = merge([aligned], choice, seed=seed)
        alpha = product.detail["alpha"]
        assert product.tensors is not None
        assert isinstance(alpha, int)
        found[case] = _accuracy(own, product.tensors, halves.report), alpha

    for width in SELLERS:
        architecture = perceptron(dataset, width)
        seller = silo(architecture, dataset, fit, percent=PERCENT, agent=1, seed=seed, kept=KEPT)
        alone = _accuracy(architecture, seller.tensors, halves.report)
        found[f"{width}: seller alone"] = alone, None
        probe_RF = choice.inputs_RF
        partly = partial_matching(buyer, seller, seed=seed, probe_RF=probe_RF)
        found[f"{width}: control: seller in {BUYER}"] = (
            _accuracy(own, partly.transformed, halves.report),
            None,
        )
        merged(
            f"{width}: control: random-matching",
            random_matching(buyer, seller, seed=seed, probe_RF=probe_RF),
            lerp,
        )
        merged(f"{width}: partial-matching", partly, lerp)
        merged(f"{width}: partial-matching, repair", partly, repair)
        if width == BUYER:
            exact = activation_matching(buyer, seller, seed=seed, probe_RF=probe_RF)
            merged(f"{width}: activation-matching", exact, lerp)
            merged(f"{width}: activation-matching, repair", exact, repair)
    return found


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread; a data set that is not there says so."""
    torch.set_num_threads(1)
    told: list[dict[str, Any]] = []
    for name in FITS:
        try:
            dataset = load(name, FOLDER)
        except DataError as error:
            told.append({"case": f"{name}: skipped, {error}", "value": None, "unit": ""})
            continue
        by_seed = [measured(dataset, seed) for seed in SEEDS]
        own = statistics.mean(found["buyer alone"][0] for found in by_seed)
        for case in by_seed[0]:
            values = [found[case][0] for found in by_seed]
            alphas = [found[case][1] for found in by_seed]
            shares = " ".join(f"{alpha / ONE:.2f}" for alpha in alphas if alpha is not None)
            mean = statistics.mean(values)
            told.append(
                {
                    "case": f"{name}: {case}" + (f", α* {shares}" if shares else ""),
                    "value": round(mean, 2),
                    "unit": f"% ± {statistics.stdev(values):.2f} sd of {len(values)} seeds",
                    "against": None if case == "buyer alone" else "buyer alone",
                    "ratio": None if case == "buyer alone" else mean / own,
                }
            )
    return told
