"""How a run of the devnet ends: as a success only if it was one, and cleanly when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node.devnet.experiment import verdict

CHECKOUT = Path(__file__).parents[2]
NOTHING_TO_SPEND = ("--dataset", "random", "--rounds", "1", "--budget", "0")


def devnet(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "node.cli.main", "devnet", *words),
            *("--name", str(folder), "--json"),
        ],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_market_in_which_nobody_traded_is_no_success_unless_that_was_asked_for(
    folder: Path,
) -> None:
    with devnet(folder, *NOTHING_TO_SPEND) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "nobody traded" in err
    assert "cash" in err
    report = json.loads(out)
    assert report["trades"] == []
    assert verdict(report, allow_no_trade=True) == ""


def test_a_ledger_that_does_not_balance_is_no_success_even_so() -> None:
    report: dict[str, object] = {"ledger": {"balances": False}, "legs": {}}
    assert "does not balance" in verdict(report, allow_no_trade=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param((), id="tasks"),
        pytest.param(("--processes",), id="processes", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_before_any_agent_is_up_ends_everything_and_shows_no_traceback(
    folder: Path, mode: tuple[str, ...]
) -> None:
    with devnet(folder, "--dataset", "random", "--rounds", "3", *mode) as process:
        patience = time.monotonic() + 60
        while not [*folder.glob("markets/*/agent-0")]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in out + err
    assert json.loads((folder / "report.json").read_text())["interrupted"]
    assert not processes_in(folder)


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that were given a path in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and entry.parent.name != str(os.getpid()):
            found.append(words)
    return found
