"""What a run of the devnet plays, checked before anything of it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from broker_node.evaluate.evaluation import QUADRATIC_SEARCH as EXACT_SEARCH
from node.agent.strategies.registry import WASH_TRADER
from node.config.table import ETHER, Config
from node.data.clean import require_clean
from node.data.datasets import load
from node.data.files import is_folder
from node.data.folder import default_data_folder
from node.data.rows import Dataset
from node.devnet import defaults
from node.devnet.arms import ARMS, Arm
from node.devnet.defaults import DRILL, STUDY
from node.devnet.errors import DevnetError
from node.devnet.report.document import Metric
from node.params.architecture import layout
from node.params.families.base import ArchitectureError
from node.protocol.types import Millionths, Wei
from node.roles.shells import endowment_of, protocol_of, strategy_of
from node.training.registry import DIVISIONS, build_trainer
from node.training.trainer import Task

RUNS: Final = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run: every arm with every seed."""

    folder: Path
    """``runs/<name>``."""
    dataset: str = "mnist"
    protocol: str = "clean"
    arms: tuple[str, ...] = defaults.USUAL_ARMS
    seeds: tuple[int, ...] = (0,)
    agents: int = defaults.USUAL_AGENTS
    rounds: int = defaults.USUAL_ROUNDS
    """How often each agent may buy."""
    epochs_per_round: int = defaults.USUAL_EPOCHS_PER_ROUND
    warmup_epochs: int = defaults.USUAL_WARMUP
    priced: bool = True
    endowment: str = "paper"
    concentration: Millionths = Millionths(defaults.USUAL_CONCENTRATION)
    fee_basis_points: int = defaults.USUAL_FEE_BASIS_POINTS
    budget: Wei | None = None
    layers: tuple[int, ...] = ()
    """Which layers of its model every agent offers (Table 2); empty means all."""
    strategies: tuple[str, ...] = ()
    """How each agent bids, asks and offers, by its number; empty means as is usual."""
    shading: Millionths = Millionths(defaults.USUAL_SHADING)
    replicas: str = defaults.USUAL_REPLICAS
    """What the broker does with a model for sale that is like another agent's."""
    control: str = ""
    """What the broker measures beside each gain: ``none``, ``scale`` or ``tune``; as is usual."""
    scan: bool = False
    """Whether the broker looks at the merge of each trial."""
    leaves: Mapping[int, int] = field(default_factory=dict)
    """By agent: after which round it goes away."""
    data_folder: Path | None = None
    processes: bool = False
    """Each node a process of its own."""
    mechanism: str = defaults.USUAL_MECHANISM
    """How money moves: by trades at a bargained price, or by rounds that clear all at once."""
    entry_fee: Wei = Wei(0)
    """Of a round, and never given back."""
    performance_value: Wei = Wei(ETHER)
    """What an accuracy of 1 is worth in a round."""
    producers: int = 1
    """How many of the agents make a model to sell."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know first of how this came to be asked for."""

    @property
    def epochs(self) -> int:
        """Passes of each agent over its own rows, in all."""
        return self.warmup_epochs + self.rounds * self.epochs_per_round

    @property
    def name(self) -> str:
        return self.folder.name

    def check(self) -> None:
        """Raise `MarketError` for what could not be played, before any of it is."""
        self._check_arms()
        if not defaults.LEAST_AGENTS <= self.agents <= defaults.MAX_AGENTS:
            raise DevnetError(
                f"{self.agents} agents; a market has {defaults.LEAST_AGENTS} to "
                f"{defaults.MAX_AGENTS}: name another number with --agents"
            )
        if self.dataset == STUDY and self.agents > 2:
            raise DevnetError(f"the linear study has 2 agents, not {self.agents}: --agents 2")
        if not self.seeds:
            raise DevnetError("no seed: name at least one")
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise DevnetError(
                f"seeds {', '.join(map(str, self.seeds))}: each is 0 or more, and stands there once"
            )
        if self.rounds < 1:
            raise DevnetError(f"{self.rounds} rounds; name at least one with --rounds")
        if self.warmup_epochs + self.epochs_per_round < 1:
            raise DevnetError(
                "no epoch before the first round: raise --warmup-epochs or --epochs-per-round to 1"
            )
        self._check_mechanism()
        self._check_leaves()
        self._check_strategies()
        self._check_data()
        self._check_layers()

    @property
    def calls(self) -> bool:
        """Whether prices are made in one call a round."""
        return self.mechanism == defaults.CALL_MECHANISM

    @property
    def clears(self) -> bool:
        """Whether money moves by rounds of a clearing house."""
        return self.mechanism in defaults.ROUND_MECHANISMS

    def _check_mechanism(self) -> None:
        if self.mechanism not in defaults.MECHANISMS:
            raise DevnetError(
                f"no mechanism {self.mechanism!r}; there are {', '.join(defaults.MECHANISMS)}"
            )
        self._check_rounds()
        if self.mechanism == defaults.USUAL_MECHANISM:
            return
        sold = "sells all beginnings of a model's layers" if self.calls else "fuses whole models"
        for wrong, why in (
            (
                self.clears and self.replicas == "refuse",
                "has all go on from one fused model: leave out --replicas refuse",
            ),
            (not self.priced, "is about money: leave out --free"),
            (bool(self.layers), f"{sold}: leave out --layers"),
            (
                self.clears and self.dataset in (DRILL, STUDY),
                f"measures accuracies, which {self.dataset} has not",
            ),
            (
                self.mechanism == "triplewin" and self.agents > defaults.MOST_EXACT,
                f"is exact, to {defaults.MOST_EXACT} agents: name fewer with --agents",
            ),
        ):
            if wrong:
                raise DevnetError(f"--mechanism {self.mechanism} {why}")

    def _check_rounds(self) -> None:
        shapley, triplewin = defaults.ROUND_MECHANISMS
        for option, changed, mechanisms in (
            ("--entry-fee", self.entry_fee != 0, (shapley,)),
            ("--performance-value", self.performance_value != ETHER, (shapley, triplewin)),
            ("--producers", self.producers != 1, (triplewin,)),
        ):
            if changed and self.mechanism not in mechanisms:
                raise DevnetError(
                    f"{option} is of --mechanism {' or '.join(mechanisms)}, not of {self.mechanism}"
                )
        if not 1 <= self.producers <= self.agents:
            raise DevnetError(f"{self.producers} producers among {self.agents} agents: --producers")

    def _check_arms(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            name = unknown[0] if unknown else ""
            raise DevnetError(f"no arm {name!r}; there are {', '.join(ARMS)}")
        if self.dataset == DRILL and self.arms != defaults.DRILL_ARMS:
            raise DevnetError(
                f"{DRILL} tensors are traded in the arm {defaults.DRILL_ARMS[0]} alone, not in "
                f"{', '.join(self.arms)}: leave out --arms, or name another --dataset"
            )

    def _check_leaves(self) -> None:
        for agent, after in self.leaves.items():
            if not 0 <= agent < self.agents:
                raise DevnetError(f"agent {agent} cannot leave: there are 0 to {self.agents - 1}")
            if not 1 <= after <= self.rounds:
                raise DevnetError(
                    f"agent {agent} cannot leave after round {after}: there are 1 to {self.rounds}"
                )

    def _check_strategies(self) -> None:
        if not self.strategies:
            return
        if len(self.strategies) != self.agents:
            raise DevnetError(
                f"{len(self.strategies)} strategies for {self.agents} agents: name one for each "
                "with --strategies, or some by number, as 0=lemon"
            )
        if not self.priced:
            raise DevnetError("strategies are of bids and asks: leave out --free")
        if self.mechanism != defaults.USUAL_MECHANISM:
            raise DevnetError(
                f"strategies are of bids and asks, which {self.mechanism} has not: leave out "
                "--mechanism"
            )
        if self.strategies.count(WASH_TRADER) == 1:
            raise DevnetError(f"a {WASH_TRADER} needs another one: name it for two agents or more")
        for number in range(self.agents):
            strategy_of(self.strategic(Config(), self.seeds[0], number))

    def strategic(self, config: Config, seed: int, number: int) -> Config:
        """Return the settings of an agent with its strategy; the wash-traders have one owner."""
        if not self.strategies:
            return config
        name = self.strategies[number]
        owner = f"devnet, seed {seed}" if name == WASH_TRADER else None
        return dataclasses.replace(config, strategy=name, shading=self.shading, owner=owner)

    def _check_data(self) -> None:
        """Raise `DataError` unless every agent has rows enough under every seed, of clean parts."""
        if self.data_folder is not None and not is_folder(self.data_folder):
            raise DevnetError(
                f"there is no folder {self.data_folder}: name another with --data-folder, or none"
            )
        if self.endowment != "dirichlet" and self.concentration != defaults.USUAL_CONCENTRATION:
            raise DevnetError(
                f"a concentration of {self.concentration / 1e6:g} is of the Dirichlet endowment: "
                "add --endowment dirichlet, or leave out --concentration"
            )
        dataset = self.rows(self.seeds[0])
        if dataset is None:
            return
        require_clean(dataset, protocol_of(self.config(self.seeds[0])))
        for seed in self.seeds:  # another seed deals other rows, or draws as many for the same
            DIVISIONS[self.trainer](self.task(seed), dataset).sizes()

    def _check_layers(self) -> None:
        if not self.layers:
            return
        trainer = build_trainer(self.trainer, self.task(self.seeds[0]))
        try:
            layout(trainer.architecture, self.layers)
        except ArchitectureError as error:
            raise DevnetError(f"--layers: {error.detail}") from error

    def rows(self, seed: int) -> Dataset | None:
        """Return the rows of a seed, if there are any; who holds them spares agents a copy each.

        Raises `DataError` if they are not to be had.
        """
        return None if self.dataset == DRILL else load(self.dataset, self.data, seed=seed)

    def document(self) -> dict[str, object]:
        """Return the spec as JSON: two runs with the same one may go on with one another."""
        plain = dataclasses.asdict(self)
        for name in ("folder", "notes"):
            del plain[name]
        if self.mechanism == defaults.USUAL_MECHANISM:
            del plain["mechanism"]  # as before there was another
        if self.replicas == defaults.USUAL_REPLICAS:
            del plain["replicas"]
        for name in ("scan", "control"):
            if not plain[name]:
                del plain[name]
        if not self.clears:
            for name in ("entry_fee", "performance_value", "producers"):
                del plain[name]
        return {name: _plain(value) for name, value in plain.items()}

    @property
    def metric(self) -> Metric:
        """What the report says of a model: accuracy, or the loss where there are no classes."""
        return "loss" if self.dataset == STUDY else "accuracy"

    def search_of(self, arm: Arm) -> str:
        """Return how the α of this arm is chosen; in closed form where losses are squares."""
        if self.dataset == STUDY and not arm.search:
            return EXACT_SEARCH
        return arm.search_under(self.protocol)

    @property
    def data(self) -> Path:
        """Where the files of data sets are."""
        return self.data_folder or default_data_folder()

    @property
    def trainer(self) -> str:
        """How agents train on this data set."""
        return {DRILL: "random", STUDY: "linear"}.get(self.dataset, "mlp")

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
            layers=self.layers,
            mechanism=self.mechanism,
            entry_fee=self.entry_fee,
            performance_value=self.performance_value,
            producers=self.producers,
        )

    def task(self, seed: int, *, agent: int = 0) -> Task:
        """Return what an agent of one seed is asked to train."""
        config = self.config(seed, agent=agent)
        return Task(
            dataset=self.dataset,
            data_folder=self.data,
            agent=agent,
            agents=self.agents,
            seed=seed,
            endowment=endowment_of(config),
            protocol=protocol_of(config),
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
