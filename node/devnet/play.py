"""One market in one process: chain, broker and agents, each with its own host and journal.

The shells are those of ``pm-node --role``; they talk over loopback TCP as in processes of
their own. Only two things are of the experiment: the chain is asked without HTTP, and the
agents wait for one another in each round (`Meeting`). The settings of the nodes are those of
`broker_config` and `agent_config`, here as in processes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
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
from node.data.rows import Dataset
from node.devnet.arms import Arm
from node.devnet.clearings import clearing_record
from node.devnet.defaults import CALL_BUDGET
from node.devnet.errors import DevnetError
from node.devnet.floor import run_seed
from node.devnet.ledger import Ledger, read_ledger
from node.devnet.meeting import Meeting
from node.devnet.spec import RunSpec
from node.home import Home
from node.journal import Journal
from node.observe import Record
from node.protocol.eip712 import Domain
from node.protocol.types import Wei
from node.roles.opening import Opened, open_node, open_observer
from node.roles.shells import agent_of, broker_of, open_station, trainer_of
from node.settlement import rounds
from node.settlement.desk import TradeDesk

BROKER: Final = "broker"
SILENCE_SECONDS: Final = 300.0
"""How long nothing may happen at any agent before the market is given up, besides
`SECONDS_A_MEGABYTE` for each agent: rows are loaded, and trained on in one epoch, by agents
that share a few cores."""
SECONDS_A_MEGABYTE: Final = 0.1
SETTLE_SECONDS: Final = 180.0
"""After the last round: the longest of the windows below, and then some."""
WINDOWS: Final[dict[str, Any]] = {
    "fund_seconds": 30,
    "reveal_seconds": 60,
    "grace_seconds": 10,
    "dispute_window_seconds": 2,
    "minimum_dispute_window": 1,
}
SETTLE_POLL: Final = 0.1
ROUNDS: Final[dict[str, Any]] = {"gather_seconds": 10, "challenge_seconds": 4}
"""Of a market that clears by rounds: the chain's clock is the wall's, and each is waited for."""
PAY_SECONDS: Final = 10
"""To pay into a round, and one more for each agent: who is late is not in it."""
PATIENCE_SECONDS: Final = 30
TOLD: Final = ("node_ready", "epoch_trained", "round_played", "leg_ended")
Listener = Callable[[str, Mapping[str, Any]], None]
"""Hears of the `TOLD` events as they come: the node's name, the event's fields."""


def agent_name(number: int) -> str:
    """Return what the folder and the report call an agent."""
    return f"agent-{number}"


def silence_limit(agents: int, rows: Dataset | None) -> float:
    """Return how many seconds nothing may happen at any agent of a market with these rows."""
    megabytes = 0.0 if rows is None else rows.train.inputs_RF.nbytes / 1_000_000
    return SILENCE_SECONDS + agents * megabytes * SECONDS_A_MEGABYTE


def broker_config(spec: RunSpec, arm: Arm, seed: int) -> Config:
    """Return the settings of a market's broker, less where it lives and listens.

    The rows of its trials are the same for every arm of a seed, and for every repetition.
    """
    return dataclasses.replace(
        spec.config(seed),
        role="broker",
        alignment=arm.alignment,
        merging=arm.merging,
        alpha_search=spec.search_of(arm),
        fee_bps=spec.fee_basis_points,
        trial_seed="0x" + run_seed(seed).hex(),
        control=spec.control or "tune",
        replicas=spec.replicas,
        scan="merges" if spec.scan else "none",
        **WINDOWS,
        **({**ROUNDS, "pay_seconds": PAY_SECONDS + spec.agents} if spec.clears else {}),
    )


def agent_config(spec: RunSpec, seed: int, number: int) -> Config:
    """Return the settings of an agent, less where it lives, listens and joins.

    One that is to leave has no round after its last.
    """
    return dataclasses.replace(
        spec.strategic(spec.config(seed, agent=number), seed, number),
        rounds=spec.leaves.get(number, spec.rounds),
        round_patience_seconds=PATIENCE_SECONDS,
        pricing="bargain" if spec.priced else "free",
        budget=spec.budget,
        call_budget=call_budget(seed, number) if spec.calls else None,
        most_due=spec.budget if spec.clears else None,
        **WINDOWS,
    )


def call_budget(seed: int, number: int) -> Wei:
    """Return what an agent bids in each call: from half to one and a half of the usual budget.

    Drawn from the seed, so that every arm and every repetition has the same.
    """
    drawn = hashlib.sha256(f"pm-node devnet: call budget {seed} {number}".encode()).digest()
    part = int.from_bytes(drawn[:8], "big")
    return Wei(CALL_BUDGET // 2 + CALL_BUDGET * part // 2**64)


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
    silence: float = SILENCE_SECONDS
    """How many seconds nothing may happen at any agent."""
    _desks: dict[str, TradeDesk] = field(default_factory=dict)
    _journals: dict[str, Journal] = field(default_factory=dict)
    _played: dict[str, trio.Event] = field(default_factory=dict)
    _agents: dict[str, Agent] = field(default_factory=dict)
    _leaving: dict[str, trio.CancelScope] = field(default_factory=dict)
    """Agents that go away after their last round, and are still there."""
    _left: set[str] = field(default_factory=set)
    _coming: set[str] = field(default_factory=set)
    """Agents that went away, and are not there again yet."""
    _over: trio.Event = field(default_factory=trio.Event)
    """Set when nobody plays any more."""
    _meeting: Meeting = field(init=False)
    _last_sign_of_life: float = 0.0

    async def run(self) -> Ended:
        """Play to the end, or until `stop`. Raises `DevnetError`."""
        names = [agent_name(number) for number in range(self.spec.agents)]
        self._played = {name: trio.Event() for name in names}
        self._meeting = Meeting(names)
        async with trio.open_nursery() as nursery:
            market: _Market = await nursery.start(self._broker)
            for number in range(self.spec.agents):
                nursery.start_soon(self._agent, number, market)
            whole = await self._until_played()
            self._leaving.clear()
            self._coming = set(self._left)
            self._over.set()
            for agent in self._agents.values():
                agent.rest()
            await self._until_settled()
            nursery.cancel_scope.cancel()
        return Ended(
            complete=whole,
            ledger=await trio.to_thread.run_sync(ledger_of, self.chain, market.domain),
            clearing=await trio.to_thread.run_sync(self._clearing, market.domain.chain_id),
        )

    def _clearing(self, chain_id: int) -> dict[str, Any] | None:
        if not self.spec.clears:
            return None
        names = [agent_name(number) for number in range(self.spec.agents)]
        return clearing_record(self.folder, names, BROKER, InProcessProvider(self.chain), chain_id)

    # ── the nodes ──

    async def _broker(self, *, task_status: Any) -> None:
        """Run the broker; started once agents can join its `_Market`."""
        config = broker_config(self.spec, self.arm, self.seed)
        with ExitStack() as stack:
            opened = await self._open(BROKER, config, stack)
            async with open_station(opened) as station:
                broker = await broker_of(opened, station)
                self._desks[BROKER], self._journals[BROKER] = broker.desk, station.journal
                task_status.started(_Market(opened.escrow.domain, station.network.addresses()[0]))
                await broker.run()

    async def _agent(self, number: int, market: _Market) -> None:
        """Run an agent; one that went away comes back at the end for what it is owed."""
        if number in self.spec.leaves:
            with trio.CancelScope() as self._leaving[agent_name(number)]:
                await self._run_agent(number, market)
            await self._over.wait()
        await self._run_agent(number, market)

    async def _run_agent(self, number: int, market: _Market) -> None:
        name = agent_name(number)
        config = dataclasses.replace(
            agent_config(self.spec, self.seed, number),
            escrow=market.domain.escrow,
            bootstrap=(market.broker,),
        )
        meet = functools.partial(self._meeting.arrive, name)
        try:
            with ExitStack() as stack:
                opened = await self._open(name, config, stack)
                async with open_station(opened) as station:
                    agent = agent_of(opened, station, await trainer_of(config), meet=meet)
                    self._agents[name], self._desks[name] = agent, agent.desk
                    self._journals[name] = station.journal
                    if self._over.is_set():
                        agent.rest()
                        self._coming.discard(name)
                    await agent.run()
        finally:
            self._agents.pop(name, None)
            self._desks.pop(name, None)
            self._journals.pop(name, None)

    async def _open(self, name: str, config: Config, stack: ExitStack) -> Opened:
        """Open what a node owns; the disk and the chain are asked in a thread."""
        config = dataclasses.replace(config, data_dir=self.folder / name)
        home = Home(self.folder / name).prepare()
        stack.enter_context(home.lock())
        observer = open_observer(config, home, stack, console=False)
        observer.subscribe(self._hear)
        endpoint = InProcessProvider(self.chain)
        return await trio.to_thread.run_sync(
            lambda: open_node(config, home, observer, os.environ, stack, endpoint=endpoint)
        )

    def _hear(self, record: Record) -> None:
        self._last_sign_of_life = trio_time(self._last_sign_of_life)
        if isinstance(record.event, RoundsPlayed):
            self._has_played(str(record.context["node"]))
        if record.name in TOLD:
            self.listener(str(record.context["node"]), record.document())

    def _has_played(self, name: str) -> None:
        """Wait for an agent no longer, and let it go if it is to leave."""
        self._played[name].set()
        self._meeting.leave(name)
        scope = self._leaving.pop(name, None)
        if scope is not None:
            self._left.add(name)
            scope.cancel()

    # ── the end ──

    async def _until_played(self) -> bool:
        """Wait for every agent's last round; False if a stop was asked for before."""
        self._last_sign_of_life = trio.current_time()
        while not all(event.is_set() for event in self._played.values()):
            if self.stop.is_set():
                return False
            if trio.current_time() - self._last_sign_of_life > self.silence:
                raise DevnetError(f"nothing happened for {self.silence:.0f} s; see {self.folder}")
            with trio.move_on_after(0.2):
                await self.stop.wait()
        return True

    async def _until_settled(self) -> None:
        """Wait until no node has a trade or a round open; what vanished sides leave is reported."""
        with trio.move_on_after(SETTLE_SECONDS):
            while self._coming or self._owing():  # noqa: ASYNC110
                await trio.sleep(SETTLE_POLL)

    def _owing(self) -> bool:
        return any(desk.open_trades() for desk in self._desks.values()) or (
            self.spec.clears and any(map(rounds.unsettled, self._journals.values()))
        )


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
    clearing: dict[str, Any] | None = None
    """What the rounds of a clearing house came to, in a market that has some."""


def ledger_of(chain: DevelopmentChain, domain: Domain) -> Ledger:
    """Add up one market's escrow; the key that asks is nobody's."""
    escrow = open_escrow(InProcessProvider(chain), secrets.token_bytes(32), domain)
    try:
        return read_ledger(escrow)
    finally:
        escrow.close()


def trio_time(otherwise: float) -> float:
    """Return trio's clock, or `otherwise` on a thread that has none."""
    try:
        return trio.current_time()
    except RuntimeError:
        return otherwise
