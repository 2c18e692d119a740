"""One market in one process: chain, broker and agents, each with its own host and journal.

The shells are those of ``pm-node --role``; they talk over loopback TCP as in processes of
their own. Only two things are of the experiment: the chain is asked without HTTP, and the
agents wait for one another in each round (`Meeting`).
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from node.agent.agent import Agent
from node.chain.in_process import InProcessProvider
from node.chain.tester import DevelopmentChain
from node.chain.web3_escrow import open_escrow
from node.chronicle import RoundsPlayed
from node.config.table import Config
from node.devnet.arms import Arm
from node.devnet.errors import DevnetError
from node.devnet.floor import run_seed
from node.devnet.ledger import Ledger, read_ledger
from node.devnet.meeting import Meeting
from node.devnet.spec import RunSpec
from node.home import Home
from node.observe import Record
from node.protocol.eip712 import Domain
from node.protocol.types import Digest
from node.roles.opening import Opened, open_node, open_observer
from node.roles.shells import agent_of, broker_of, open_station, trainer_of
from node.settlement.desk import TradeDesk

LISTEN: Final = "/ip4/127.0.0.1/tcp/0"
BROKER: Final = "broker"
ROUND_SECONDS: Final = 300.0
"""How long nothing may happen at any agent before the market is given up."""
SETTLE_SECONDS: Final = 180.0
"""After the last round: the longest of the windows below, and then some."""
WINDOWS: Final[dict[str, int]] = {
    "fund_seconds": 30,
    "reveal_seconds": 60,
    "grace_seconds": 10,
    "dispute_window_seconds": 2,
    "minimum_dispute_window": 1,
}
SETTLE_POLL: Final = 0.1
PATIENCE_SECONDS: Final = 30
TOLD: Final = ("node_ready", "epoch_trained", "round_played", "leg_ended")
Listener = Callable[[str, Mapping[str, Any]], None]
"""Hears of the `TOLD` events as they come: the node's name, the event's fields."""


def agent_name(number: int) -> str:
    """Return what the folder and the report call an agent."""
    return f"agent-{number}"


@dataclass
class Play:
    """One market of a run: one arm, one seed."""

    spec: RunSpec
    arm: Arm
    seed: int
    folder: Path
    chain: DevelopmentChain
    listener: Listener
    stop: trio.Event
    """Set by whoever wants the market to end early, and in order."""
    _desks: dict[str, TradeDesk] = field(default_factory=dict)
    _played: dict[str, trio.Event] = field(default_factory=dict)
    _agents: dict[str, Agent] = field(default_factory=dict)
    _coming: int = 0
    """Agents that are being opened again."""
    _last_sign_of_life: float = 0.0

    async def run(self) -> Ended:
        """Play to the end, or until `stop`. Raises `DevnetError`."""
        names = [agent_name(number) for number in range(self.spec.agents)]
        self._played = {name: trio.Event() for name in names}
        meeting = Meeting(names)
        whole = False
        async with trio.open_nursery() as nursery:
            ready = Ready()
            nursery.start_soon(self._broker, ready)
            market = await ready.market()
            for number in range(self.spec.agents):
                nursery.start_soon(self._agent, number, market, meeting)
            whole = await self._until_played()
            for number in self.spec.leaves:  # it comes back for what it is owed
                if agent_name(number) not in self._agents:
                    self._coming += 1
                    nursery.start_soon(self._agent, number, market, meeting, True)
            for agent in self._agents.values():
                agent.rest()
            await self._until_settled()
            nursery.cancel_scope.cancel()
        return Ended(
            complete=whole,
            ledger=await trio.to_thread.run_sync(ledger_of, self.chain, market.domain),
        )

    # ── the nodes ──

    async def _broker(self, ready: Ready) -> None:
        config = dataclasses.replace(
            self._config(BROKER),
            role="broker",
            alignment=self.arm.alignment,
            alpha_search=self.spec.search_of(self.arm),
            fee_bps=self.spec.fee_basis_points,
        )
        with ExitStack() as stack:
            opened = await self._open(config, stack)
            async with open_station(opened) as station:
                broker = await broker_of(opened, station, trial_seed=self._trial_seed())
                self._desks[BROKER] = broker.desk
                ready.say(_Market(opened.escrow.domain, station.network.addresses()[0]))
                await broker.run()

    async def _agent(
        self, number: int, market: _Market, meeting: Meeting, back: bool = False
    ) -> None:
        """Run an agent; one that is `back` trains and buys no more."""
        name = agent_name(number)
        config = dataclasses.replace(
            self._config(name),
            agent=number,
            escrow=market.domain.escrow,
            bootstrap=(market.broker,),
            round_patience_seconds=PATIENCE_SECONDS,
            pricing="bargain" if self.spec.priced else "free",
            budget=self.spec.budget,
        )
        leaves = self.spec.leaves.get(number)

        async def meet(round_: int, stage: str) -> int | None:
            if leaves is not None and round_ > leaves:
                self._played[name].set()
                scope.cancel()
            return await meeting.arrive(name, round_, stage)

        try:
            with trio.CancelScope() as scope, ExitStack() as stack:
                opened = await self._open(config, stack)
                async with open_station(opened) as station:
                    agent = agent_of(opened, station, await trainer_of(config), meet=meet)
                    self._agents[name], self._desks[name] = agent, agent.desk
                    if back:
                        agent.rest()
                        self._coming -= 1
                    await agent.run()
        finally:
            meeting.leave(name)
            self._agents.pop(name, None)
            self._desks.pop(name, None)

    def _config(self, name: str) -> Config:
        return dataclasses.replace(
            self.spec.config(self.seed),
            data_dir=self.folder / name,
            listen=LISTEN,
            **_windows(),
        )

    async def _open(self, config: Config, stack: ExitStack) -> Opened:
        """Open what a node owns; the disk and the chain are asked in a thread."""
        assert config.data_dir is not None
        home = Home(config.data_dir).prepare()
        stack.enter_context(home.lock())
        observer = open_observer(config, home, stack, console=False)
        observer.subscribe(self._hear)
        endpoint = InProcessProvider(self.chain)
        return await trio.to_thread.run_sync(
            lambda: open_node(config, home, observer, os.environ, stack, endpoint=endpoint)
        )

    def _trial_seed(self) -> Digest:
        """The same rows for every arm of a seed, and for every repetition."""
        return run_seed(self.seed)

    def _hear(self, record: Record) -> None:
        self._last_sign_of_life = trio_time(self._last_sign_of_life)
        if isinstance(record.event, RoundsPlayed):
            self._played[str(record.context["node"])].set()
        if record.name in TOLD:
            self.listener(str(record.context["node"]), record.document())

    # ── the end ──

    async def _until_played(self) -> bool:
        """Wait for every agent's last round; False if a stop was asked for before."""
        self._last_sign_of_life = trio.current_time()
        while not all(event.is_set() for event in self._played.values()):
            if self.stop.is_set():
                return False
            if trio.current_time() - self._last_sign_of_life > ROUND_SECONDS:
                raise DevnetError(f"nothing happened for {ROUND_SECONDS:.0f} s; see {self.folder}")
            with trio.move_on_after(0.2):
                await self.stop.wait()
        return True

    async def _until_settled(self) -> None:
        """Wait until no node has an open trade; what a vanished side leaves open is reported."""
        with trio.move_on_after(SETTLE_SECONDS):
            while self._coming or any(d.open_trades() for d in self._desks.values()):  # noqa: ASYNC110
                await trio.sleep(SETTLE_POLL)


@dataclass(frozen=True, slots=True)
class _Market:
    """What agents join by."""

    domain: Domain
    broker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a market ended."""

    complete: bool
    """Whether every agent played all its rounds."""
    ledger: Ledger


def ledger_of(chain: DevelopmentChain, domain: Domain) -> Ledger:
    """Add up one market's escrow; the key that asks is nobody's."""
    escrow = open_escrow(InProcessProvider(chain), secrets.token_bytes(32), domain)
    try:
        return read_ledger(escrow)
    finally:
        escrow.close()


class Ready:
    """Tells when a market can be joined, and how."""

    def __init__(self) -> None:
        self._said = trio.Event()
        self._market: _Market | None = None

    def say(self, market: _Market) -> None:
        self._market = market
        self._said.set()

    async def market(self) -> _Market:
        await self._said.wait()
        assert self._market is not None
        return self._market


def _windows() -> dict[str, Any]:
    return dict(WINDOWS)


def trio_time(otherwise: float) -> float:
    """Return trio's clock, or `otherwise` on a thread that has none."""
    try:
        return trio.current_time()
    except RuntimeError:
        return otherwise
