"""What a run of the devnet plays, checked before anything of it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker_node.evaluate.evaluation import QUADRATIC_SEARCH as EXACT_SEARCH
from node.config.table import Config
from node.data.datasets import load
from node.data.folder import default_data_folder
from node.data.rows import Dataset
from node.data.split import endowment
from node.devnet.arms import ARMS, OUT_OF_MARKET, Arm
from node.devnet.errors import DevnetError
from node.devnet.report.document import Metric
from node.protocol.types import Millionths, Wei
from node.roles.shells import endowment_of

MAX_AGENTS: Final = 64
RUNS: Final = Path("runs")
FIRST_TRADE_EPOCH: Final = 5
"""Index of the first epoch after which the market opens (Train 'n Trade's configuration)."""
DRILL: Final = "random"
"""The data set without rows: random tensors, for settlement alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run: every arm with every seed."""

    folder: Path
    """``runs/<name>``."""
    dataset: str = "mnist"
    protocol: str = "clean"
    arms: tuple[str, ...] = (OUT_OF_MARKET, "aligned")
    seeds: tuple[int, ...] = (0,)
    agents: int = 2
    rounds: int = 45
    """How often each agent may buy."""
    epochs_per_round: int = 1
    warmup_epochs: int = FIRST_TRADE_EPOCH
    priced: bool = True
    endowment: str = "paper"
    concentration: Millionths = Millionths(500_000)
    fee_basis_points: int = 200
    budget: Wei | None = None
    leaves: Mapping[int, int] = field(default_factory=dict)
    """By agent: after which round it goes away."""
    data_folder: Path | None = None
    processes: bool = False
    """Each node a process of its own."""

    @property
    def epochs(self) -> int:
        """Passes of each agent over its own rows, in all."""
        return self.warmup_epochs + self.rounds * self.epochs_per_round

    @property
    def name(self) -> str:
        return self.folder.name

    def check(self) -> Dataset | None:
        """Return the rows of the first seed, if there are any.

        Raises `MarketError` for what could not be played, before any of it is.
        """
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            name = unknown[0] if unknown else ""
            raise DevnetError(f"no arm {name!r}; there are {', '.join(ARMS)}")
        if not 2 <= self.agents <= MAX_AGENTS:
            raise DevnetError(f"{self.agents} agents; a market has 2 to {MAX_AGENTS}")
        if self.dataset == "linear" and self.agents > 2:
            raise DevnetError(f"the linear study has 2 agents, not {self.agents}")
        if not self.seeds:
            raise DevnetError("no seed: name at least one")
        strangers = [agent for agent in self.leaves if not 0 <= agent < self.agents]
        if strangers:
            raise DevnetError(
                f"agent {strangers[0]} cannot leave: there are 0 to {self.agents - 1}"
            )
        if self.dataset == DRILL:
            return None
        dataset = load(self.dataset, self.data, seed=self.seeds[0])
        for agent in range(self.agents):
            endowment(
                dataset,
                agent,
                self.agents,
                seed=self.seeds[0],
                rule=endowment_of(self.config(self.seeds[0], agent=agent)),
            )
        return dataset

    def document(self) -> dict[str, object]:
        """Return the spec as JSON: two runs with the same one may go on with one another."""
        plain = dataclasses.asdict(self)
        del plain["folder"]
        return {name: _plain(value) for name, value in plain.items()}

    @property
    def metric(self) -> Metric:
        """What the report says of a model: accuracy, or the loss where there are no classes."""
        return "loss" if self.dataset == "linear" else "accuracy"

    def search_of(self, arm: Arm) -> str:
        """Return how the α of this arm is chosen; in closed form where losses are squares."""
        if self.dataset == "linear" and not arm.search:
            return EXACT_SEARCH
        return arm.search_under(self.protocol)

    @property
    def data(self) -> Path:
        """Where the files of data sets are."""
        return self.data_folder or default_data_folder()

    @property
    def trainer(self) -> str:
        """How agents train on this data set."""
        return {DRILL: "random", "linear": "linear"}.get(self.dataset, "mlp")

    def config(self, seed: int, *, agent: int = 0) -> Config:
        """Return the settings that all nodes of one seed share."""
        return Config(
            task=self.dataset,
            dataset=self.dataset,
            data_folder=self.data_folder,
            trainer=self.trainer,
            agent=agent,
            agents=self.agents,
            rounds=self.rounds,
            epochs_per_round=self.epochs_per_round,
            warmup_epochs=self.warmup_epochs,
            protocol=self.protocol,
            endowment=self.endowment,
            concentration=self.concentration,
            seed=seed,
        )


def _plain(value: object) -> object:
    match value:
        case tuple():
            return list(value)
        case dict():
            return {str(key): inner for key, inner in value.items()}
        case Path():
            return str(value)
        case _:
            return value
