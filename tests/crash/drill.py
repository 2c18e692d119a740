"""A market of real processes in which one is killed at a named moment of a named step.

The market goes on for the whole drill: only the victim is started again. Trades are of
random tensors; agent 0 only buys and agent 1 only sells, so that each moment is of one side.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node.chain.port import EscrowState
from node.chain.web3_escrow import open_escrow
from node.cli.failpoint import VARIABLE
from node.devnet.launch import Market, Node, compose
from node.devnet.ledger import Ledger, read_ledger
from node.journal import Journal
from node.params.store import BlobStore
from node.protocol import cbor
from node.protocol.book import body_of
from node.protocol.eip712 import Domain
from node.protocol.offer import Receipt
from node.protocol.purchase import PurchaseRecord
from node.protocol.schema import from_map
from node.protocol.types import Digest, UnixTime
from node.settlement.history import TradeSummary, trade_rows

REACH_SECONDS = 60.0
END_SECONDS = 120.0
FUND_SECONDS = 15
REVEAL_SECONDS = 12


@dataclass(frozen=True)
class Moment:
    """A step of a trade, whose process is at it, and before or after it has left that process."""

    step: str
    actor: str
    phase: str
    armed: str


def promise(step: str, actor: str, side: str, state: str) -> Moment:
    return Moment(step, actor, "saved", f"trade_changed,side={side},state={state}")


def asked(step: str, actor: str, kind: str) -> Moment:
    return Moment(step, actor, "sent", f"asked,kind={kind}")


def answered(step: str, actor: str, kind: str) -> Moment:
    return Moment(step, actor, "sent", f"answered,kind={kind}")


def transaction(step: str, actor: str) -> list[Moment]:
    return [Moment(step, actor, phase, f"{phase},step={step}") for phase in ("saved", "sent")]


MOMENTS = [
    promise("prepare goods", "seller", "seller", "prepared"),
    answered("prepare goods", "seller", "GoodsPrepared"),
    promise("propose quote", "broker", "broker", "proposed"),
    asked("propose quote", "broker", "Countersign"),
    promise("countersign", "seller", "seller", "countersigned"),
    answered("countersign", "seller", "Countersigned"),
    promise("answer quote", "broker", "broker", "quoted"),
    answered("answer quote", "broker", "Deal"),
    promise("fetch goods", "buyer", "buyer", "fetching"),
    asked("fetch goods", "buyer", "goods-data"),
    *transaction("fund", "buyer"),
    *transaction("reveal", "seller"),
    promise("deliver", "buyer", "buyer", "revealed"),
    promise("adopt", "buyer", "buyer", "delivered"),
    *transaction("finalize", "seller"),
    promise("publish receipt", "broker", "broker", "credited"),
    Moment("publish receipt", "broker", "sent", "sent,step=publish-receipt"),
    *transaction("withdraw", "seller"),
    *transaction("withdraw", "broker"),
]
REFUND_MOMENTS = [*transaction("refund", "buyer"), *transaction("withdraw", "buyer")]
CHAIN_MOMENTS = [
    Moment(step, "chain", stage, f"{stage},step={step}")
    for step in ("fund", "reveal", "finalize", "withdraw")
    for stage in ("accepted", "executed")
]
VICTIMS = ("buyer", "seller", "broker", "chain")


@dataclass
class Case:
    """One kill, and which trade was under way."""

    moment: Moment
    victim: str
    trade_id: str = ""
    outcome: str = ""


class Drill:
    """Kills processes of one market, and says how each trade ended."""

    def __init__(self, folder: Path) -> None:
        windows = (
            *("--fund-seconds", str(FUND_SECONDS), "--reveal-seconds", str(REVEAL_SECONDS)),
            *("--grace-seconds", "1", "--dispute-window-seconds", "1"),
            *("--minimum-dispute-window", "1"),
        )
        self.market: Market = compose(
            folder,
            agents=2,
            common=["--dataset", "random", "--task", "random"],
            broker=windows,
            agent=[
                *windows,
                *("--trainer", "random", "--rounds", "1000000", "--round-patience-seconds", "2"),
            ],
        )
        self.nodes: dict[str, Node] = {
            "buyer": self.market.agents[0],
            "seller": self.market.agents[1],
            "broker": self.market.broker,
            "chain": self.market.chain,
        }
        # a gain of a tenth never reaches all of the loss: this agent buys nothing
        self.nodes["seller"].command = [*self.nodes["seller"].command, "--min-gain", "1"]
        for name, node in self.nodes.items():
            points = folder / "points" / name
            points.mkdir(parents=True)
            node.environ = {**node.environ, VARIABLE: str(points)}
        self.folder = folder
        self._struck = {"0x" + bytes(32).hex()}
        """Trades at which a process died, and what the journal names where there is none."""

    @contextmanager
    def running(self) -> Iterator[Drill]:
        try:
            self.market.start()
            yield self
        finally:
            for node in self.nodes.values():
                node.kill()

    # ── one kill ──

    def kill_at(self, moment: Moment, victim: str) -> Case:
        """Freeze the actor at the moment, kill the victim, let go, start the victim again."""
        case = Case(moment, victim, self._freeze_at(moment))
        self.nodes[victim].kill()
        self._release(moment.actor)
        self.restart(victim)
        return case

    def kill_seller_and_at_refund(self, moment: Moment, victim: str) -> Case:
        """As `kill_at`, in a trade whose seller died before it could reveal."""
        reveal = promise("reveal", "seller", "seller", "revealing")
        trade_id = self._freeze_at(reveal)
        self._arm(moment)
        self.nodes["seller"].kill()
        self._release("seller")
        self._await_reached(moment)
        if victim != "seller":
            self.nodes[victim].kill()
        self._release(moment.actor)
        if victim != "seller":
            self.restart(victim)
        self.restart("seller")
        return Case(moment, victim, trade_id)

    def restart(self, name: str) -> None:
        """Start a killed process again, and wait until it is at work: one dies at a time."""
        node = self.nodes[name]
        lives = len(node.events("node_ready"))
        node.start()
        if name == "chain":
            self.market.await_chain()
            return
        if name == "broker":
            self.market.await_broker()
        patience = time.monotonic() + REACH_SECONDS
        while len(node.events("node_ready")) == lives:
            assert node.running, f"{name} ended by itself:\n{node.output()}"
            assert time.monotonic() < patience, f"{name} was not ready:\n{node.output()}"
            time.sleep(0.1)

    # ── how it ended ──

    def await_ends(self, cases: list[Case]) -> Ledger:
        """Wait until every trade of the cases is over on all sides; note each outcome."""
        patience = time.monotonic() + END_SECONDS
        while True:
            ledger = self.ledger()
            rows = {name: self._rows(name) for name in ("buyer", "seller", "broker")}
            for case in cases:
                case.outcome = self._outcome(case.trade_id, ledger, rows)
            if not ledger.stuck and not any(case.outcome.startswith("open") for case in cases):
                return ledger
            if time.monotonic() > patience:
                return ledger
            time.sleep(0.5)

    def _outcome(
        self, trade_id: str, ledger: Ledger, rows: dict[str, dict[str, TradeSummary]]
    ) -> str:
        state = ledger.states.get(Digest(bytes.fromhex(trade_id[2:])), EscrowState.NONE)
        buyer, seller, broker = (rows[name].get(trade_id) for name in ("buyer", "seller", "broker"))
        sides = ", ".join(
            f"{name} {row['state']}" if row else f"{name} -"
            for name, row in (("buyer", buyer), ("seller", seller), ("broker", broker))
        )
        if any(row is not None and not row["over"] for row in (buyer, seller, broker)):
            return f"open: {state.name.lower()}; {sides}"
        match state, buyer and buyer["state"], seller and seller["state"]:
            case EscrowState.PAID, "complete", "paid":
                return "buyer has the weights, seller the money"
            case EscrowState.REFUNDED, "refunded", "refunded":
                return "buyer has its money, seller its key"
            case EscrowState.NONE, (None | "abandoned"), (None | "expired"):
                return "nothing moved"
            case _:
                return f"WRONG: {state.name.lower()}; {sides}"

    def bought_weights(self, trade_id: str) -> bool:
        """Whether the buyer has the merged weights of a trade on its disk, whole."""
        home = self.nodes["buyer"].home
        journal = Journal(home / "journal.db")
        try:
            row = journal.trade(Digest(bytes.fromhex(trade_id[2:])), "buyer")
        finally:
            journal.close()
        assert row is not None
        record = from_map(PurchaseRecord, cbor.decode(row.record))
        blobs = BlobStore(home / "blobs")
        blobs.verify(record.evaluation.merged_root)
        return True

    def receipts(self) -> set[str]:
        """Return the trades whose receipt the broker keeps, and says again until it expires."""
        journal = Journal(self.nodes["broker"].home / "journal.db", read_only=True)
        try:
            bodies = [body_of(data) for data in journal.statements(UnixTime(0))]
        finally:
            journal.close()
        return {"0x" + body.trade_id.hex() for body in bodies if isinstance(body, Receipt)}

    def ledger(self) -> Ledger:
        address = self.market.address()
        escrow = open_escrow(
            self.market.chain_url,
            secrets.token_bytes(32),
            Domain(chain_id=address.chain_id, escrow=address.escrow),
        )
        try:
            return read_ledger(escrow)
        finally:
            escrow.close()

    # ── the frozen process ──

    def _freeze_at(self, moment: Moment) -> str:
        """Freeze the actor at the moment, in a trade at which nobody died; return the trade."""
        while True:
            self._arm(moment)
            self._await_reached(moment)
            trade_id = self._trade_id(moment)
            if trade_id not in self._struck:
                self._struck.add(trade_id)
                return trade_id
            self._release(moment.actor)

    def _points(self, actor: str) -> Path:
        return self.folder / "points" / actor

    def _arm(self, moment: Moment) -> None:
        partial = self._points(moment.actor) / "arming"
        partial.write_text(moment.armed, encoding="ascii")
        partial.rename(self._points(moment.actor) / "armed")

    def _await_reached(self, moment: Moment) -> None:
        reached = self._points(moment.actor) / "reached"
        patience = time.monotonic() + REACH_SECONDS
        while not reached.exists():
            assert time.monotonic() < patience, (
                f"{moment} was not reached:\n{self.nodes[moment.actor].output()}"
            )
            for name, node in self.nodes.items():
                if not node.running and name != "seller":
                    raise AssertionError(f"{name} ended by itself:\n{node.output()}")
            time.sleep(0.01)

    def _release(self, actor: str) -> None:
        (self._points(actor) / "reached").unlink()

    def _trade_id(self, moment: Moment) -> str:
        """Return the trade that the frozen process was at: its own log says so."""
        if moment.actor == "chain":
            step = {"fund": "buyer", "refund": "buyer"}.get(moment.step, "seller")
            return str(self.nodes[step].events("saved")[-1]["trade_id"])
        name = moment.armed.split(",")[0]
        return str(self.nodes[moment.actor].events(name)[-1]["trade_id"])

    def _rows(self, name: str) -> dict[str, TradeSummary]:
        return {row["trade_id"]: row for row in trade_rows(self.nodes[name].home / "journal.db")}


def table(cases: list[Case]) -> str:
    """Return step × victim × outcome as Markdown."""
    lines = [
        "| step | between | process at it | killed | outcome |",
        "|---|---|---|---|---|",
    ]
    between = {
        "saved": "journal and send",
        "sent": "send and receipt",
        "accepted": "log and execution",
        "executed": "execution and answer",
    }
    lines += [
        f"| {c.moment.step} | {between[c.moment.phase]} | {c.moment.actor} | {c.victim} "
        f"| {c.outcome} |"
        for c in cases
    ]
    return "\n".join(lines)
