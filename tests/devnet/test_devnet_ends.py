"""How a run of the devnet begins and ends: bad words begin nothing, and only a success is one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.cli.main import run
from node.data.files import DataError
from node.devnet import defaults
from node.devnet.experiment import Experiment, verdict
from node.devnet.folder import MARKER, run_folder
from node.devnet.report.document import DOCUMENT
from node.devnet.spec import RunSpec
from node.protocol.types import Millionths
from node.training.mlp import mlp_trainer

CHECKOUT = Path(__file__).parents[2]
NOTHING_TO_SPEND = ("--dataset", "random", "--rounds", "1", "--budget", "0")
LOOP = "loop"


def words_of(folder: Path, *words: str) -> list[str]:
    return ["devnet", *words, "--name", str(folder), "--json"]


def devnet(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "node.cli.main", *words_of(folder, *words)],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


# ── what is refused ──


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--dataset cifar", "'cifar' is not one of 'mnist', 'fashion', 'digits'"),
        ("--dataset mnist --data-folder /nowhere", "no MNIST; looked in /nowhere"),
        ("--data-folder /nowhere", "no MNIST; looked in /nowhere"),
        ("--dataset digits --data-folder /nowhere", "no folder /nowhere"),
        (f"--dataset cifar10 --data-folder /{'x' * 300}", "no CIFAR-10"),
        (f"--dataset digits --data-folder /{'x' * 300}", "no folder"),
        ("--dataset digits --agents 11", "take the endowment `dirichlet`"),
        ("--dataset digits --agents 40 --endowment dirichlet", "take fewer agents, or a higher"),
        ("--dataset linear --agents 3", "--agents 2"),
        ("--dataset linear --endowment dirichlet", "take the endowment `paper`"),
        ("--agents 65", "65 is not in the range 2<=x<=64"),
        (
            "--dataset digits --arms aligned,alined",
            "'alined' is no arm; there are all, out-of-market",
        ),
        ("--dataset digits --arms ,", "is no arm"),
        ("--dataset random --arms all", "in the arm aligned alone, not in out-of-market, fedavg"),
        ("--concentration nan", '"nan" is not a fraction'),
        ("--concentration inf", '"inf" is not a fraction'),
        ("--concentration 0", "0.001 to 1000"),
        ("--concentration -1 --endowment dirichlet", "0.001 to 1000"),
        ("--dataset digits --concentration 0.1", "add --endowment dirichlet"),
        ("--budget -1", '"-1" is not a whole number of wei'),
        (f"--budget {2**256}", "is not a whole number of wei"),
        ("--seeds 0", "--seeds"),
        ("--seed -1", "--seed"),
        ("--rounds 0", "--rounds"),
        ("--fee-bps 1001", "--fee-bps"),
        ("--dataset digits --warmup-epochs 0 --epochs-per-round 0", "raise --warmup-epochs"),
        ("--dataset digits --rounds 3 --leave 1@4", "after round 4: there are 1 to 3"),
        ("--dataset digits --leave 1@0", "after round 0: there are 1 to 45"),
        ("--dataset digits --leave 2@1", "agent 2 cannot leave: there are 0 to 1"),
        ("--dataset digits --leave 1@2 --leave 1@3", "agent 1 leaves after round 2 already"),
        ("--dataset digits --leave 1", "'1' is not AGENT@ROUND"),
        (f"--dataset digits --leave {'9' * 5_000}@1", "is not AGENT@ROUND"),
        ("--dataset digits --resume", "no run to resume in"),
        ("--resume --force", "say one of them"),
        ("--quick --rounds 9", "say one of them"),
        ("--dataset digits --name .", "holds more than one run"),
        ("--dataset digits --name ../..", "holds more than one run"),
        (f"--dataset digits --name {LOOP}", "--name"),
        (f"--dataset digits --name {'x' * 300}", "--name"),
    ],
)
def test_bad_words_are_refused_on_one_line_that_says_what_to_do(
    tmp_path: Path,
    words: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / LOOP).symlink_to(LOOP)
    named = [] if "--name" in words else ["--name", "run"]
    assert run(["devnet", *words.split(), *named]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pm-node: ")
    assert len(said.err.strip().splitlines()) == 1
    assert told in said.err
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", LOOP]


def test_every_data_set_can_be_asked_for() -> None:
    from node.data.datasets import DATASETS

    assert set(defaults.DATASETS) == {*DATASETS, defaults.DRILL}


@given(
    agents=st.integers(2, 60),
    endowment=st.sampled_from(["paper", "dirichlet"]),
    concentration=st.integers(1_000, 2_000_000),
    first=st.integers(0, 2**32),
    seeds=st.integers(1, 3),
)
@example(agents=36, endowment="dirichlet", concentration=500_000, first=4, seeds=2)
@settings(max_examples=40, deadline=None)
def test_a_run_is_refused_at_once_if_some_trainer_would_refuse_its_rows(
    agents: int, endowment: str, concentration: int, first: int, seeds: int
) -> None:
    spec = RunSpec(
        folder=Path("runs"),
        dataset="digits",
        agents=agents,
        endowment=endowment,
        concentration=Millionths(concentration if endowment == "dirichlet" else 500_000),
        seeds=tuple(range(first, first + seeds)),
    )
    refused = trained = ""
    held = spec.rows(first)
    assert held is not None
    try:
        spec.check()
    except DataError as error:
        refused = str(error)
    try:
        for seed in spec.seeds:
            for agent in range(agents):
                mlp_trainer(spec.task(seed, agent=agent))
    except DataError as error:
        trained = str(error)
    assert refused == trained


def test_every_seed_is_looked_at_before_the_first_is_played() -> None:
    spec = RunSpec(folder=Path("runs"), dataset="digits", agents=36, endowment="dirichlet")
    replace(spec, seeds=(4,)).check()
    with pytest.raises(DataError, match="among 36 agents"):
        replace(spec, seeds=(4, 5)).check()


# ── without MNIST ──


class Asked(Exception):  # noqa: N818 (it is no error)
    """Raised in place of a run."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The runs that were asked for; none of them is played."""
    found: list[RunSpec] = []

    def note(experiment: Experiment) -> None:
        found.append(experiment.spec)
        raise Asked

    monkeypatch.setattr(Experiment, "run", note)
    return found


