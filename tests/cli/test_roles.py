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
from node.chain.deploy import deploy_escrow
from node.protocol.signing import address_of
from node.protocol.types import Digest, Wei
from tests.cli.conftest import Command, private_file

ROOT = Path(__file__).resolve().parents[2]
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
NOWHERE = "http://127.0.0.1:1"
START_SECONDS = 40.0
STOP_SECONDS = 10.0


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


def test_an_agent_whose_chain_is_down_waits_and_says_so_once(
    waiting: subprocess.Popen[str], home: Path, pm_node: Command
) -> None:
    until(lambda: events(home), waiting)
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
        escrow = deploy_escrow(client, another, address_of(another), salt).escrow
    ran = pm_node(
        *("--json", "--role", "broker", "--dataset", "random", "--data-dir", home),
        *("--chain", chain_url, "--escrow", escrow),
    )
    assert ran.code == 5
    assert f"pm-node: the escrow at {escrow} does not trust broker 0x" in ran.err
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
