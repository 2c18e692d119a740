"""How well copies are told from models that learned the same by themselves.

Models are the paper's perceptrons, trained here from a seed: nothing is downloaded, and the same
seed makes the same set. There are four sets of rows to train on: two halves that share none and
have all classes alike, and the paper's two endowments, each short of the other's classes. Every
initialisation learns each of the four. So there are

- independents: other initialisations, on the same set of rows and on another one;
- one initialisation, trained apart on the two halves or on the two endowments, after few epochs and
  after many;
- copies, in every disguise, all of them renumbered and rescaled besides.

The first seed chooses the threshold, half way between the most alike independents and the least
alike copies, those aside that are a quarter of a merge; what is printed are the other seeds.
Residual networks and language models are judged by the same threshold (`replica_families`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional

from broker_node.align.weight_matching import weight_matching
from broker_node.verify.replicas import Likeness, likeness
from node.data.clean import clean_split
from node.data.datasets import Rows, load
from node.data.files import DataError
from node.data.split import ScarceClasses, endowment
from node.data.streams import stream
from node.params.architecture import Architecture, random_init
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from scripts import replica_families
from scripts.disguises import DISGUISES, Tensors, moved
from scripts.silo_models import verified

FOLDER: Final = Path(__file__).resolve().parent.parent / ".data"
SEEDS: Final = (0, 1, 2)
"""The first chooses the threshold."""
STARTS: Final = 3
"""Initialisations a seed; each learns every set of rows."""
PARTS: Final = 4
SAME: Final = "independent, same rows"
OTHER: Final = "independent, other rows"
"""A half against an endowment."""
PROBES: Final = 256
"""Of the broker's rows, unlabelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How models of a data set are trained."""

    hidden: tuple[int, ...]
    rows: int
    """In each of the four sets."""
    batch: int
    learning_rate: float
    epochs: tuple[int, ...]
    """After which models are looked at; copies are made of the last."""
    tuned: tuple[int, ...]
    """Epochs that a copy is trained on the rows that its original has not seen."""


SETTINGS: Final = {
    "digits": Settings(
        hidden=(32, 16), rows=590, batch=32, learning_rate=0.05, epochs=(10, 40, 160), tuned=(5, 40)
    ),
    "mnist": Settings(
        hidden=(32, 32, 32, 16),
        rows=1_500,
        batch=50,
        learning_rate=0.05,
        epochs=(5, 10, 40),
        tuned=(5, 20),
    ),
}


class _Data:
    """Two halves of the training rows, two endowments, and the broker's probes."""

    def __init__(self, name: str, settings: Settings, seed: int) -> None:
        data = load(name, FOLDER)
        order = stream(seed, 100).permutation(len(data.train)).astype(np.int64)
        rows = settings.rows
        self.parts = [data.train.take(order[at * rows : (at + 1) * rows]) for at in (0, 1)]
        for agent in (0, 1):
            held = endowment(data, agent, 2, seed=seed, rule=ScarceClasses(percent=5))
            mixed = stream(seed, 101, agent).permutation(len(held)).astype(np.int64)
            self.parts.append(held.take(mixed[:rows]))
        self.probes_RF = torch.from_numpy(clean_split(data).validation.inputs_RF[:PROBES].copy())
        widths = [int(data.train.inputs_RF.shape[1]), *settings.hidden, data.classes]
        self.architecture = Architecture("mlp", {"widths": widths})


