"""Three brokers of whom two must sign, each a process of its own, as an operator starts them.

They measure a small MLP on the digits, one with another number of threads: real sums of floats.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.chain.client import ChainClient
from node.chain.errors import ChainUnavailableError
from node.cli.verify import FITTED
from node.devnet.launch import Node, free_port
from node.home import Home
from node.identity import (
    create_account,
    load_or_create_peer_key,
    read_password,
)
from node.journal import Journal, JournalError
from node.protocol.cbor import decode
from node.protocol.eip712 import digest
from node.protocol.purchase import PurchaseRecord
from node.protocol.quorum import signers_of
from node.protocol.schema import from_map
from node.protocol.types import Address

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "node.cli.main"]
BROKERS = ("broker-0", "broker-1", "broker-2")
AGENTS = ("agent-0", "agent-1")
THREADS = {"broker-1": "2"}
"""Who computes with another number of threads than everybody else."""
SECONDS = 180.0


@dataclass
class Processes:
    """A chain, three brokers and two agents under one folder."""

    folder: Path
    chain_url: str
    escrow: str = ""
    accounts: dict[str, Address] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def environ(self, name: str = "") -> dict[str, str]:
        kept = {key: held for key, held in os.environ.items() if not key.startswith("PMNODE_")}
        threads = THREADS.get(name, "1")
        state = str(self.folder / "state" / name)
        return {**kept, "PMNODE_STATE": state, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}

    def home(self, name: str) -> Path:
        return self.folder / name

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *words],
            cwd=CHECKOUT, env=self.environ(), capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    def add(self, name: str, *words: str) -> None:
        home = self.home(name)
        self.nodes[name] = Node(name, [*PROGRAM, *words], home, self.environ(name))

    def stop(self) -> None:
        for node in reversed(self.nodes.values()):
            node.stop()

    def bought(self) -> list[PurchaseRecord]:
        """What the agents have paid for and have, of which the payment is final."""
        return [
            record
            for name in AGENTS
            for record in self.purchases(name)
            if record.state == "complete"
        ]

    def purchases(self, name: str) -> list[PurchaseRecord]:
        with contextlib.suppress(JournalError):
            journal = Journal(self.home(name) / "journal.db", read_only=True)
            try:
                rows = journal.trades(role="buyer")
            finally:
                journal.close()
            return [from_map(PurchaseRecord, decode(row.record)) for row in rows]
        return []

    def signers(self, record: PurchaseRecord) -> set[str]:
        from node.protocol.eip712 import Domain

        client = ChainClient(self.chain_url)
        try:
            domain = Domain(chain_id=client.chain_id(), escrow=Address(self.escrow))
        finally:
            client.close()
        found = signers_of(digest(domain, record.quote), record.broker_signature)
        return {name for name, account in self.accounts.items() if account in found}

    def reasons(self) -> set[str]:
        """Why rounds ended without a purchase."""
        return {event["because"] for name in AGENTS for event in self[name].events("leg_ended")}

    def until(self, condition: Callable[[], object], what: str) -> None:
        patience = time.monotonic() + SECONDS
        while not condition():
            for name, node in self.nodes.items():
                assert node.running or node.gone, (name, node.output())
            assert time.monotonic() < patience, (what, self.reasons())
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        self[name].gone = True
        self[name].kill()


def account_in(home: Path) -> Address:
    """Make the keys that a node would make for itself; returns its account."""
    place = Home(home).prepare()
    password = home / "development.password"
    password.touch(mode=0o600)
    password.write_text("a password of play money\n")
    return create_account(place.keystore, read_password(password), development=True).address


def listening(processes: Processes) -> dict[str, str]:
    """Where each broker will listen, its peer id included; it keeps both when it is restarted."""
    found = {}
    for name in BROKERS:
        seed = load_or_create_peer_key(Home(processes.home(name)).peer_key)
        found[name] = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{seed.peer_id}"
    return found


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder, port = tmp_path_factory.mktemp("quorum"), free_port()
    processes = Processes(folder, f"http://127.0.0.1:{port}")
    url, home = processes.chain_url, processes.home("chain")
    processes.add("chain", "chain", "--directory", str(home), "--port", str(port))
    try:
        processes["chain"].start()
        client = ChainClient(url, timeout=5)

        def answers() -> bool:
            with contextlib.suppress(ChainUnavailableError):
                return client.chain_id() > 0
            return False

        processes.until(answers, "the chain")
        client.close()
        processes.accounts = {name: account_in(processes.home(name)) for name in BROKERS}
        _deploy(processes)
        addresses = listening(processes)
        common = ("--dataset", "digits", "--task", "digits", "--chain", url)
        windows = ("--fund-seconds", "20", "--reveal-seconds", "30", "--grace-seconds", "5",
                   "--dispute-window-seconds", "1", "--minimum-dispute-window", "1")  # fmt: skip
        for name in BROKERS:
            others = [word for peer in BROKERS if peer != name
                      for word in ("--bootstrap", addresses[peer])]  # fmt: skip
            processes.add(
                name,
                *("--role", "broker", "--data-dir", str(processes.home(name)), *common),
                *("--escrow", processes.escrow, "--quorum", "2/3", *others, *windows),
                *("--listen", addresses[name].split("/p2p/")[0]),
            )
            processes[name].start()
        for name in BROKERS:
            processes.until(lambda name=name: processes[name].events("node_ready"), name)  # type: ignore[misc]
        joined = [word for name in BROKERS for word in ("--bootstrap", addresses[name])]
        for number, name in enumerate(AGENTS):
            processes.add(
                name,
                *("--role", "agent", "--data-dir", str(processes.home(name)), *common),
                *("--escrow", processes.escrow, *joined, *windows, "--rounds", "1000"),
                *("--agent", str(number), "--agents", "2", "--warmup-epochs", "1"),
                *("--round-patience-seconds", "5", "--listen", "/ip4/127.0.0.1/tcp/0"),
            )
            processes[name].start()
        yield processes
    finally:
        processes.stop()


def _deploy(processes: Processes) -> None:
    first = processes.home(BROKERS[0])
    ran = processes.command(
        *("contracts", "deploy", "--json", "--yes", "--chain", processes.chain_url),
        *("--brokers", ",".join(processes.accounts.values()), "--quorum", "2/3"),
        *("--bond", str(10**18), "--data-dir", str(first)),
        *("--password-file", str(first / "development.password")),
    )
    assert ran.returncode == 0, ran.stderr
    processes.escrow = json.loads(ran.stdout)["escrow"]


def test_a_trade_is_paid_on_chain_under_two_signatures(market: Processes) -> None:
    market.until(market.bought, "a trade that was paid")
    assert {len(market.signers(record)) for record in market.bought()} == {2}


def test_its_receipt_verifies_and_its_signers_have_seats(market: Processes, tmp_path: Path) -> None:
    held: list[tuple[str, PurchaseRecord]] = []

    def weights_are_held() -> bool:
        """Of an older round a buyer keeps its own weights no more."""
        for name in AGENTS:
            for record in market.purchases(name):
                if record.state == "complete" and _exported(market.home(name), record, tmp_path):
                    held.append((name, record))
                    return True
        return False

    market.until(weights_are_held, "a trade that was paid, and its weights")
    ((name, record),) = held
    words = ("--data-dir", str(market.home(name)))
    receipt = market.command("trade", "receipt", record.trade_id.hex(), *words)
    assert receipt.returncode == 0, receipt.stderr
    assert json.loads(receipt.stdout)["notice"] is not None
    (tmp_path / "receipt.json").write_text(receipt.stdout)
    verified = market.command(
        *("verify", str(tmp_path / "receipt.json"), "--json", "--dataset", "digits"),
        *("--base", str(tmp_path / "base.safetensors")),
        *("--sold", str(tmp_path / "sold.safetensors")),
        *("--chain", market.chain_url, "--escrow", market.escrow),
    )
    assert verified.returncode == 0, verified.stderr
    told = json.loads(verified.stdout)
    assert (told["holds"], told["threshold"], told["not_checked"]) == (True, 2, [FITTED])
    assert set(told["signers"]) <= set(market.accounts.values())
    assert len(told["signers"]) == 2


def _exported(home: Path, record: PurchaseRecord, folder: Path) -> bool:
    """Write out the weights that were measured; False if the buyer holds them no more."""
    from node.params.errors import StoreError
    from node.protocol.errors import RemoteProtocolError

    roots = {"base": record.evaluation.base_root, "sold": record.quote.offer_root}
    try:
        for what, root in roots.items():
            _export(home, root, record, folder / f"{what}.safetensors")
    except (StoreError, RemoteProtocolError):
        return False
    return True


def _export(home: Path, root: bytes, record: PurchaseRecord, to: Path) -> None:
    from node.agent.merging import read_tensors
    from node.params.encoding import save_safetensors
    from node.params.store import BlobStore
    from node.protocol.types import Digest

    blobs = BlobStore(home / "blobs")
    save_safetensors(read_tensors(blobs, record.evaluation.architecture, Digest(root)), to)


def test_brokers_of_other_thread_counts_sign_the_same_figures(market: Processes) -> None:
    def shared() -> bool:
        return any("broker-1" in market.signers(record) for record in market.bought())

    if not shared():
        market.kill("broker-2")  # then it is the first's only peer
        market.until(shared, "a trade that the other thread count has signed")
    for name in BROKERS:
        faults = {event["reason"] for event in market[name].events("peer_fault")}
        assert not faults & {"figures-differ", "recipe-differs", "merged-root", "loss-after"}
    for record in market.bought():
        measured = record.evaluation
        assert measured.score_rows > 100
        assert 0 < measured.loss_after < measured.loss_before


def test_with_one_broker_dead_trades_go_on(market: Processes) -> None:
    if market["broker-0"].running:
        for name in BROKERS:
            if not market[name].running:
                market[name].gone = False
                market[name].start()
        market.kill("broker-0")  # the first, that all have asked
    known = {record.trade_id for record in market.bought()}

    def another() -> Any:
        return [
            record
            for record in market.bought()
            if record.trade_id not in known and market.signers(record) == {"broker-1", "broker-2"}
        ]

    market.until(another, "a trade without the dead broker")
    said = [event for name in AGENTS for event in market[name].events("broker_passed_over")]
    assert said


def test_with_two_brokers_dead_there_is_no_deal_by_name_and_nothing_is_lost(
    market: Processes,
) -> None:
    from node.devnet.ledger import read_ledger

    market.kill("broker-1")
    market.until(lambda: "below-quorum" in market.reasons(), "below-quorum")
    market.until(lambda: not _open(market), "the end of every open trade")
    ledger = _read(market, read_ledger)
    assert ledger.stuck == 0
    assert ledger.open_trades == 0
    assert ledger.refunded == 0


def _open(market: Processes) -> bool:
    return any(
        record.state in {"funding", "funded", "revealed", "delivered"}
        for name in AGENTS
        for record in market.purchases(name)
    )


def _read(market: Processes, read: Callable[[Any], Any]) -> Any:
    import secrets

    from node.chain.web3_escrow import open_escrow
    from node.protocol.eip712 import Domain

    client = ChainClient(market.chain_url)
    domain = Domain(chain_id=client.chain_id(), escrow=Address(market.escrow))
    client.close()
    escrow = open_escrow(market.chain_url, secrets.token_bytes(32), domain, quorum=None)
    try:
        return read(escrow)
    finally:
        escrow.close()
