"""Copies and independents of residual networks and language models, for the benchmark of replicas.

Two halves of the training rows, that share none, and three initialisations that each learn both:
residual networks of the digits, and language models of the text that `text_models` reads.
Independents are pairs of other initialisations, on the same half and on the other. Copies are made
of every model, in every disguise, all of them renumbered and rescaled besides: the gains of norms
against what reads them, queries against keys, values against outputs. Language models besides by
another basis inside of each head, and whatever enters a norm by a factor of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from broker_node.verify.replicas import Likeness, likeness
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.files import DataError
from node.data.streams import stream
from node.params.architecture import Architecture, random_init
from scripts import disguises, text_models
from scripts.disguises import DISGUISES, Tensors
from scripts.silo_models import Fit, fitted, verified

STARTS: Final = 3
PARTS: Final = 2
PROBES: Final = 64
NETWORK: Final = Architecture(
    "resnet", {"classes": 10, "depth": 10, "image": [1, 8, 8], "widen": 1}
)
FIT: Final = Fit(epochs=12, batch=32, learning_rate=3e-3)
TUNING: Final = Fit(epochs=3, batch=32, learning_rate=1e-3)
TEXT_MODEL: Final = Architecture(
    "gpt",
    {
        "context": text_models.CONTEXT,
        "depth": 2,
        "heads": 4,
        "hidden": 256,
        "norm": "layer",
        "tied": False,
        "vocabulary": text_models.VOCABULARY,
        "width": 64,
    },
)
STEPS: Final = 400
TUNING_STEPS: Final = 100
LOUDER: Final = 8.0
"""What enters a norm is multiplied by it, as a whole."""
ENTERING: Final = {
    "resnet": ("conv1.weight",),
    "gpt": ("tokens.weight", "positions.weight", "attention.out", "down.weight"),
}
"""By the ends of names: what a norm over all units follows, all of it or none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A seed's models of one architecture, by start and part, and each tuned on the other part."""

    architecture: Architecture
    models: dict[tuple[int, int], Tensors]
    tuned: dict[tuple[int, int], Tensors]
    probes_RF: torch.Tensor


def residual_networks(folder: Path, seed: int) -> Trained:
    """Return the networks of the digits. Raises `DataError`."""
    data = load("digits", folder)
    order = stream(seed, 100).permutation(len(data.train)).astype(np.int64)
    halves = [data.train.take(half) for half in np.array_split(order, PARTS)]
    starts = [random_init(NETWORK, 1000 * seed + start) for start in range(STARTS)]
    models = {
        (start, part): fitted(NETWORK, starts[start], halves[part], FIT, seed=seed + 10 * start)
        for start, part in itertools.product(range(STARTS), range(PARTS))
    }
    tuned = {
        (start, part): fitted(NETWORK, model, halves[1 - part], TUNING, seed=seed + 1)
        for (start, part), model in models.items()
    }
    probes_RF = torch.from_numpy(clean_split(data).validation.inputs_RF[:PROBES].copy())
    return Trained(architecture=NETWORK, models=models, tuned=tuned, probes_RF=probes_RF)


def language_models(_folder: Path, seed: int) -> Trained:
    """Return the models of the text. Raises `DataError` where it is not there."""
    pieces = text_models.parts(text_models.text())
    halves = [pieces["train"][part::PARTS] for part in range(PARTS)]
    models = {
        (start, part): text_models.fitted(
            TEXT_MODEL, halves[part], seed=1000 * seed + start, steps=STEPS
        )
        for start, part in itertools.product(range(STARTS), range(PARTS))
    }
    context = TEXT_MODEL.model.input_width()
    rows = [text_models.rows_of(half, context) for half in halves]
    tuned = {
        (start, part): dict(
            text_models.tuned(
                TEXT_MODEL, model, rows[1 - part], seed=seed, steps=TUNING_STEPS, stopping=False
            )[0]
        )
        for (start, part), model in models.items()
    }
    probes = text_models.held_out(pieces, context)["choice"].inputs_RF[:PROBES]
    return Trained(
        architecture=TEXT_MODEL,
        models=models,
        tuned=tuned,
        probes_RF=torch.from_numpy(probes.copy()),
    )


FAMILIES: Final[dict[str, Callable[[Path, int], Trained]]] = {
    "digits, residual networks": residual_networks,
    "text, language models": language_models,
}


def _louder(architecture: Architecture, tensors: Tensors, _generator: torch.Generator) -> Tensors:
    entering = ENTERING[architecture.name]
    return {
        name: tensor * LOUDER if name.endswith(entering) else tensor
        for name, tensor in tensors.items()
    }


def pairs(trained: Trained, seed: int, *, same: str, other: str) -> dict[str, list[Likeness]]:
    """Return the likeness of every pair of a seed's models, by what the pairs are.

    `same` and `other` name the independents, on the same part and on different ones.
    """
    generator = torch.Generator().manual_seed(seed)
    architecture = trained.architecture

    def alike(one: Tensors, two: Tensors) -> Likeness:
        hidden = disguises.moved(architecture, two, generator)
        ours, theirs = (verified(architecture, dict(side)) for side in (one, hidden))
        return likeness(ours, theirs, trained.probes_RF)

    found: dict[str, list[Likeness]] = {same: [], other: []}
    for (start, part), (second, another) in itertools.combinations(trained.models, 2):
        if start != second:
            kind = same if part == another else other
            found[kind].append(alike(trained.models[start, part], trained.models[second, another]))
    originals = list(trained.models.values())
    for name, change in DISGUISES.items():
        found[f"copy: {name}"] = [alike(one, change(one, generator)) for one in originals]
    special: Sequence[tuple[str, Callable[[Architecture, Tensors, torch.Generator], Tensors]]] = [
        (f"what enters norms {LOUDER:.0f} times", _louder)
    ]
    if architecture.name == "gpt":
        special = [*special, ("heads in other bases", disguises.in_other_bases)]
    for name, made in special:
        found[f"copy: {name}"] = [
            alike(one, made(architecture, one, generator)) for one in originals
        ]
    found["copy: tuned on other rows"] = [
        alike(model, trained.tuned[key]) for key, model in trained.models.items()
    ]
    return found


def is_here(name: str, folder: Path) -> bool:
    """Whether the rows of a family's models can be had."""
    try:
        if FAMILIES[name] is language_models:
            text_models.text()
        else:
            load("digits", folder)
    except DataError:
        return False
    return True
