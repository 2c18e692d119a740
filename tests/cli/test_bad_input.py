"""What a user gets wrong ends in one line that says what, and what to do, and a known code."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.exits import code_of
from node.home import ADDRESS_FILE, Home
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from tests.cli.conftest import Command, private_file

PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--data-dri", "x"], ["--data-dri", "--data-dir"]),
        (["status", "--data-dri", "x"], ["--data-dri", "--data-dir", "pm-node status --help"]),
        (["frobnicate"], ["frobnicate", "pm-node --help"]),
        (["--role", "observer"], ["--role", '"observer"', "agent, broker"]),
        (["--rounds", "0"], ["--rounds", '"0"', "1 to 1000000"]),
        (["--role", "agent", "--chain", "ftp://x"], ["--chain", '"ftp://x"', "http"]),
        (["--bootstrap", "/ip4/1.2.3.4/tcp/1"], ["--bootstrap", "1.2.3.4", "/p2p/"]),
        (["status", "--reserve", "1.5"], ["--reserve", '"1.5"', "wei"]),
        (["status", "--events", "many"], ["--events", "'many'", "integer"]),
        (["devnet", "--agents", "1"], ["--agents", "1", "2<=x<=64"]),
        (["devnet", "--dataset", "cifar"], ["--dataset", "'cifar'", "mnist"]),
        (["chain"], ["--directory"]),
        (["chain", "--directory", "d", "--port", "65536"], ["--port", "65536"]),
        (["keys", "import", "no-such-file"], ["no-such-file", "does not exist"]),
        (["keys", "export", "--raw"], ["--raw", "--to"]),
        (["keys", "import", "-"], ["--password-file"]),
        (["trade", "show"], ["ID", "pm-node trade show --help"]),
        (["--config", "no-such.toml", "status"], ["no-such.toml", "No such file"]),
    ],
)
def test_bad_words_are_refused_on_one_line_with_the_remedy(
    pm_node: Command, words: list[str], fragments: list[str]
) -> None:
    pm_node(*words).refused(2, *fragments)


def test_a_group_without_a_command_shows_its_help(pm_node: Command) -> None:
    ran = pm_node("keys")
    assert ran.code == 2
    assert "export" in ran.err


def test_a_bad_variable_is_named(pm_node: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMNODE_ROUNDS", "a few")
    pm_node("--role", "agent").refused(2, "PMNODE_ROUNDS", '"a few"', "whole number")


def test_a_bad_line_in_the_settings_names_the_file(pm_node: Command, home: Path) -> None:
    Home(home).prepare()
    private_file(home / "config.toml", "rounds = true\n")
    pm_node("status", "--data-dir", home).refused(2, f"{home}/config.toml", "rounds", "True")


def test_an_unknown_data_set_is_refused_before_anything_is_begun(
    pm_node: Command, home: Path
) -> None:
    ran = pm_node("--role", "agent", "--data-dir", home, "--dataset", "cifar")
    ran.refused(2, "--dataset", "cifar", "cifar10, digits, fashion, linear, mnist, random")
    assert not home.exists()


def test_an_absent_data_folder_is_refused(pm_node: Command, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    pm_node("--role", "agent", "--data-folder", absent).refused(2, "--data-folder", str(absent))


def test_a_data_folder_without_the_files_is_refused(pm_node: Command, tmp_path: Path) -> None:
    ran = pm_node("--role", "agent", "--data-folder", tmp_path)
    ran.refused(2, "dataset", "there is no MNIST", str(tmp_path)[:40], "fetch_data.py")


def test_an_agent_without_a_market_says_how_to_name_one(pm_node: Command, home: Path) -> None:
    ran = pm_node("--role", "agent", "--dataset", "random", "--data-dir", home)
    ran.refused(2, "absent", "--role broker", "--bootstrap", "--chain")


def test_the_address_file_of_a_killed_broker_is_called_stale(
    pm_node: Command, home: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    address = {
        "version": 1,
        "multiaddrs": [PEER],
        "chain": NOWHERE,
        "chain_id": 7,
        "escrow": "0x5FbDB2315678afecb367f032d93F642f64180aa3",
        "account": "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "pid": 4_194_999,
    }
    private_file(state / ADDRESS_FILE, json.dumps(address))
    ran = pm_node("--role", "agent", "--dataset", "random", "--data-dir", home)
    ran.refused(2, "stale", "process 4194999, which is gone", "--role broker")


@pytest.mark.parametrize(
    "words",
    [("--role", "agent", "--dataset", "random"), ("--role", "broker", "--dataset", "random"),
     ("keys", "new")],
)  # fmt: skip
def test_a_second_process_on_one_data_directory_is_refused(
    pm_node: Command, home: Path, words: tuple[str, ...]
) -> None:
    with Home(home).prepare().lock():
        pm_node(*words, "--data-dir", home).refused(4, "in use by process", "--data-dir")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_a_chain_on_a_taken_port_is_refused(
    pm_node: Command, tmp_path: Path, taken_port: int
) -> None:
    ran = pm_node("chain", "--directory", tmp_path / "chain", "--port", str(taken_port))
    ran.refused(4, f"127.0.0.1:{taken_port}", "in use", "--port")


def test_a_chain_in_no_directory_is_refused(pm_node: Command, tmp_path: Path) -> None:
    file = private_file(tmp_path / "file", "")
    pm_node("chain", "--directory", file / "chain").refused(3, str(file))


def test_a_chain_is_kept_from_other_machines(pm_node: Command, tmp_path: Path) -> None:
    ran = pm_node("chain", "--directory", tmp_path / "c", "--host", "0.0.0.0", "--port", "0")
    ran.refused(2, "0.0.0.0", "no password")


def test_a_data_directory_that_is_a_file_is_refused(pm_node: Command, tmp_path: Path) -> None:
    file = private_file(tmp_path / "file", "")
    pm_node("init", "--data-dir", file).refused(3, f"{file} is in the way")


def test_ours_and_theirs_end_differently() -> None:
    assert code_of(LocalProtocolError("a setting")) == 2
    assert code_of(RemoteProtocolError("bad-signature")) == 1
