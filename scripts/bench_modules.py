"""Two networks of one's own, with batch normalisation, merged by every alignment, and reset.

Residual convolutional networks on MNIST (`scripts/module_models.py`), which the market knows by the
name of that function alone: symmetries are read off the graph. Pairs begin at different seeds.
*Strangers* have half of 8,000 training rows each; *scarce* ones all of these rows of five classes
and 10% of the others. Of the broker's rows 1,000 choose α, and are what the normalisation is reset
on, without their labels; accuracies are of 2,000 rows of the report, which nobody saw.

Each alignment is merged half and half and at its own α*; with `reset`, the running statistics are
taken anew at each α. What that does to either network by itself stands beside it, and so does the
buyer fine-tuned on the rows that chose.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.tuning import tuned
from broker_node.merge.lerp import lerp
from broker_node.merge.reset import reset, reset_merge
from broker_node.merge.stages import Rows
from broker_node.trying.reading import admitted
from broker_node.verify.stages import Verified
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset
from node.params.architecture import Architecture, apply
from node.params.families.factories import Entry, allow
from node.params.families.own import OwnModule
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths

ROOT: Final = Path(__file__).resolve().parent.parent
FACTORY: Final = "scripts.module_models:network"
ALIGNMENTS: Final = (
    "identity",
    "weight-matching",
    "activation-matching",
    "universe",
    "joint-matching",
)
CASES: Final = ("strangers", "scarce")
SEEDS: Final = (0, 1, 2)
TRAINED: Final = 8_000
EPOCHS: Final = 3
BATCH: Final = 64
RATE: Final = 2e-3
SCARCE: Final = 0.1
CHOICE: Final = 1_000
REPORT: Final = 2_000
HALF: Final = Millionths(ONE // 2)

Found = dict[str, float]
"""Accuracy in percent, or α*, by case."""


def of_agent(labels_R: torch.Tensor, agent: int, case: str, generator: torch.Generator) -> Any:
    """Return the rows of an agent: every other one, or what a scarce endowment leaves."""
    rows = torch.arange(len(labels_R))
    if case == "strangers":
        return rows[agent::2]
    rich = (labels_R < 5) == (agent == 0)
    return rows[rich | (torch.rand(len(rows), generator=generator) < SCARCE)]


def trained(
    architecture: Architecture, inputs_RF: torch.Tensor, labels_R: torch.Tensor, seed: int
) -> Verified:
    """Return a network after `EPOCHS` of Adam, whose rate falls to 0, in training mode."""
    model = architecture.model
    assert isinstance(model, OwnModule)
    module = model.module_with(model.random_init(seed)).train()
    generator = torch.Generator().manual_seed(seed)
    steps = torch.optim.Adam(module.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(
        steps, 1.0, 0.0, total_iters=EPOCHS * (len(labels_R) // BATCH)
    )
    for _ in range(EPOCHS):
        order_R = torch.randperm(len(labels_R), generator=generator)
        for batch_R in torch.split(order_R, BATCH)[: len(order_R) // BATCH]:
            loss = functional.cross_entropy(
                model.run(module, inputs_RF[batch_R]), labels_R[batch_R]
            )
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            falling.step()
    return admitted(architecture, model.tensors_of(module))


@torch.inference_mode()
def accuracy(architecture: Architecture, tensors: Tensors, rows: Rows) -> float:
    """Return the share of right answers, in percent."""
    right_R = apply(architecture, tensors, rows.inputs_RF).argmax(1) == rows.targets_R
    return 100 * float(right_R.double().mean())


def measured(dataset: Dataset, case: str, seed: int) -> Found:
    """Return what a pair and its merges score on the report's rows."""
    halves = clean_split(dataset)
    allow(Entry(FACTORY, (1, 28, 28)))
    architecture = Architecture("module", {"factory": FACTORY, "input": [1, 28, 28]})
    generator = torch.Generator().manual_seed(seed)
    drawn_R = torch.randperm(len(dataset.train), generator=generator)[:TRAINED].numpy()
    inputs_RF, labels_R = _tensors(dataset.train.take(drawn_R))
    sides = []
    for agent in (0, 1):
        own_R = of_agent(labels_R, agent, case, generator)
        sides.append(trained(architecture, inputs_RF[own_R], labels_R[own_R], 2 * seed + agent))
    choice = Rows(*_tensors(halves.validation.take(np.arange(CHOICE))))
    report = Rows(*_tensors(halves.report.take(np.arange(REPORT))))
    buyer, seller = sides
    control = tuned(architecture, buyer.tensors, choice.inputs_RF, choice.targets_R, seed=seed)
    found = {
        "A alone": accuracy(architecture, buyer.tensors, report),
        "B alone": accuracy(architecture, seller.tensors, report),
        "A alone, reset": accuracy(
            architecture, reset(architecture, buyer.tensors, choice.inputs_RF), report
        ),
        "B alone, reset": accuracy(
            architecture, reset(architecture, seller.tensors, choice.inputs_RF), report
        ),
        "control: A fine-tuned on the rows that chose": accuracy(
            architecture, control.tensors, report
        ),
    }
    for name in ALIGNMENTS:
        pair = ALIGNERS[name](buyer, seller, seed=seed, probe_RF=choice.inputs_RF)
        half = interpolate(buyer.tensors, pair.transformed, HALF)
        found[f"{name}, half and half"] = accuracy(architecture, half, report)
        again = reset(architecture, half, choice.inputs_RF)
        found[f"{name}, half and half, reset"] = accuracy(architecture, again, report)
        for merge, told in ((lerp, ""), (reset_merge, ", reset")):
            merged = merge([pair], choice, seed=seed)
            alpha = merged.detail["alpha"]
            assert merged.tensors is not None
            assert isinstance(alpha, int)
            found[f"{name}, α*{told}"] = accuracy(architecture, merged.tensors, report)
            found[f"{name}, α*{told}: α"] = alpha / ONE
    return found


def _tensors(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure now, on one thread; without MNIST it says so. Quick: one pair of each kind."""
    torch.set_num_threads(1)
    try:
        dataset = load("mnist", ROOT / ".data")
    except DataError as error:
        return [{"case": f"skipped: {error}", "value": None, "unit": ""}]
    told: list[dict[str, Any]] = []
    for case in CASES:
        by_seed = [measured(dataset, case, seed) for seed in (SEEDS[:1] if quick else SEEDS)]
        for name in by_seed[0]:
            if name.endswith(": α"):
                continue
            values = [found[name] for found in by_seed]
            shares = [found[f"{name}: α"] for found in by_seed if f"{name}: α" in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            told.append(
                {
                    "case": f"{case}: {name}" + "".join(f" {share:.2f}" for share in shares),
                    "value": round(statistics.mean(values), 2),
                    "unit": f"%{spread}, {len(values)} pairs",
                }
            )
    return told