def train(
    models: Sequence[Mapping[str, torch.Tensor]],
    parts: Sequence[Rows],
    settings: Settings,
    *,
    epochs: Sequence[int],
    seed: int,
) -> list[list[Tensors]]:
    """Return the models after each of `epochs`, which rise; all are trained side by side.

    Plain gradient descent on batches, model k on `parts[k]` in an order of its own.
    """
    names = sorted(models[0])
    depth = len(names) // 2
    stacked = {
        name: torch.stack([model[name] for model in models]).requires_grad_() for name in names
    }
    inputs_MRF = torch.stack([torch.from_numpy(part.inputs_RF.copy()) for part in parts])
    labels_MR = torch.stack([torch.from_numpy(part.labels_R.copy()) for part in parts])
    generator = torch.Generator().manual_seed(seed)
    taken = []
    for epoch in range(1, epochs[-1] + 1):
        order_MR = torch.rand(labels_MR.shape, generator=generator).argsort(1)
        for batch_MB in torch.split(order_MR, settings.batch, dim=1):
            index_MBF = batch_MB[..., None].expand(-1, -1, inputs_MRF.shape[2])
            values_MBU = inputs_MRF.gather(1, index_MBF)
            for layer in range(depth):
                values_MBU = torch.baddbmm(
                    stacked[f"layers.{layer}.bias"][:, None],
                    values_MBU,
                    stacked[f"layers.{layer}.weight"].transpose(1, 2),
                )
                if layer < depth - 1:
                    values_MBU = functional.relu(values_MBU)
            loss = functional.cross_entropy(
                values_MBU.flatten(0, 1), labels_MR.gather(1, batch_MB).flatten(), reduction="sum"
            )
            gradients = torch.autograd.grad(loss, [stacked[name] for name in names])
            step = settings.learning_rate / batch_MB.shape[1]
            with torch.no_grad():
                for name, gradient in zip(names, gradients, strict=True):
                    stacked[name] -= step * gradient
        if epoch in epochs:
            taken.append(
                [
                    {name: stacked[name].detach()[at].clone() for name in names}
                    for at in range(len(models))
                ]
            )
    return taken


BLENDS: Final = (0.75, 0.5, 0.25)
"""Shares of the copied model in a merge with an independent one."""


APART: Final = "one start, {rows}, {epochs} epochs"
HALVES: Final = "other rows of the same classes"
ENDOWMENTS: Final = "other classes"


def pairs(name: str, seed: int) -> dict[str, list[Likeness]]:
    """Return the likeness of every pair of a seed's models, by what the pairs are."""
    settings = SETTINGS[name]
    data = _Data(name, settings, seed)
    architecture = data.architecture
    generator = torch.Generator().manual_seed(seed)
    starts = [random_init(architecture, 1000 * seed + start) for start in range(STARTS)]
    order = [(start, part) for start in range(STARTS) for part in range(PARTS)]
    ages = train(
        [starts[start] for start, _ in order],
        [data.parts[part] for _, part in order],
        settings,
        epochs=settings.epochs,
        seed=seed,
    )
    models = dict(zip(order, ages[-1], strict=True))
    # of each start one that knows all classes and one that does not
    copied = [(start, part) for start in range(STARTS) for part in (0, 2)]
    tuned = train(
        [models[one] for one in copied],
        [data.parts[part + 1] for _, part in copied],
        settings,
        epochs=settings.tuned,
        seed=seed + 1,
    )

    def alike(one: Tensors, other: Tensors) -> Likeness:
        hidden = moved(architecture, other, generator)
        ours, theirs = (verified(architecture, side) for side in (one, hidden))
        return likeness(ours, theirs, data.probes_RF)

    found: dict[str, list[Likeness]] = {SAME: [], OTHER: []}
    for (start, part), (second, another) in itertools.combinations(order, 2):
        if start != second and part == another:
            found[SAME].append(alike(models[start, part], models[second, another]))
        elif start != second and part + another == PARTS - 1:
            found[OTHER].append(alike(models[start, part], models[second, another]))
    for epochs, aged in zip(settings.epochs, ages, strict=True):
        at = dict(zip(order, aged, strict=True))
        for rows, part in ((HALVES, 0), (ENDOWMENTS, 2)):
            found[APART.format(rows=rows, epochs=epochs)] = [
                alike(at[start, part], at[start, part + 1]) for start in range(STARTS)
            ]
    originals = [models[one] for one in copied]
    for disguise, change in DISGUISES.items():
        found[f"copy: {disguise}"] = [alike(one, change(one, generator)) for one in originals]
    for epochs, changed in zip(settings.tuned, tuned, strict=True):
        found[f"copy: tuned {epochs} epochs on other rows"] = [
            alike(*both) for both in zip(originals, changed, strict=True)
        ]
    for share in BLENDS:
        found[f"copy: {share:.0%} of a merge"] = [
            alike(one, _blend(architecture, originals[at - 2], one, share))
            for at, one in enumerate(originals)
        ]
    return found


def _blend(architecture: Architecture, base: Tensors, copied: Tensors, share: float) -> Tensors:
    sides = [verified(architecture, side) for side in (base, copied)]
    aligned = weight_matching(*sides, seed=0)
    return interpolate(base, aligned.transformed, Millionths(round(share * ONE)))


