"""How good one merge of two trained models is, by alignment method.

Two agents train a perceptron of four hidden layers of 256, each on all rows of five classes and
on 10% or 1% of the rows of the others. The buyer merges once. Of the broker's rows (half of the
test rows) one half chooses α and shows the methods how units answer, without its labels; the
other half scores the gain, and gates the trade. Accuracies are of the other half of the test
rows, which nobody saw. Each method merges at its own α*, found by the same search; the
market's default goes on from there, and gives each unit a share of its own.

Beside the methods stand what the buyer has without a market: its own model fine-tuned on the
labels of the rows that chose α (the control: ten epochs over all of them, and, as the market's own
control has it, stopped by a quarter of them), and what costs twice to run: the mean of both
models' probabilities. Intervals are of the differences seed by seed, 95% by Student's t.

Trained models are kept under runs/quality, named by their settings.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from scipy.special import stdtrit

from broker_node.align import activation_matching, identity, least_squares, universe
from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.curve import LossCurve, row_losses
from broker_node.evaluate.gain import paired_gain
from broker_node.evaluate.methods import MARKET, PAPER
from broker_node.evaluate.search import SEARCHES
from broker_node.evaluate.tuning import tuned
from broker_node.evaluate.validation import draw_rows
from broker_node.merge import lerp
from broker_node.merge.registry import TRADED
from broker_node.merge.stages import Rows as ChoiceRows
from broker_node.verify.stages import Verified
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.params.architecture import apply
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import ONE, Digest, Millionths
from scripts.quality_models import ARCHITECTURE, fitted, silo

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / ".data"
KEPT: Final = ROOT / "runs" / "quality"
COLUMNS: Final = (("mnist", 10), ("mnist", 1), ("fashion", 10))
"""Data set, and the percentage of the scarce classes' rows that an agent holds."""
SEEDS: Final = (0, 1, 2, 3, 4)
SEARCH: Final = "halving-brent"
REFERENCE: Final = f"{PAPER.alignment}, α*"
DEFAULT: Final = f"{MARKET.alignment}, {MARKET.merging}"
METHODS: Final = {
    f"{identity.NAME}, α*": (identity.NAME, lerp.NAME),
    REFERENCE: (PAPER.alignment, PAPER.merging),
    f"{PAPER.alignment}, {MARKET.merging}": (PAPER.alignment, MARKET.merging),
    f"{activation_matching.NAME}, α*": (activation_matching.NAME, lerp.NAME),
    f"{universe.NAME}, α*": (universe.NAME, lerp.NAME),
    DEFAULT: (MARKET.alignment, MARKET.merging),
    f"{least_squares.NAME}, α*": (least_squares.NAME, lerp.NAME),
}
"""By name: alignment and merge."""
CONTROL: Final = "control: silo A fine-tuned on the broker's labels"
STOPPED: Final = "control: the same, stopped early, as of `--control tune`"
COMPARED: Final = (*(name for name in METHODS if name != REFERENCE), CONTROL, STOPPED)
ENSEMBLE: Final = "probability ensemble, twice the cost"
CASES: Final = ("silo A", "silo B", "FedAvg .5", *METHODS, CONTROL, STOPPED, ENSEMBLE)


def _pair_of(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.inputs_RF.copy()), torch.from_numpy(rows.labels_R.copy())


def _accuracy(tensors: Tensors, rows: Rows) -> float:
    """Return the share of right answers, in percent."""
    inputs_RF, labels_R = _pair_of(rows)
    with torch.inference_mode():
        right_R = apply(ARCHITECTURE, tensors, inputs_RF).argmax(1) == labels_R
    return 100 * float(right_R.double().mean())


def _ensemble(models: tuple[Verified, Verified], rows: Rows) -> float:
    inputs_RF, labels_R = _pair_of(rows)
    with torch.inference_mode():
        chances_RC = sum(
            apply(ARCHITECTURE, model.tensors, inputs_RF).softmax(1) for model in models
        )
    assert isinstance(chances_RC, torch.Tensor)
    return 100 * float((chances_RC.argmax(1) == labels_R).double().mean())


