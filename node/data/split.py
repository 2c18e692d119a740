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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Division:
    """The rows to train on, dealt out among agents: by `rule`, or as the paper does.

    A division that cannot be made is a `DataError`, raised as soon as it is looked into.
    """

    dataset: Dataset
    agents: int
    seed: int
    rule: Endowment | None = None
    least_rows: int = 1
    """Nobody may hold fewer."""

    def sizes(self) -> tuple[int, ...]:
        """Return how many rows each agent holds, by the labels alone.

        Raises `DataError` if the rule cannot serve so many agents, or leaves one of them fewer
        than `least_rows`.
        """
        self._admit(0)
        if self.dataset.holdings:
            sizes = self.dataset.holdings[: self.agents]
        else:
            counts_C = np.bincount(self.dataset.train.labels_R, minlength=self.dataset.classes)
            sizes = self._sizes(counts_C)
        for agent, rows in enumerate(sizes):
            self._suffice(agent, rows)
        return sizes

    def rows_of(self, agent: int) -> Rows:
        """Return the rows that `agent` trains on.

        Raises `DataError` if the rule cannot serve so many agents, or leaves this one fewer
        than `least_rows`.
        """
        self._admit(agent)
        if self.dataset.holdings:
            start, held = sum(self.dataset.holdings[:agent]), self.dataset.holdings[agent]
            indices_R = np.arange(start, start + held, dtype=np.int64)
        else:
            match self.rule or ScarceClasses():
                case ScarceClasses(percent=percent):
                    indices_R = self._scarce(agent, percent)
                case Dirichlet(concentration=concentration):
                    indices_R = self._dirichlet(agent, concentration)
                case unreachable:
                    assert_never(unreachable)
        self._suffice(agent, len(indices_R))
        return self.dataset.train.take(indices_R)

    def _admit(self, agent: int) -> None:
        if not 0 <= agent < self.agents <= MAX_AGENTS:
            raise DataError(f"agent {agent} of {self.agents}, allowed are 1 … {MAX_AGENTS} agents")
        name, owners = self.dataset.name, len(self.dataset.holdings)
        if owners and self.agents > owners:
            raise DataError(f"{name} was made for {owners} agents, not for {self.agents}")
        if owners and self.rule is not None:
            raise DataError(
                f"the rows of {name} are the agents' already: no {self.rule}, take the "
                "endowment `paper`"
            )

    def _suffice(self, agent: int, rows: int) -> None:
        if rows < self.least_rows:
            raise DataError(
                f"agent {agent} of {self.agents} would hold {rows} rows of {self.dataset.name}, "
                f"fewer than {self.least_rows}"
            )

    def _sizes(self, counts_C: NDArray[np.int64]) -> tuple[int, ...]:
        match self.rule or ScarceClasses():
            case ScarceClasses(percent=percent):
                scarce_of = [
                    scarce_classes(agent, self.agents, self.dataset.classes)
                    for agent in range(self.agents)
                ]
                return tuple(
                    sum(
                        _share(int(count), percent) if label in scarce else int(count)
                        for label, count in enumerate(counts_C)
                    )
                    for scarce in scarce_of
                )
            case Dirichlet(concentration=concentration):
                _, edges_CN = self._cuts(counts_C, concentration)
                return tuple(np.diff(edges_CN).sum(axis=0).tolist())
            case unreachable:
                assert_never(unreachable)

    def _scarce(self, agent: int, percent: int) -> NDArray[np.int64]:
        """All rows of the other classes, and a share of the scarce ones, class by class."""
        labels_R = self.dataset.train.labels_R
        scarce = scarce_classes(agent, self.agents, self.dataset.classes)
        kept: list[NDArray[np.int64]] = []
        for label in range(self.dataset.classes):
            rows = np.flatnonzero(labels_R == label).astype(np.int64)
            if label in scarce:
                shuffled = stream(self.seed, 1, agent, label).permutation(rows)
                rows = shuffled[: _share(len(rows), percent)]
            kept.append(rows)
        return np.sort(np.concatenate(kept))

    def _dirichlet(self, agent: int, concentration: float) -> NDArray[np.int64]:
        """This agent's part of every class."""
        labels_R = self.dataset.train.labels_R
        counts_C = np.bincount(labels_R, minlength=self.dataset.classes)
        draw, edges_CN = self._cuts(counts_C, concentration)
        parts = []
        for label, edges_N in enumerate(edges_CN):
            rows = np.flatnonzero(labels_R == label).astype(np.int64)
            shuffled = stream(self.seed, 5, draw, 1 + label).permutation(rows)
            parts.append(shuffled[edges_N[agent] : edges_N[agent + 1]])
        return np.sort(np.concatenate(parts))

    def _cuts(
        self, counts_C: NDArray[np.int64], concentration: float
    ) -> tuple[int, NDArray[np.int64]]:
        """Return which draw serves everybody, and where it cuts each class: C x (N + 1) edges.

        Another division is drawn if one leaves too few rows to anybody.
        """
        rows = int(counts_C.sum())
        hopeless = self.agents * self.least_rows > rows
        for draw in range(0 if hopeless else DIRICHLET_DRAWS):
            shares_CN = stream(self.seed, 5, draw, 0).dirichlet(
                np.full(self.agents, concentration), size=len(counts_C)
            )
            edges_CN = np.stack(
                [
                    _edges(shares_N, int(count))
                    for shares_N, count in zip(shares_CN, counts_C, strict=True)
                ]
            )
            if int(np.diff(edges_CN).sum(axis=0).min()) >= self.least_rows:
                return draw, edges_CN
        raise DataError(
            f"{rows} rows of {self.dataset.name} cannot be divided among {self.agents} agents by "
            f"Dirichlet({concentration:g}) so that each holds {self.least_rows}: take fewer "
            "agents, or a higher concentration"
        )


def endowment(
    dataset: Dataset,
    agent: int,
    agents: int,
    *,
    seed: int,
    rule: Endowment | None = None,
    least_rows: int = 1,
) -> Rows:
    """Return the rows that `agent` of `agents` trains on: its part of that `Division`."""
    division = Division(dataset=dataset, agents=agents, seed=seed, rule=rule, least_rows=least_rows)
    return division.rows_of(agent)


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


def _share(rows: int, percent: int) -> int:
    return rows * percent // 100


def _edges(shares_N: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """Return 0 … `rows` cut in the proportions of the shares, N + 1 edges."""
    edges_N = np.floor(np.cumsum(shares_N) * rows).astype(np.int64)
    edges_N[-1] = rows
    return np.concatenate([np.zeros(1, dtype=np.int64), np.minimum(edges_N, rows)])
