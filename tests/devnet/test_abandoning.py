"""A second Ctrl-C abandons a run at once; nothing that it has started is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.devnet.errors import DevnetError
from node.devnet.experiment import SETTLING
from node.devnet.launch import Node

CHECKOUT = Path(__file__).parents[2]


def test_a_second_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "node.cli.main", "devnet", "--dataset", "random"),
            *("--processes", "--rounds", "50", "--name", str(folder)),
        ],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        patience = time.monotonic() + 120
        while not [*folder.glob("markets/*/agent-0/output.txt")]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        assert {"chain", "broker"} <= nodes_in(folder)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        told = next(line for line in process.stderr if SETTLING in line)
        assert "Ctrl-C again" in told
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    patience = time.monotonic() + 10  # the killed are somebody else's children now
    while nodes_in(folder) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not nodes_in(folder)


def nodes_in(folder: Path) -> set[str]:
    """Names of the nodes whose data directory is in `folder`, and that run."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found |= {Path(word).name for word in words if word.startswith(f"{folder}/markets/")}
    return found


def test_a_node_that_was_abandoned_is_dead_and_is_never_started_again(tmp_path: Path) -> None:
    node = Node("node", ["sleep", "600"], tmp_path, {"PATH": "/usr/bin:/bin"})
    node.start()
    node.abandon()
    node.abandon()
    assert node.process is not None
    assert node.process.wait(10) == -signal.SIGKILL
    with pytest.raises(DevnetError, match="not to be started"):
        node.start()
    node.abandon()
