"""The data directory, its lock, and the address file of a running broker."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.home import (
    ADDRESS_FILE,
    AlreadyRunningError,
    BrokerAddress,
    BrokerNotFoundError,
    Home,
    HomeError,
    announced_broker,
    default_data_dir,
    find_broker,
    state_directory,
)
from node.protocol.types import Address

ROOT = Path(__file__).resolve().parents[2]
BROKER = BrokerAddress(
    multiaddrs=(
        "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5",
    ),
    chain="http://127.0.0.1:8545",
    chain_id=131277322940537,
    escrow=Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"),
    account=Address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
    pid=os.getpid(),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "node").prepare()


@contextlib.contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python that prints a line once it is where the test wants it, and kill it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------- the data directory


def test_a_new_data_directory_is_for_its_owner_alone(home: Home) -> None:
    for folder in (home.root, home.keystore, home.blobs, home.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_preparing_twice_changes_nothing(home: Home) -> None:
    home.config.write_text("rounds = 3\n")
    home.prepare()
    assert home.config.read_text() == "rounds = 3\n"


def test_a_directory_that_others_may_write_is_refused(home: Home) -> None:
    home.keystore.chmod(0o770)
    with pytest.raises(HomeError, match="chmod"):
        home.prepare()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("")
    with pytest.raises(HomeError, match="in the way"):
        Home(tmp_path / "node").prepare()


def test_roles_on_one_machine_do_not_share_a_data_directory() -> None:
    environ = {"HOME": "/home/ada"}
    assert default_data_dir("agent", environ) == Path("/home/ada/.local/share/pm-node/agent")
    assert default_data_dir("agent", environ) != default_data_dir("broker", environ)
    assert default_data_dir("agent", environ | {"XDG_DATA_HOME": "/data"}) == Path(
        "/data/pm-node/agent"
    )


# --------------------------------------------------------------------------- the run lock


def test_a_second_process_learns_the_pid_of_the_first(home: Home) -> None:
    code = (
        "import sys; from pathlib import Path; from node.home import Home\n"
        f"with Home(Path({str(home.root)!r})).lock(): print('ready', flush=True); sys.stdin.read()"
    )
    with child(code) as process:
        with pytest.raises(AlreadyRunningError, match=str(process.pid)) as caught, home.lock():
            pass
        assert caught.value.pid == process.pid
    with home.lock():  # a kill -9 leaves nothing to clean up
        assert home.run_lock.read_text() == f"{os.getpid()}\n"


def test_a_lock_is_free_again_after_its_block(home: Home) -> None:
    with home.lock():
        pass
    assert home.run_lock.read_text() == ""
    with home.lock(), pytest.raises(AlreadyRunningError) as caught, home.lock():
        pass
    assert caught.value.pid == os.getpid()


def test_a_failed_attempt_does_not_let_the_holder_go(home: Home) -> None:
    with home.lock():
        for _ in range(2):
            with pytest.raises(AlreadyRunningError), home.lock():
                pass


# ------------------------------------------------------------- the broker of this machine


def test_a_running_broker_is_found_and_a_stopped_one_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with announced_broker(state, BROKER) as path:
        assert find_broker(state) == BROKER
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(state.iterdir()) == []
    with pytest.raises(BrokerNotFoundError) as caught:
        find_broker(state)
    assert caught.value.reason == "absent"


def test_the_file_of_a_killed_broker_is_stale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from node.home import BrokerAddress, announced_broker\n"
        f"broker = BrokerAddress(**{dataclasses.asdict(BROKER)!r})\n"
        f"with announced_broker(Path({str(tmp_path)!r}), broker):\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    with child(code):
        assert find_broker(tmp_path) == BROKER
    with pytest.raises(BrokerNotFoundError, match=str(BROKER.pid)) as caught:
        find_broker(tmp_path)
    assert caught.value.reason == "stale"


def test_a_later_broker_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    later = dataclasses.replace(BROKER, chain="http://127.0.0.1:9545")
    first = announced_broker(tmp_path, BROKER)
    first.__enter__()
    with announced_broker(tmp_path, later):
        first.__exit__(None, None, None)
        assert find_broker(tmp_path) == later


def test_a_new_broker_replaces_a_stale_file(tmp_path: Path) -> None:
    (tmp_path / ADDRESS_FILE).write_text("{}")
    with announced_broker(tmp_path, BROKER):
        assert find_broker(tmp_path) == BROKER


@pytest.fixture
def announced(tmp_path: Path) -> Iterator[Path]:
    with announced_broker(tmp_path, BROKER) as path:
        yield path


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"chain_id": "1"},
        {"chain_id": True},
        {"pid": 0},
        {"multiaddrs": []},
        {"multiaddrs": [1]},
        {"multiaddrs": "/ip4"},
        {"escrow": None},
        {"surprise": 1},
    ],
)
def test_a_garbled_address_file_is_refused(announced: Path, change: dict[str, Any]) -> None:
    announced.write_text(json.dumps(json.loads(announced.read_text()) | change))
    with pytest.raises(BrokerNotFoundError) as caught:
        find_broker(announced.parent)
    assert caught.value.reason == "malformed"


@given(junk=st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_in_the_address_file_end_in_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    state = tmp_path_factory.mktemp("state")
    (state / ADDRESS_FILE).write_bytes(junk)
    with pytest.raises(BrokerNotFoundError):
        find_broker(state)


def test_an_address_file_that_others_could_write_is_not_believed(announced: Path) -> None:
    announced.chmod(0o666)
    with pytest.raises(BrokerNotFoundError) as caught:
        find_broker(announced.parent)
    assert caught.value.reason == "exposed"


def test_a_link_in_place_of_the_address_file_is_not_followed(announced: Path) -> None:
    announced.rename(announced.with_name("elsewhere"))
    announced.symlink_to(announced.with_name("elsewhere"))
    with pytest.raises(BrokerNotFoundError):
        find_broker(announced.parent)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PMNODE_STATE": "/s", "XDG_RUNTIME_DIR": "/run/user/1"}, "/s"),
        ({"XDG_RUNTIME_DIR": "/run/user/1", "HOME": "/home/ada"}, "/run/user/1/pm-node"),
        ({"HOME": "/home/ada"}, "/home/ada/.local/state/pm-node"),
    ],
)
def test_the_state_directory_follows_the_environment(
    environ: dict[str, str], expected: str
) -> None:
    assert state_directory(environ) == Path(expected)
