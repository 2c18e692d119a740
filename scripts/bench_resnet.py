"""Two residual networks on Fashion-MNIST: what each alignment makes of their merge.

Each agent trains a wide residual network (depth 10, channels 16, 32 and 64) on images, on all rows
of five classes and 10% of the rest, a few minutes in all: these are small and far from what the
data set allows. As in the benchmark of merge quality one part of the broker's rows chooses α and
shows the methods how units answer, and accuracies are of the report's rows, which nobody saw; the
first ones of each, for a convolution costs its time.

Beside the methods stands the buyer's network fine-tuned on the rows that chose α.
Trained networks are kept under runs/resnet, named by their settings.
"""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path
from typing import Any, Final

import torch

from broker_node.align import activation_matching, identity, universe, weight_matching
from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.curve import LossCurve
from broker_node.evaluate.search import halving_brent
from broker_node.evaluate.validation import draw_rows
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import ONE, Digest, Millionths
from scripts.silo_models import Fit, fitted, silo

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".data"
KEPT: Final = ROOT / "runs" / "resnet"
NETWORK: Final = Architecture(
    "resnet", {"classes": 10, "depth": 10, "image": [1, 28, 28], "widen": 1}
)
FIT: Final = Fit(epochs=4, batch=32, learning_rate=3e-3, rows=2_000)
TUNING: Final = Fit(epochs=4, batch=32, learning_rate=1e-3)
PERCENT: Final = 10
SEEDS: Final = (0, 1)
CHOICE: Final = 512
"""Rows that choose α."""
PROBES: Final = 64
"""Of those, rows on which units are compared: each place of each image is one more."""
REPORT: Final = 1_000
METHODS: Final = (
    identity.NAME,
    weight_matching.NAME,
    activation_matching.NAME,
    universe.NAME,
)
CONTROL: Final = "control: A fine-tuned on the rows that chose"


def _pair_of(rows: Rows, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.from_numpy(rows.inputs_RF[:count].copy()),
        torch.from_numpy(rows.labels_R[:count].copy()),
    )


@torch.inference_mode()
def _accuracy(tensors: Tensors, rows: Rows) -> float:
    """Return the share of right answers, in percent."""
    inputs_RF, labels_R = _pair_of(rows, REPORT)
    right_R = torch.cat(
        [apply(NETWORK, tensors, part_RF).argmax(1) for part_RF in torch.split(inputs_RF, 100)]
    )
    return 100 * float((right_R == labels_R).double().mean())


def accuracies(dataset: Dataset, seed: int) -> tuple[dict[str, float], dict[str, Millionths]]:
    """Return the accuracy on the report's rows, in percent, by case; and α by method."""
    halves = clean_split(dataset)
    drawn = draw_rows(
        Digest(hashlib.sha256(b"resnet" + bytes([seed])).digest()),
        len(halves.validation),
        choice=CHOICE,
        score=CHOICE,
    )
    choice = halves.validation.take(drawn.choice)
    buyer, seller = (
        silo(NETWORK, dataset, FIT, percent=PERCENT, agent=agent, seed=seed, kept=KEPT)
        for agent in (0, 1)
    )
    found = {
        "A alone": _accuracy(buyer.tensors, halves.report),
        "B alone": _accuracy(seller.tensors, halves.report),
        "identity, half and half": _accuracy(
            interpolate(buyer.tensors, seller.tensors, Millionths(ONE // 2)), halves.report
        ),
    }
    alphas = {}
    inputs_RF, labels_R = _pair_of(choice, CHOICE)
    for method in METHODS:
        aligned = ALIGNERS[method](buyer, seller, seed=seed, probe_RF=inputs_RF[:PROBES])
        for name, share in (("half and half", ONE // 2), ("α*", None)):
            if name == "half and half" and method == identity.NAME:
                continue
            if share is None:
                curve = LossCurve(NETWORK, buyer.tensors, aligned.transformed, inputs_RF, labels_R)
                share = alphas[method] = halving_brent(curve)
            merged = interpolate(buyer.tensors, aligned.transformed, Millionths(share))
            found[f"{method}, {name}"] = _accuracy(merged, halves.report)
    tuned = fitted(NETWORK, dict(buyer.tensors), choice, TUNING, seed=seed)
    found[CONTROL] = _accuracy(tuned, halves.report)
    return found, alphas


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread; says so where Fashion-MNIST is not there."""
    torch.set_num_threads(1)
    try:
        dataset = load("fashion", FOLDER)
    except DataError as error:
        return [{"case": f"fashion: skipped, {error}", "value": None, "unit": ""}]
    by_seed = [accuracies(dataset, seed) for seed in SEEDS]
    own = statistics.mean(found["A alone"] for found, _ in by_seed)
    measured: list[dict[str, Any]] = []
    for case in by_seed[0][0]:
        mean = statistics.mean(found[case] for found, _ in by_seed)
        method = case.removesuffix(", α*")
        shares = [f"{alphas[method] / ONE:.2f}" for _, alphas in by_seed if method in alphas]
        at = f", α* {' '.join(shares)}" if case.endswith("α*") else ""
        measured.append(
            {
                "case": f"fashion, resnet 10-1: {method}{at}",
                "value": round(mean, 2),
                "unit": f"% of {REPORT:,} rows, {len(SEEDS)} seeds",
                "against": None if case == "A alone" else "A alone",
                "ratio": None if case == "A alone" else mean / own,
            }
        )
    return measured
