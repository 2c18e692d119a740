"""One market as processes: chain, broker and agents, by the commands that an operator types.

Over loopback TCP, the chain behind JSON-RPC. The settings are those of a market in one process,
the agents come to a meeting as there, and what the nodes leave is the same: a folder each,
with log and journal. Without prices the models are the same too, to the bit.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio

from node.chain.errors import ChainUnavailableError
from node.chain.web3_escrow import open_escrow
from node.config.table import SETTINGS, Config
from node.devnet.arms import Arm
from node.devnet.clearings import clearing_record
from node.devnet.errors import DevnetError
from node.devnet.launch import Market, Node, compose
from node.devnet.ledger import Ledger, read_ledger
from node.devnet.logs import Tail
from node.devnet.meeting import Meeting, serve_meeting
from node.devnet.play import (
    BROKER,
    SETTLE_SECONDS,
    SILENCE_SECONDS,
    TOLD,
    Ended,
    Listener,
    agent_config,
    agent_name,
    broker_config,
)
from node.devnet.spec import RunSpec
from node.journal import Journal, JournalError
from node.protocol.eip712 import Domain
from node.settlement import rounds

POLL_SECONDS: Final = 0.2


@dataclass
class ProcessPlay:
    """One market of a run: one arm, one seed."""

    spec: RunSpec
    arm: Arm
    seed: int
    folder: Path
    listener: Listener
    stop: trio.Event
    silence: float = SILENCE_SECONDS
    """How many seconds nothing may happen at any agent, and the broker may take to start."""
    _market: Market | None = None
    _tails: dict[str, Tail] = field(default_factory=dict)
    _up: set[str] = field(default_factory=set)
    _played: set[str] = field(default_factory=set)
    _left: set[str] = field(default_factory=set)
    _leaving: set[str] = field(default_factory=set)
    _last_sign_of_life: float = 0.0

    async def run(self) -> Ended:
        """Play to the end, or until `stop`. Raises `DevnetError`."""
        names = [agent_name(number) for number in range(self.spec.agents)]
        self._meeting = Meeting(names)
        self._leaving = {agent_name(number) for number in self.spec.leaves}
        async with trio.open_nursery() as nursery:
            address: str = await nursery.start(serve_meeting, self._meeting, names)
            market = self._market = self._compose(address)
            with self._logs(market):
                try:
                    await trio.to_thread.run_sync(market.start, self.silence)
                    ended = await self._play(market)
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(market.stop)
            nursery.cancel_scope.cancel()
        return ended

    def abandon(self) -> None:
        """Kill every process of the market, at once; for a signal handler."""
        if self._market is not None:
            self._market.abandon()

    def _compose(self, meeting: str) -> Market:
        market = compose(
            self.folder,
            agents=self.spec.agents,
            common=(),
            broker=flags_of(broker_config(self.spec, self.arm, self.seed)),
        )
        for number, node in enumerate(market.agents):
            config = replace(agent_config(self.spec, self.seed, number), meeting=meeting)
            node.command = [*node.command, *flags_of(config)]
        return market

    async def _play(self, market: Market) -> Ended:
        whole = await self._until_played(market)
        self._leaving.clear()
        for node in market.agents:
            if node.name in self._left:  # it comes back for what it is owed
                node.gone = False
                await trio.to_thread.run_sync(node.start)
                await self._until_up(market, node)
            elif not whole:
                await self._rest(market, node)
        await self._until_settled(market)
        return Ended(
            complete=whole,
            ledger=await trio.to_thread.run_sync(_ledger, market),
            clearing=await trio.to_thread.run_sync(self._clearing, market),
        )

    def _clearing(self, market: Market) -> dict[str, Any] | None:
        if not self.spec.clears:
            return None
        names = [node.name for node in market.agents]
        chain_id = market.address().chain_id
        return clearing_record(self.folder, names, BROKER, market.chain_url, chain_id)

    # ── what is heard of the agents ──

    @contextmanager
    def _logs(self, market: Market) -> Iterator[None]:
        """Follow the agents' logs from where they end now."""
        for node in market.agents:
            self._tails[node.name] = Tail(node.home / "logs" / "agent.jsonl")
        try:
            yield
        finally:
            for tail in self._tails.values():
                tail.close()

    async def _listen(self, market: Market) -> None:
        """Take in what the agents have logged since the last time."""
        for node in market.agents:
            for event in await trio.to_thread.run_sync(self._tails[node.name].read):
                self._last_sign_of_life = trio.current_time()
                if event["event"] in TOLD:
                    self.listener(node.name, event)
                if event["event"] == "node_ready":
                    self._up.add(node.name)
                if event["event"] == "rounds_played":
                    await self._has_played(node)

    async def _has_played(self, node: Node) -> None:
        """Wait for an agent no longer, and kill it if it is to leave: it has no round left."""
        self._played.add(node.name)
        if node.name in self._leaving:
            self._leaving.remove(node.name)
            self._up.remove(node.name)
            self._left.add(node.name)
            node.gone = True
            await trio.to_thread.run_sync(node.kill)
        self._meeting.leave(node.name)

    async def _until_played(self, market: Market) -> bool:
        """Wait for every agent's last round; False if a stop was asked for before."""
        self._last_sign_of_life = trio.current_time()
        while True:
            await self._listen(market)
            if len(self._played) == len(market.agents):
                return True
            for node in market.nodes:
                if not node.running and not node.gone:
                    raise DevnetError(f"{node.name} ended by itself:\n{node.output()}")
            if trio.current_time() - self._last_sign_of_life > self.silence:
                raise DevnetError(f"nothing happened for {self.silence:.0f} s; see {self.folder}")
            with trio.move_on_after(POLL_SECONDS):
                await self.stop.wait()
            if self.stop.is_set():
                return False

    # ── the end ──

    async def _until_up(self, market: Market, node: Node) -> None:
        """Wait until an agent is ready; one that ends instead is not waited for."""
        with trio.move_on_after(self.silence):
            while node.name not in self._up and node.running:
                await trio.sleep(POLL_SECONDS)
                await self._listen(market)

    async def _rest(self, market: Market, node: Node) -> None:
        """Have an agent train and buy no more; one that is not up yet only matters if it owes."""
        await self._listen(market)
        if node.name not in self._up:
            if not _open(node.home):
                node.gone = True
                await trio.to_thread.run_sync(node.stop)
                return
            await self._until_up(market, node)
        if node.running:
            node.rest()

    async def _until_settled(self, market: Market) -> None:
        """Wait until no node that is there has a trade or a round open."""
        present = (*market.agents, market.broker)
        with trio.move_on_after(SETTLE_SECONDS):
            while any(node.running and _open(node.home) for node in present):  # noqa: ASYNC110 (their journals tell nobody)
                await trio.sleep(POLL_SECONDS)


def flags_of(config: Config) -> list[str]:
    """Return settings as words of a command line, less what is so by default."""
    return [
        word
        for name, row in SETTINGS.items()
        if (value := getattr(config, name)) != row.default
        for word in (row.flag, row.kind.show(value))
    ]


def _open(home: Path) -> int:
    try:
        journal = Journal(home / "journal.db", read_only=True)
    except JournalError:
        return 0
    try:
        return len(journal.trades(open_only=True)) + rounds.unsettled(journal)
    finally:
        journal.close()


def _ledger(market: Market) -> Ledger:
    address = market.address()
    domain = Domain(chain_id=address.chain_id, escrow=address.escrow)
    # a key of nobody's: the ledger only reads
    escrow = open_escrow(market.chain_url, secrets.token_bytes(32), domain)
    try:
        return read_ledger(escrow)
    except ChainUnavailableError as error:
        raise DevnetError(f"the ledger cannot be read: {error}") from error
    finally:
        escrow.close()