def auc(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Return the area under the curve: how often a positive is above a negative, ties half."""
    ranks = rankdata([*negatives, *positives])[len(negatives) :]
    count = len(positives)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(negatives)))


QUARTER: Final = f"copy: {BLENDS[-1]:.0%} of a merge"


def calibrated(found: Sequence[Mapping[str, Sequence[Likeness]]]) -> float:
    """Return the threshold half way between independents and copies; the quarter is no copy."""
    negatives = [alike for kinds in found for kind in (SAME, OTHER) for alike in kinds[kind]]
    positives = [
        alike
        for kinds in found
        for kind, of_kind in kinds.items()
        if kind.startswith("copy") and kind != QUARTER
        for alike in of_kind
    ]
    highest, lowest = (
        max(alike.score for alike in negatives),
        min(alike.score for alike in positives),
    )
    return (highest + lowest) / 2


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread."""
    torch.set_num_threads(1)
    names = [name for name in SETTINGS if _is_here(name)]
    threshold = calibrated([pairs(name, SEEDS[0]) for name in names])
    measured: list[dict[str, Any]] = [
        {"case": f"threshold, from seed {SEEDS[0]}", "value": threshold, "unit": "score"}
    ]
    for name in names:
        seeds = [pairs(name, seed) for seed in SEEDS[1:]]
        kinds = {kind: [alike for seed in seeds for alike in seed[kind]] for kind in seeds[0]}
        measured += _table(name, kinds, threshold)
    for name, make in replica_families.FAMILIES.items():
        if replica_families.is_here(name, FOLDER):
            kinds = replica_families.pairs(make(FOLDER, 1), 1, same=SAME, other=OTHER)
            measured += _kinds(name, kinds, threshold)
        else:
            measured.append({"case": f"{name}: skipped, its rows are not here", "value": None})
    return measured


def _is_here(name: str) -> bool:
    try:
        load(name, FOLDER)
    except DataError:
        return False
    return True


def _table(
    name: str, kinds: Mapping[str, Sequence[Likeness]], threshold: float
) -> list[dict[str, Any]]:
    """Return a row for each kind of pair, and what all copies together are told from."""
    independent = [alike for kind in (SAME, OTHER) for alike in kinds[kind]]
    table = _kinds(name, kinds, threshold)
    copies = [
        alike
        for kind, of_kind in kinds.items()
        if kind.startswith("copy") and kind != QUARTER
        for alike in of_kind
    ]
    for label, negatives in (
        ("independents", independent),
        (f"one start, {ENDOWMENTS}", _apart(kinds, ENDOWMENTS)),
        (f"one start, {HALVES}", _apart(kinds, HALVES)),
    ):
        case = f"{name} all copies but a quarter"
        table.append(_row(case, _area(negatives, copies), "ROC-AUC", label))
        for half in ("weights", "activations"):
            sides = [[getattr(one, half) for one in side] for side in (negatives, copies)]
            table.append(_row(f"{case}, by {half} alone", auc(*sides), "ROC-AUC", label))
    return table


def _kinds(
    name: str, kinds: Mapping[str, Sequence[Likeness]], threshold: float
) -> list[dict[str, Any]]:
    """Return a row for each kind of pair."""
    independent = [alike for kind in (SAME, OTHER) for alike in kinds[kind]]
    table: list[dict[str, Any]] = []
    for kind, of_kind in kinds.items():
        values = [alike.score for alike in of_kind]
        flagged = sum(value >= threshold for value in values)
        seen = f"{min(values):.3f} … {max(values):.3f}, {flagged} of {len(values)} called replicas"
        if kind in {SAME, OTHER}:
            table.append(_row(f"{name} {kind}", max(values), "score at most", seen))
        else:
            area = _area(independent, of_kind)
            table.append(_row(f"{name} {kind}", area, "ROC-AUC", f"independents; {seen}"))
    return table


def _row(case: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"case": case, "value": value, "unit": unit, "against": against}


def _area(negatives: Sequence[Likeness], positives: Sequence[Likeness]) -> float:
    return auc([one.score for one in negatives], [one.score for one in positives])


def _apart(kinds: Mapping[str, Sequence[Likeness]], rows: str) -> list[Likeness]:
    """Return the pairs that had one start and were trained on such rows, the longest."""
    return list(kinds[[kind for kind in kinds if kind.startswith(f"one start, {rows}")][-1]])
