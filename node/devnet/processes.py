"""One market as processes: chain, broker and agents, by the commands that an operator types.

Over loopback TCP, the chain behind JSON-RPC. What the nodes leave is the same as in one
process: a folder each, with log and journal.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from node.chain.errors import ChainUnavailableError
from node.chain.web3_escrow import open_escrow
from node.devnet.arms import Arm
from node.devnet.errors import DevnetError
from node.devnet.launch import Market, Node, compose, running
from node.devnet.ledger import Ledger, read_ledger
from node.devnet.play import PATIENCE_SECONDS, TOLD, WINDOWS, Ended, Listener, agent_name
from node.devnet.spec import RunSpec
from node.journal import Journal, JournalError
from node.protocol.eip712 import Domain

GRACE_SECONDS: Final = 60.0
"""After the last round, for the payments that are still in their dispute window."""
ROUND_SECONDS: Final = 120.0
"""How long a round may take before the run is given up."""
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
    _left: set[str] = field(default_factory=set)

    async def run(self) -> Ended:
        """Play to the end, or until `stop`. Raises `DevnetError`."""
        market = self._compose()
        with running(market):
            whole = await self._until_played(market)
            for node in market.agents:
                if node.gone:  # it comes back for what it is owed
                    before = len(node.events("node_ready"))
                    node.start()
                    node.gone = False
                    await self._until_back(node, before)
                if not whole or node.name in self._left:
                    node.rest()
            await self._until_settled(market)
            return Ended(complete=whole, ledger=await trio.to_thread.run_sync(_ledger, market))

    def _compose(self) -> Market:
        spec = self.spec
        common = _flags(
            dataset=spec.dataset,
            task=spec.dataset,
            seed=self.seed,
            protocol=spec.protocol,
            endowment=spec.endowment,
            **({"data_folder": spec.data_folder} if spec.data_folder else {}),
        )
        windows = _flags(**WINDOWS)
        return compose(
            self.folder,
            agents=spec.agents,
            common=common,
            broker=[
                *windows,
                *_flags(
                    alignment=self.arm.alignment,
                    alpha_search=spec.search_of(self.arm),
                    fee_bps=spec.fee_basis_points,
                ),
            ],
            agent=[
                *windows,
                *_flags(
                    trainer=spec.trainer,
                    rounds=spec.rounds,
                    warmup_epochs=spec.warmup_epochs,
                    epochs_per_round=spec.epochs_per_round,
                    round_patience_seconds=PATIENCE_SECONDS,
                    offers_per_round=spec.agents - 1,
                    pricing="bargain" if spec.priced else "free",
                    **({} if spec.budget is None else {"budget": spec.budget}),
                ),
            ],
        )

    async def _until_played(self, market: Market) -> bool:
        told: dict[str, int] = {}
        quiet_since = time.monotonic()
        while True:
            for number, node in enumerate(market.agents):
                events = await trio.to_thread.run_sync(node.log, TOLD)
                for event in events[told.get(node.name, 0) :]:
                    quiet_since = time.monotonic()
                    self.listener(agent_name(number), event)
                told[node.name] = len(events)
                self._leave(number, node)
            if all(node.gone or node.events("rounds_played") for node in market.agents):
                return True
            for node in market.nodes:
                if not node.running and not node.gone:
                    raise DevnetError(f"{node.name} ended by itself:\n{node.output()}")
            if time.monotonic() - quiet_since > ROUND_SECONDS:
                raise DevnetError(f"no round ended for {ROUND_SECONDS:.0f} s; see {self.folder}")
            with trio.move_on_after(POLL_SECONDS):
                await self.stop.wait()
            if self.stop.is_set():
                return False

    def _leave(self, number: int, node: Node) -> None:
        """Kill an agent that is to go away, once it has played its last round."""
        last = self.spec.leaves.get(number)
        if last is not None and not node.gone and len(node.events("round_played")) >= last:
            node.gone = True
            self._left.add(node.name)
            node.kill()

    async def _until_back(self, node: Node, before: int) -> None:
        """Wait until a node is up once more than it was `before` it was started again."""
        patience = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < patience and len(node.events("node_ready")) <= before:  # noqa: ASYNC110
            await trio.sleep(POLL_SECONDS)

    async def _until_settled(self, market: Market) -> None:
        """Wait until no node has an open trade."""
        present = (*market.agents, market.broker)
        patience = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < patience and any(  # noqa: ASYNC110 (their journals tell nobody)
            _open(node.home) for node in present
        ):
            await trio.sleep(POLL_SECONDS)


def _flags(**values: object) -> list[str]:
    return [
        part
        for name, value in values.items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]


def _open(home: Path) -> int:
    try:
        journal = Journal(home / "journal.db", read_only=True)
    except JournalError:
        return 0
    try:
        return len(journal.trades(open_only=True))
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