def merged(
    method: tuple[str, str], buyer: Verified, seller: Verified, choice: Rows, score: Rows, seed: int
) -> Tensors:
    """Return the merge from the method's α* on; the buyer's own where the score finds no gain."""
    alignment, merging = method
    inputs_RF, labels_R = _pair_of(choice)
    aligned = ALIGNERS[alignment](buyer, seller, seed=seed, probe_RF=inputs_RF)
    curve = LossCurve(ARCHITECTURE, buyer.tensors, aligned.transformed, inputs_RF, labels_R)
    alpha = SEARCHES[SEARCH](curve)
    rows = ChoiceRows(inputs_RF, labels_R)
    fitted = TRADED[merging](buyer, aligned.transformed, rows, alpha)
    found = interpolate(buyer.tensors, aligned.transformed, alpha, shares=fitted.shares)
    before_R, after_R = (
        row_losses(ARCHITECTURE, tensors, *_pair_of(score)) for tensors in (buyer.tensors, found)
    )
    return found if paired_gain(before_R, after_R).gain > 0 else buyer.tensors


def accuracies(dataset: Dataset, percent: int, seed: int) -> dict[str, float]:
    """Return the accuracy on the report's rows, in percent, of each of the `CASES`."""
    halves = clean_split(dataset)
    half = len(halves.validation) // 2
    drawn = draw_rows(
        Digest(hashlib.sha256(b"quality" + bytes([seed])).digest()),
        len(halves.validation),
        choice=half,
        score=half,
    )
    choice, score = (halves.validation.take(rows) for rows in (drawn.choice, drawn.score))
    buyer, seller = (silo(dataset, percent, agent, seed, KEPT) for agent in (0, 1))
    found: dict[str, Tensors] = {
        "silo A": buyer.tensors,
        "silo B": seller.tensors,
        "FedAvg .5": interpolate(buyer.tensors, seller.tensors, Millionths(ONE // 2)),
        **{name: merged(how, buyer, seller, choice, score, seed) for name, how in METHODS.items()},
        CONTROL: fitted(dict(buyer.tensors), choice, seed=seed),
        STOPPED: tuned(ARCHITECTURE, buyer.tensors, *_pair_of(choice), seed=seed).tensors,
    }
    measured = {name: _accuracy(tensors, halves.report) for name, tensors in found.items()}
    return {**measured, ENSEMBLE: _ensemble((buyer, seller), halves.report)}


def _interval(differences: list[float]) -> tuple[float, float]:
    """Return mean and half-width, 95% by Student's t."""
    count = len(differences)
    spread = statistics.stdev(differences) / math.sqrt(count)
    return statistics.mean(differences), float(stdtrit(count - 1, 0.975)) * spread


def _table(column: str, by_seed: list[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    paper = statistics.mean(found[REFERENCE] for found in by_seed)
    for case in CASES:
        values = [found[case] for found in by_seed]
        mean = statistics.mean(values)
        yield {
            "case": f"{column}: {case}" + (" (the default)" if case == DEFAULT else ""),
            "value": round(mean, 2),
            "unit": f"% ± {statistics.stdev(values):.2f} sd of {len(values)} seeds",
            "against": None if case == REFERENCE else f"{PAPER.alignment} (the paper)",
            "ratio": None if case == REFERENCE else mean / paper,
        }
    pairs = [*((case, REFERENCE) for case in COMPARED), (DEFAULT, CONTROL), (DEFAULT, STOPPED)]
    for case, other in pairs:
        mean, half = _interval([found[case] - found[other] for found in by_seed])
        role = " (the default)" if case == DEFAULT else ""
        against = PAPER.alignment if other == REFERENCE else other
        yield {
            "case": f"{column}: {case}{role} less {against}, paired",
            "value": round(mean, 2),
            "unit": f"points, {mean - half:+.2f} … {mean + half:+.2f}",
        }


def rows() -> list[dict[str, Any]]:
    """Measure now, on one thread; a column whose data are not there says so."""
    torch.set_num_threads(1)
    measured: list[dict[str, Any]] = []
    for name, percent in COLUMNS:
        column = f"{name} {percent}%"
        try:
            dataset = load(name, FOLDER)
        except DataError as error:
            measured.append({"case": f"{column}: skipped, {error}", "value": None, "unit": ""})
            continue
        measured += _table(column, [accuracies(dataset, percent, seed) for seed in SEEDS])
    return measured
