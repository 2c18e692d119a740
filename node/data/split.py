"""Who holds which rows: the agents' endowments, and the broker's rows apart from the report's.

Everything here is a function of a seed, through NumPy's Philox generator, whose streams are
the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.datasets import Dataset, Rows
from node.data.idx import DataError

SPLIT_SEED: Final = 20231208
"""Fixes which test rows are the broker's; the same for everybody."""
SCARCE_PERCENT: Final = 10
"""Share of the scarce classes that an agent holds (Train 'n Trade §5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Test rows cut in two halves that share no row."""

    validation: Rows
    """The broker's: α is chosen and gains are scored on these."""
    report: Rows
    """Seen by no agent and no broker: accuracies are reported on these."""


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def split_test(dataset: Dataset, *, seed: int = SPLIT_SEED) -> HeldOut:
    """Cut the test rows into the broker's half and the half that is reported on."""
    order = _generator(seed, 0).permutation(len(dataset.test)).astype(np.int64)
    half = len(order) // 2
    return HeldOut(
        validation=dataset.test.take(order[:half]), report=dataset.test.take(order[half:])
    )


def scarce_classes(agent: int, agents: int, classes: int) -> tuple[int, ...]:
    """Return the classes of which `agent` of `agents` holds little.

    The classes are cut into as many runs as there are agents (at most one a class), and
    agent i is short of run i modulo their number: with two agents 0-4 and 5-9. A single
    agent is short of the first half.
    """
    if not 0 <= agent < agents:
        raise DataError(f"agent {agent} of {agents}")
    runs = min(max(agents, 2), classes)
    edges = [run * classes // runs for run in range(runs + 1)]
    run = agent % runs
    return tuple(range(edges[run], edges[run + 1]))


def endowment(
    dataset: Dataset,
    agent: int,
    agents: int,
    *,
    seed: int,
    scarce_percent: int = SCARCE_PERCENT,
) -> Rows:
    """Return the rows that `agent` of `agents` trains on.

    All rows of the other classes, and `scarce_percent` (0 … 100) of its scarce classes,
    drawn class by class. Agents that lack the same classes draw independently.
    """
    if not 0 <= scarce_percent <= 100:
        raise DataError(f"scarce_percent must be 0 … 100, got {scarce_percent}")
    labels_R = dataset.train.labels_R
    scarce = scarce_classes(agent, agents, dataset.classes)
    kept: list[NDArray[np.int64]] = []
    for label in range(dataset.classes):
        rows = np.flatnonzero(labels_R == label).astype(np.int64)
        if label in scarce:
            shuffled = _generator(seed, 1, agent, label).permutation(rows)
            rows = shuffled[: len(rows) * scarce_percent // 100]
        kept.append(rows)
    return dataset.train.take(np.sort(np.concatenate(kept)))