def test_without_mnist_digits_are_played_and_the_report_will_say_so(
    tmp_path: Path,
    asked: list[RunSpec],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".data").mkdir()
    with pytest.raises(Asked):
        run(["devnet"])
    assert "going on with digits" in capsys.readouterr().err
    assert (asked[0].dataset, asked[0].name) == ("digits", "digits")
    assert asked[0].notes == ("There is no MNIST on this machine: digits instead.",)
    assert run(["devnet", "--dataset", "mnist"]) == 2
    assert "scripts/fetch_data.py" in capsys.readouterr().err


def test_the_usual_run_is_that_of_no_options_at_all(asked: list[RunSpec]) -> None:
    for words in (
        [],
        ["--rounds", "45", "--warmup-epochs", "5", "--arms", "aligned,out-of-market"],
        ["--concentration", "0.5"],
    ):
        with pytest.raises(Asked):
            run(["devnet", "--dataset", "digits", *words])
    plain = RunSpec(folder=asked[0].folder, dataset="digits")
    assert asked == [plain] * 3
    assert asked[0].folder.parts[-2:] == ("runs", "digits")


# ── how it ends ──


def test_a_market_in_which_nobody_traded_is_no_success_unless_that_was_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words_of(folder, *NOTHING_TO_SPEND)) == 1
    said = capsys.readouterr()
    assert "nobody traded" in said.err
    assert "cash" in said.err
    report = json.loads(said.out)
    assert report["trades"] == []
    assert verdict(report, allow_no_trade=True) == ""


def test_a_ledger_that_does_not_balance_is_no_success_even_so() -> None:
    report: dict[str, object] = {"ledger": {"balances": False}, "legs": {}}
    assert "does not balance" in verdict(report, allow_no_trade=True)  # type: ignore[arg-type]


def test_a_run_can_be_played_again_and_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(folder, *NOTHING_TO_SPEND, "--allow-no-trade")
    for _ in range(2):
        assert run(words) == 0
        assert json.loads(capsys.readouterr().out)["complete"]
    assert run([*words, "--resume"]) == 0
    assert capsys.readouterr().out == (folder / DOCUMENT).read_text()


def test_a_run_in_the_folder_of_another_in_progress_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_folder(folder, {}):
        assert run(words_of(folder, *NOTHING_TO_SPEND, "--force")) == 4
    told = capsys.readouterr().err
    assert f"process {os.getpid()} plays the run in {folder}" in told
    assert len(told.splitlines()) == 1


def test_a_figure_that_is_not_finite_is_null_on_standard_output_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(_: Experiment) -> dict[str, Any]:
        return {
            "arms": {"aligned": {"accuracy": {"agent-0": math.nan, "agent-1": math.inf}}},
            "interrupted": False,
            "ledger": {"balances": True},
            "legs": {},
        }

    monkeypatch.setattr(Experiment, "run", diverge)
    assert run(words_of(folder, "--dataset", "digits")) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert report["arms"]["aligned"]["accuracy"] == {"agent-0": None, "agent-1": None}


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param((), id="tasks"),
        pytest.param(("--processes",), id="processes", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_before_any_agent_is_up_ends_everything_and_says_how_to_go_on(
    folder: Path, mode: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dataset", "random", "--rounds", "3", *mode)
    with devnet(folder, *words) as process:
        patience = time.monotonic() + 60
        while not [*folder.glob("markets/*/agent-0")]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in out + err
    assert json.loads((folder / DOCUMENT).read_text())["interrupted"]
    assert not processes_in(folder)
    marker = (folder / MARKER).read_text()
    assert run(words_of(folder, *words)) == 2
    again = capsys.readouterr().err
    for told in (err, again):
        assert "--resume" in told
        assert "ARGS=--resume" in told
    assert "--force" in again
    assert (folder / MARKER).read_text() == marker


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
