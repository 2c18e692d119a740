"""How far two small language models are from being merged: the loss barrier, by alignment method.

Both are of the family `gpt` and were trained on the same part of the King James Version, from
different seeds (`scripts.text_models`). Between the buyer's model and the sold one, as a method
aligns it, lie `ALPHAS`; the barrier is the most by which the loss there exceeds the straight line
between the losses at the ends. Losses are means over all places of the report's rows, which
nobody else sees; α* is that of least loss on the broker's rows, and methods that look at rows
look at those, without targets.

Beside them stands the control: the buyer's model, without a seller, tuned on the broker's rows for
as many steps of as much text as `learned-gauge` takes; once to the end, once stopped by a quarter
of those rows.

Trained models are kept under runs/transformers, named by their settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from broker_node.align import (
    activation_matching,
    identity,
    joint,
    learned_gauge,
    orthogonal,
    universe,
    weight_matching,
)
from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.curve import row_losses
from broker_node.evaluate.metrics import METRICS, measured, perplexity_of
from broker_node.verify.stages import Verified
from node.data.files import DataError
from node.data.rows import Rows
from node.params.architecture import Architecture
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths
from scripts.text_models import (
    ARCHITECTURE,
    held_out,
    kept_model,
    parts,
    repeated,
    text,
    tuned,
    unigram_entropy,
)

ROOT: Final = Path(__file__).resolve().parent.parent
KEPT: Final = ROOT / "runs" / "transformers"
SEEDS: Final = (0, 1)
ALPHAS: Final = tuple(Millionths(ONE * step // 10) for step in range(11))
METHODS: Final = (
    identity.NAME,
    weight_matching.NAME,
    activation_matching.NAME,
    universe.NAME,
    joint.NAME,
    orthogonal.NAME,
    learned_gauge.NAME,
)
OURS: Final = learned_gauge.NAME
REPORT_ROWS: Final = 512
CHOICE_ROWS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The line between a model and another as a method aligns it."""

    losses: tuple[float, ...]
    """On the report's rows, at `ALPHAS`."""
    best: Millionths
    """α* by the broker's rows."""
    seconds: float
    """Of aligning."""

    @property
    def barrier(self) -> float:
        """The most by which a loss exceeds the line between the ends; 0 at least."""
        first, last = self.losses[0], self.losses[-1]
        return max(
            loss - (first + (last - first) * alpha / ONE)
            for alpha, loss in zip(ALPHAS, self.losses, strict=True)
        )

    def at(self, alpha: Millionths) -> float:
        """Return the loss at one of `ALPHAS`."""
        return self.losses[ALPHAS.index(alpha)]


def thinned(rows: Rows, count: int) -> Rows:
    """Return so many of the rows, evenly spread."""
    return rows.take(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64))


def mean_loss(architecture: Architecture, tensors: Tensors, rows: Rows) -> float:
    """Return the mean loss over all places of the rows, in nats."""
    sides = (torch.from_numpy(side.copy()) for side in (rows.inputs_RF, rows.targets_R))
    return float(row_losses(architecture, tensors, *sides).mean())


def path_of(method: str, buyer: Verified, seller: Verified, choice: Rows, report: Rows) -> Line:
    """Align and measure; the broker's rows are seen without their targets."""
    probe_RF = torch.from_numpy(choice.inputs_RF.copy())
    began = time.perf_counter()
    aligned = ALIGNERS[method](buyer, seller, seed=0, probe_RF=probe_RF)
    seconds = time.perf_counter() - began
    chosen = thinned(choice, CHOICE_ROWS)
    found: dict[str, list[float]] = {"choice": [], "report": []}
    for alpha in ALPHAS:
        merged = interpolate(buyer.tensors, aligned.transformed, alpha)
        for name, rows in (("choice", chosen), ("report", report)):
            found[name].append(mean_loss(buyer.architecture, merged, rows))
    best = ALPHAS[int(np.argmin(found["choice"]))]
    return Line(losses=tuple(found["report"]), best=best, seconds=seconds)


def control_of(buyer: Verified, choice: Rows, report: Rows) -> Iterator[dict[str, Any]]:
    """Tune the buyer's model on the broker's rows instead of merging it, and measure that."""
    for stopping, name in ((False, "to the end"), (True, "stopped early")):
        began = time.perf_counter()
        side, steps = tuned(
            buyer.architecture, buyer.tensors, choice,
            seed=0, steps=learned_gauge.STEPS, stopping=stopping,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        yield {
            "case": f"control: buyer tuned on the broker's rows, {name}: loss",
            "value": round(mean_loss(buyer.architecture, side, report), 4),
            "unit": f"nats a byte, after {steps} of {learned_gauge.STEPS} steps, {seconds:.1f} s",
        }


def _rows_of(paths: Mapping[str, Line]) -> Iterator[dict[str, Any]]:
    lowest = paths[weight_matching.NAME].barrier
    for method, path in paths.items():
        name = f"{method} (ours)" if method == OURS else method
        other = method != weight_matching.NAME
        half = path.at(Millionths(ONE // 2))
        yield {
            "case": f"{name}: barrier",
            "value": round(path.barrier, 4),
            "unit": "nats a byte",
            "against": weight_matching.NAME if other else None,
            "ratio": path.barrier / lowest if other and lowest > 0 else None,
        }
        yield {"case": f"{name}: loss at α .5", "value": round(half, 4), "unit": "nats a byte"}
        yield {
            "case": f"{name}: loss at α*",
            "value": round(path.at(path.best), 4),
            "unit": f"nats a byte, α* {path.best / ONE:.1f}",
        }
        yield {
            "case": f"{name}: aligning",
            "value": round(path.seconds, 1),
            "unit": "s, by the clock",
        }


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread; without the text a single row says what to install."""
    torch.set_num_threads(1)
    try:
        data = text()
    except DataError as error:
        return [{"case": f"skipped: {error}", "value": None, "unit": ""}]
    pieces = parts(data)
    held = held_out(pieces)
    choice, report = held["choice"], thinned(held["report"], REPORT_ROWS)
    buyer, seller = (kept_model(ARCHITECTURE, pieces["train"], seed, KEPT) for seed in SEEDS)
    found: list[dict[str, Any]] = [
        {
            "case": "the text's single bytes: entropy",
            "value": round(unigram_entropy(data), 4),
            "unit": "nats a byte",
        },
        {
            "case": "rows of the report that stand word for word in what is trained on",
            "value": repeated(report, pieces["train"]),
            "unit": f"of {len(report)} rows; of all {len(held['report']):,}: "
            f"{repeated(held['report'], pieces['train'])}",
        },
    ]
    sides = tuple(torch.from_numpy(side.copy()) for side in (report.inputs_RF, report.targets_R))
    for seed, model in zip(SEEDS, (buyer, seller), strict=True):
        said = {
            name: measured(METRICS[name], model.architecture, model.tensors, *sides)
            for name in ("loss", "accuracy")
        }
        found.append(
            {
                "case": f"model of seed {seed}: loss",
                "value": round(said["loss"], 4),
                "unit": f"nats a byte, perplexity {perplexity_of(said['loss']):.2f}, "
                f"{100 * said['accuracy']:.1f} % right",
            }
        )
    paths = {method: path_of(method, buyer, seller, choice, report) for method in METHODS}
    return [*found, *_rows_of(paths), *control_of(buyer, choice, report)]
