"""A node's start: what ends it, with which code, and what it waits out."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from node.chain.client import ChainClient
from node.chain.deploy import MarketPlan, deploy_market
from node.chain.rpc_server import ChainServer
from node.chain.tester import DevelopmentChain
from node.config.table import DAY, Config
from node.journal import Journal
from node.protocol.signing import address_of
from node.protocol.types import Digest, Wei
from node.roles.opening import CONFIRMATIONS
from node.roles.shells import dispute_window, least_dispute_window
from tests.cli.conftest import Command, private_file

ROOT = Path(__file__).resolve().parents[2]
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
NOWHERE = "http://127.0.0.1:1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
SPARED = {"cvxpy", "matplotlib", "networkx", "PIL", "pandas", "scipy", "sklearn"}
"""What takes seconds of a start to import, and an agent may never use."""


@pytest.fixture
def waiting(home: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent whose chain does not answer."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "node.cli.main", "--role", "agent", "--dataset", "random"),
            *("--data-dir", str(home), "--chain", NOWHERE, "--bootstrap", PEER),
        ],
        cwd=ROOT,
        env={**os.environ, "PMNODE_STATE": str(tmp_path / "state")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def events(home: Path) -> list[dict[str, Any]]:
    log = home / "logs" / "agent.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.05)


def libraries(process: subprocess.Popen[str]) -> set[str]:
    """The packages whose machine code a process has loaded, where the system says so."""
    maps = Path("/proc") / str(process.pid) / "maps"
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = [line.partition("/site-packages/")[2] for line in lines]
    return {path.partition("/")[0] for path in paths} - {""}


def test_an_agent_whose_chain_is_down_waits_and_says_so_once(
    waiting: subprocess.Popen[str], home: Path, pm_node: Command
) -> None:
    until(lambda: events(home), waiting)
    assert not SPARED & libraries(waiting)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)  # two more tries, at 0.25 s and 0.75 s
    told = pm_node("status", "--json", "--data-dir", home).json
    assert (told["running"], told["pid"]) == (True, waiting.pid)
    begun = time.monotonic()
    waiting.send_signal(signal.SIGTERM)
    _, err = waiting.communicate(timeout=STOP_SECONDS)
    assert time.monotonic() - begun < STOP_SECONDS
    assert waiting.returncode == 0
    assert len(err.splitlines()) == 1
    assert "chain away" in err
    assert [event["event"] for event in events(home)] == ["chain_away"]
    assert not pm_node("status", "--json", "--data-dir", home).json["running"]


def test_an_interrupted_start_ends_as_interrupted(
    waiting: subprocess.Popen[str], home: Path
) -> None:
    until(lambda: events(home), waiting)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=STOP_SECONDS)
    assert waiting.returncode == 130
    assert "Traceback" not in err


def test_a_wrong_password_ends_the_start(
    pm_node: Command, home: Path, tmp_path: Path, chain_url: str, password_file: Path
) -> None:
    words = ("--data-dir", home, "--password-file")
    assert pm_node("keys", "new", "--development", *words, password_file).code == 0
    wrong = private_file(tmp_path / "wrong", "wrong\n")
    ran = pm_node(
        *("--json", "--role", "agent", "--dataset", "random", *words, wrong),
        *("--chain", chain_url, "--bootstrap", PEER),
    )
    ran.refused(3, "does not open", "--password-file")


def test_a_password_file_that_others_read_ends_the_start(
    pm_node: Command, home: Path, tmp_path: Path, chain_url: str
) -> None:
    exposed = private_file(tmp_path / "exposed", "password\n", 0o644)
    ran = pm_node(
        *("--json", "--role", "agent", "--dataset", "random", "--data-dir", home),
        *("--password-file", exposed, "--chain", chain_url, "--bootstrap", PEER),
    )
    ran.refused(3, str(exposed), "chmod 600")


def test_a_contract_that_is_not_the_escrow_ends_the_start(
    pm_node: Command, home: Path, chain_url: str
) -> None:
    escrow = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    ran = pm_node(
        *("--json", "--role", "agent", "--dataset", "random", "--data-dir", home),
        *("--chain", chain_url, "--escrow", escrow, "--bootstrap", PEER),
    )
    assert ran.code == 5
    assert f"pm-node: there is no code at {escrow}" in ran.err
    assert "Traceback" not in ran.err


def test_an_escrow_that_takes_another_brokers_quotes_ends_the_start_of_a_broker(
    pm_node: Command, home: Path, chain_url: str
) -> None:
    with closing(ChainClient(chain_url)) as client:
        another = secrets.token_bytes(32)
        client.request_funds(address_of(another), Wei(10**18))
        salt = Digest(secrets.token_bytes(32))
        plan = MarketPlan(salt=salt, brokers=(address_of(another),), minimum_bond=Wei(1))
        escrow = deploy_market(client, another, plan).escrow
    ran = pm_node(
        *("--json", "--role", "broker", "--dataset", "random", "--data-dir", home),
        *("--chain", chain_url, "--escrow", escrow),
    )
    assert ran.code == 5
    assert f"pm-node: the escrow at {escrow} does not list broker 0x" in ran.err
    assert "Traceback" not in ran.err


def test_terms_that_outlast_their_receipts_end_the_start_of_a_broker(
    pm_node: Command, home: Path, chain_url: str
) -> None:
    ran = pm_node(
        *("--json", "--role", "broker", "--dataset", "random", "--data-dir", home),
        *("--chain", chain_url, "--dispute-window-seconds", "90000"),
    )
    assert ran.code == 2
    assert "dispute_window_seconds = 90000" in ran.err
    assert "shorten them to 82800 s" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("confirmations", [0, CONFIRMATIONS, 100])
def test_on_real_money_a_reveal_is_deep_well_before_the_dispute_window_is_over(
    confirmations: int,
) -> None:
    usual, short = Config(), Config(minimum_dispute_window=0)
    for config in (usual, short):
        least = least_dispute_window(config, confirmations=confirmations, play_money=False)
        quoted = dispute_window(config, confirmations=confirmations, play_money=False)
        assert quoted >= least >= 15 * (confirmations + 8)
    longer = Config(minimum_dispute_window=DAY, dispute_window_seconds=DAY)
    assert least_dispute_window(longer, confirmations=confirmations, play_money=False) == DAY
    assert dispute_window(longer, confirmations=confirmations, play_money=False) == DAY


def test_on_play_money_a_dispute_window_is_as_short_as_it_is_said_to_be() -> None:
    quick = Config(minimum_dispute_window=1, dispute_window_seconds=2)
    assert least_dispute_window(quick, confirmations=0, play_money=True) == 1
    assert dispute_window(quick, confirmations=0, play_money=True) == 2
    assert dispute_window(Config(), confirmations=0, play_money=True) == 60


def test_an_address_that_is_taken_ends_the_start(
    pm_node: Command, home: Path, chain_url: str
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"
        ran = pm_node(
            *("--json", "--role", "broker", "--dataset", "random", "--data-dir", home),
            *("--chain", chain_url, "--listen", taken),
        )
    assert ran.code == 4
    assert taken.rsplit("/", 1)[1] in ran.err
    assert "Traceback" not in ran.err
    assert signal.getsignal(signal.SIGTERM) == before


# ── the escrow that nobody named ──


Words = tuple[str | Path, ...]


def deployed(pm_node: Command, words: Words, chain_url: str, broker: str, salt: int) -> str:
    """Deploy a market of one broker with the account of `home`; returns its escrow."""
    ran = pm_node(
        *("contracts", "deploy", "--json", "--chain", chain_url, *words),
        *("--brokers", broker, "--quorum", "1/1", "--bond", "1"),
        *("--salt", "0x" + bytes([salt] * 32).hex()),
    )
    assert ran.code == 0, ran.err
    return str(ran.json["escrow"])


@pytest.mark.parametrize("role", ["broker", "agent"])
def test_a_role_takes_the_escrow_that_its_data_directory_deployed_last(
    pm_node: Command, home: Path, password_file: Path, chain_url: str, role: str
) -> None:
    own: Words = ("--data-dir", home, "--password-file", password_file)
    account = pm_node("keys", "new", "--development", "--json", *own).json["account"]
    older, newest = (deployed(pm_node, own, chain_url, account, salt) for salt in (1, 2))
    assert older != newest
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = (
            *("--json", "--role", role, "--dataset", "random", *own),
            *("--chain", chain_url, "--bootstrap", PEER),
            *("--listen", f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"),
        )
        assert pm_node(*words).code == 4  # everything was opened before the address was taken
        assert market_of(home) == newest
        deployed(pm_node, own, chain_url, account, 3)
        assert pm_node(*words).code == 4  # a node stays in the market that it began in
        assert market_of(home) == newest
        other = pm_node(*words, "--escrow", older)
        assert other.code == 5
        for said in (newest, older, "--escrow"):
            assert said in other.err


def test_the_market_of_a_broker_alone_is_deployed_once_more_where_the_chain_begins_anew(
    pm_node: Command, home: Path
) -> None:
    markets = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for _ in range(2):
            with DevelopmentChain() as chain, ChainServer(chain) as server:
                ran = pm_node(
                    *("--json", "--role", "broker", "--dataset", "random", "--data-dir", home),
                    *("--chain", server.url),
                    *("--listen", f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"),
                )
            assert ran.code == 4, ran.err
            markets.append(market_of(home))
    assert markets[0] == markets[1]


def market_of(home: Path) -> str:
    journal = Journal(home / "journal.db", read_only=True)
    try:
        market = journal.recall("market")
    finally:
        journal.close()
    assert isinstance(market, list)
    return str(market[1])


def test_a_file_of_deployments_that_cannot_be_used_ends_the_start(
    pm_node: Command, home: Path, password_file: Path, chain_url: str
) -> None:
    own: Words = ("--data-dir", home, "--password-file", password_file)
    account = pm_node("keys", "new", "--development", "--json", *own).json["account"]
    deployed(pm_node, own, chain_url, account, 3)
    (path,) = (home / "deployments").iterdir()
    path.write_text("{}")
    ran = pm_node(
        *("--json", "--role", "broker", "--dataset", "random", "--chain", chain_url, *own),
    )
    assert ran.code == 2
    assert str(path) in ran.err


def test_help_says_which_escrow_is_meant_where_none_is_named(pm_node: Command) -> None:
    assert "deployments/<chain id>.json" in " ".join(pm_node("--help").out.split())
