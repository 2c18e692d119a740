"""What ten sellers' data are worth to five models: exact Shapley values of models trained here.

G(S) is the test accuracy of a model trained on the rows of the sellers in S; every one of the
1,023 subsets is trained, for every model, and kept in a file that a later call reads. As in the
authors' code the values of a model are divided by their sum, so that they sum to 1.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from broker_node.mechanisms.gain_cache import GainCache, OnceGain
from broker_node.mechanisms.reading import Floats
from broker_node.mechanisms.shapley_values import shapley_values
from node.data.clean import clean_split
from node.data.datasets import load
from node.data.rows import Dataset, Rows
from node.data.split import Dirichlet, Division
from node.data.streams import stream
from node.protocol.types import Digest
from node.training.mlp import MlpTrainer, Settings

SELLERS: Final = 10
EQUAL, UNEQUAL, SAMPLED = "equal", "unequal", "sampled"
"""Every seller the same number of rows, drawn at random; or class by class by Dirichlet(1); or
equal, and the values not exact but of `ORDERS` sampled orders, as the authors'."""
ORDERS: Final = 60
PERCEPTRON: Final = Settings(hidden=(32, 16), learning_rate=0.1, batch_rows=32, scarce_percent=0)
EPOCHS: Final = 10
DIVISION_SEED: Final = 42

Accuracy = Callable[[Rows, Rows], float]
"""Of a model trained on the first rows, on the second: 0 … 1."""


def _by_sklearn(build: Callable[[], Any]) -> Accuracy:
    def accuracy(rows: Rows, test: Rows) -> float:
        if len(np.unique(rows.labels_R)) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a logistic regression that has not converged
            fitted = build().fit(rows.inputs_RF, rows.labels_R)
        return float((fitted.predict(test.inputs_RF) == test.labels_R).mean())

    return accuracy


def _perceptron(rows: Rows, test: Rows) -> float:
    """The market's own trainer."""
    trainer = MlpTrainer(rows=rows, report=test, classes=10, settings=PERCEPTRON, seed=42)
    parameters = trainer.initial()
    for epoch in range(EPOCHS):
        parameters = trainer.train_epoch(parameters, epoch).parameters
    return trainer.evaluate(parameters).accuracy


MODELS: Final[dict[str, Accuracy]] = {
    "lr": _by_sklearn(lambda: LogisticRegression(max_iter=1_000, random_state=42)),
    "svm": _by_sklearn(lambda: SVC(random_state=42)),
    "dt": _by_sklearn(lambda: DecisionTreeClassifier(random_state=42)),
    "knn": _by_sklearn(lambda: KNeighborsClassifier(n_neighbors=5, n_jobs=1)),
    "mlp": _perceptron,
}
"""Five of the authors' seven kinds; `mlp` is this market's, the others scikit-learn's as theirs."""


def parts_of(dataset: Dataset, division: str) -> list[Rows]:
    """Return the sellers' rows: disjoint, and all of the rows to train on."""
    if division != UNEQUAL:
        order = stream(DIVISION_SEED, 51).permutation(len(dataset.train)).astype(np.int64)
        return [dataset.train.take(part) for part in np.array_split(order, SELLERS)]
    dealt = Division(
        dataset=dataset,
        agents=SELLERS,
        seed=DIVISION_SEED,
        rule=Dirichlet(concentration=1.0),
        least_rows=20,
    )
    return [dealt.rows_of(agent) for agent in range(SELLERS)]


def together(parts: list[Rows], subset: int) -> Rows:
    """Return the rows of the sellers in `subset` (bit i = seller i)."""
    chosen = [part for seller, part in enumerate(parts) if subset >> seller & 1]
    return Rows(
        inputs_RF=np.concatenate([rows.inputs_RF for rows in chosen]),
        targets_R=np.concatenate([rows.targets_R for rows in chosen]),
    )


def performances(model: str, parts: list[Rows], test: Rows, cache: GainCache | None) -> Floats:
    """Return G of every subset, (2^sellers); 0 of the empty one."""
    gain = OnceGain(lambda subset: MODELS[model](together(parts, subset), test), cache)
    return np.array([0.0, *(gain(subset) for subset in range(1, 1 << len(parts)))])


def sampled(game: Floats, sellers: int, seed: int) -> Floats:
    """Return the mean marginal contributions (sellers) over `ORDERS` random orders."""
    values = np.zeros(sellers)
    for order in range(ORDERS):
        subset = 0
        for seller in stream(seed, 52, order).permutation(sellers):
            values[seller] += game[subset | 1 << int(seller)] - game[subset]
            subset |= 1 << int(seller)
    return values / ORDERS


def shares(values: Floats) -> Floats:
    """Return a model's Shapley values (sellers) divided by their sum.

    A seller whose data harm has 0: the fixed point needs values that are not negative.
    """
    positive = np.maximum(values, 0.0)
    return np.asarray(positive / positive.sum())


def trained(division: str, data_folder: Path, cache_folder: Path) -> dict[str, Any]:
    """Return each model's accuracy on all rows and its sellers' Shapley values, as JSON."""
    torch.set_num_threads(1)
    dataset = load("digits", data_folder)
    judged = clean_split(dataset, protocol="paper").report
    parts = parts_of(dataset, division)
    cache_folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"rows": [len(part) for part in parts], "models": {}}
    cached = UNEQUAL if division == UNEQUAL else EQUAL
    for number, model in enumerate(MODELS):
        recipe = f"digits {cached} {DIVISION_SEED} {model} {PERCEPTRON} {EPOCHS}"
        market = Digest(hashlib.sha256(recipe.encode()).digest())
        with GainCache(cache_folder / f"triplewin-{cached}.gains", market, SELLERS) as cache:
            game = performances(model, parts, judged, cache)
        exact = shapley_values(game)
        values = sampled(game, SELLERS, number) if division == SAMPLED else exact
        found["models"][model] = {
            "accuracy": float(game[-1]),
            "negative": int((values < 0).sum()),
            "shapley": shares(values).tolist(),
            "exact": shares(exact).tolist(),
        }
    return found
