"""Who holds which rows: the agents' endowments, and the broker's rows and the report's.

Everything here is a function of a seed, through NumPy's Philox generator, whose streams are
the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, assert_never, get_args

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError
from node.data.rows import Dataset, Rows
from node.data.streams import stream

SPLIT_SEED: Final = 20231208
"""Fixes which test rows are the broker's; the same for everybody."""
SCARCE_PERCENT: Final = 10
"""Share of the scarce classes that an agent holds (Train 'n Trade §5.1)."""
DIRICHLET_DRAWS: Final = 100
"""Divisions that are drawn before it is said that none gives everybody enough."""
MAX_AGENTS: Final = 10_000

SplitProtocol = Literal["clean", "paper"]
PROTOCOLS: Final[tuple[SplitProtocol, ...]] = get_args(SplitProtocol)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """The rows to test with, as a protocol shares them out."""

    validation: Rows
    """The broker's: α is chosen and gains are scored on these."""
    report: Rows
    """Accuracies are reported on these."""


def split_test(
    dataset: Dataset, *, protocol: SplitProtocol = "clean", seed: int = SPLIT_SEED
) -> HeldOut:
    """Return the broker's rows and those that are reported on.

    `clean`: two halves that share no row; nobody has seen what is reported on. `paper`: both
    are all of the rows, as in Train 'n Trade. Raises `DataError` for another protocol.
    """
    if protocol == "paper":
        return HeldOut(validation=dataset.test, report=dataset.test)
    if protocol != "clean":
        raise DataError(f"no protocol {protocol!r}; there are {list(PROTOCOLS)}")
    order = stream(seed, 0).permutation(len(dataset.test)).astype(np.int64)
    half = len(order) // 2
    return HeldOut(
        validation=dataset.test.take(order[:half]), report=dataset.test.take(order[half:])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScarceClasses:
    """The paper's endowment: all rows, but few of a run of classes that is the agent's own."""

    percent: int = SCARCE_PERCENT
    """Share of its scarce classes that an agent holds, 0 … 100."""

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise DataError(f"the share of scarce classes must be 0 … 100%, got {self.percent}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet:
    """Every row is one agent's: the rows of each class are divided by a Dirichlet draw."""

    concentration: float = 0.5
    """β, .001 … 1,000: the smaller, the more a class is one agent's alone."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.concentration <= 1e3:
            raise DataError(f"the concentration must be .001 … 1,000, got {self.concentration}")


Endowment = ScarceClasses | Dirichlet


def endowment(
    dataset: Dataset,
    agent: int,
    agents: int,
    *,
    seed: int,
    rule: Endowment | None = None,
    least_rows: int = 1,
) -> Rows:
    """Return the rows that `agent` of `agents` trains on, by `rule`; the paper's without one.

    Raises `DataError` if the rule cannot serve so many agents, or leaves this one fewer than
    `least_rows`.
    """
    if not 0 <= agent < agents <= MAX_AGENTS:
        raise DataError(f"agent {agent} of {agents}, allowed are 1 … {MAX_AGENTS} agents")
    if dataset.holdings:
        return _holding(dataset, agent, agents, rule)
    match rule or ScarceClasses():
        case ScarceClasses(percent=percent):
            indices_R = _scarce(dataset, agent, agents, seed, percent)
        case Dirichlet(concentration=concentration):
            indices_R = _dirichlet(dataset, agent, agents, seed, concentration, least_rows)
        case unreachable:
            assert_never(unreachable)
    if len(indices_R) < least_rows:
        raise DataError(
            f"agent {agent} of {agents} would hold {len(indices_R)} rows of {dataset.name}, "
            f"fewer than {least_rows}"
        )
    return dataset.train.take(indices_R)


def _holding(dataset: Dataset, agent: int, agents: int, rule: Endowment | None) -> Rows:
    owners = len(dataset.holdings)
    if agents > owners:
        raise DataError(f"{dataset.name} was made for {owners} agents, not for {agents}")
    if rule is not None:
        raise DataError(f"the rows of {dataset.name} are the agents' already: no {rule}")
    start = sum(dataset.holdings[:agent])
    return dataset.train.take(np.arange(start, start + dataset.holdings[agent], dtype=np.int64))


def scarce_classes(agent: int, agents: int, classes: int) -> tuple[int, ...]:
    """Return the classes of which `agent` of `agents` holds little.

    The classes are cut into as many runs as there are agents, and agent i is short of run i:
    with two agents 0-4 and 5-9. A single agent is short of the first half. Raises `DataError`
    if there are more agents than classes.
    """
    if not 0 <= agent < agents:
        raise DataError(f"agent {agent} of {agents}")
    if agents > classes:
        raise DataError(
            f"{agents} agents cannot each be short of a class of their own among {classes}: "
            "take the endowment `dirichlet`"
        )
    runs = max(agents, 2)
    return tuple(range(agent * classes // runs, (agent + 1) * classes // runs))


def _scarce(
    dataset: Dataset, agent: int, agents: int, seed: int, percent: int
) -> NDArray[np.int64]:
    """All rows of the other classes, and a share of the scarce ones, drawn class by class."""
    labels_R = dataset.train.labels_R
    scarce = scarce_classes(agent, agents, dataset.classes)
    kept: list[NDArray[np.int64]] = []
    for label in range(dataset.classes):
        rows = np.flatnonzero(labels_R == label).astype(np.int64)
        if label in scarce:
            shuffled = stream(seed, 1, agent, label).permutation(rows)
            rows = shuffled[: len(rows) * percent // 100]
        kept.append(rows)
    return np.sort(np.concatenate(kept))


def _dirichlet(
    dataset: Dataset, agent: int, agents: int, seed: int, concentration: float, least_rows: int
) -> NDArray[np.int64]:
    """This agent's part of every class; another division is drawn if one leaves too few rows."""
    labels_R = dataset.train.labels_R
    counts = np.bincount(labels_R, minlength=dataset.classes)
    for draw in range(DIRICHLET_DRAWS if agents * least_rows <= len(labels_R) else 0):
        shares_CN = stream(seed, 5, draw, 0).dirichlet(
            np.full(agents, concentration), size=dataset.classes
        )
        edges_CN = [
            _edges(shares_N, int(count)) for shares_N, count in zip(shares_CN, counts, strict=True)
        ]
        held_N = np.sum([np.diff(edges_N) for edges_N in edges_CN], axis=0)
        if int(held_N.min()) >= least_rows:
            break
    else:
        raise DataError(
            f"{len(labels_R)} rows of {dataset.name} cannot be divided among {agents} agents by "
            f"Dirichlet({concentration:g}) so that each holds {least_rows}: take fewer agents, "
            "or a higher concentration"
        )
    parts = []
    for label, edges_N in enumerate(edges_CN):
        rows = np.flatnonzero(labels_R == label).astype(np.int64)
        shuffled = stream(seed, 5, draw, 1 + label).permutation(rows)
        parts.append(shuffled[edges_N[agent] : edges_N[agent + 1]])
    return np.sort(np.concatenate(parts))


def _edges(shares_N: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Return 0 … `rows` cut in the proportions of the shares, N + 1 edges."""
    edges_N = np.floor(np.cumsum(shares_N) * rows).astype(np.int64)
    edges_N[-1] = rows
    return np.concatenate([np.zeros(1, dtype=np.int64), np.minimum(edges_N, rows)])
