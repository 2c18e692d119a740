"""The same experiment, in one process and in many, from which an agent goes away early."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from node.devnet.logs import read_events
from node.devnet.play import PATIENCE_SECONDS
from tests.devnet.in_process import played

WORDS_OF = {"tasks": (), "processes": ("--processes",)}
MODES = ("tasks", pytest.param("processes", marks=pytest.mark.slow))
WARMUP = 2
ROUNDS = 3
LAST = 1
Reports = Callable[[str], dict[str, Any]]
"""The round after which agent 2 goes away."""
WORDS = (
    *("--dataset", "digits", "--agents", "3", "--arms", "aligned", "--free"),
    *("--endowment", "dirichlet", "--concentration", "0.3"),
    *("--warmup-epochs", str(WARMUP), "--rounds", str(ROUNDS), "--leave", f"2@{LAST}"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leaving")


@pytest.fixture(scope="module")
def reports(folder: Path) -> Reports:
    """The report of each mode, played when it is first asked for."""

    return functools.cache(lambda mode: played(folder / mode, *WORDS, *WORDS_OF[mode]))


@pytest.mark.slow
def test_processes_learn_the_same_as_tasks_to_the_bit(reports: Reports) -> None:
    tasks, processes = reports("tasks"), reports("processes")
    assert tasks["arms"]["aligned"]["curves"] == processes["arms"]["aligned"]["curves"]
    assert bought(tasks) == bought(processes)
    assert bought(tasks)
    assert tasks["legs"] == processes["legs"]


def bought(report: dict[str, Any]) -> list[list[Any]]:
    names = ("round", "buyer", "seller", "alpha", "gain", "bound")
    return [[trade[name] for name in names] for trade in report["trades"]]


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_that_leaves_plays_its_last_round_to_the_end_and_begins_no_other(
    reports: Reports, folder: Path, mode: str
) -> None:
    report = reports(mode)
    curves = report["arms"]["aligned"]["curves"]["0"]
    assert [epoch for epoch, _ in curves["agent-2"]] == list(range(WARMUP + LAST))
    assert all(len(curves[name]) == WARMUP + ROUNDS for name in ("agent-0", "agent-1"))
    said = events(folder, mode, "agent-2", "statement_published")
    assert [event["kind"] for event in said].count("offer") == LAST
    assert report["legs"]["aligned"]["possible"] == 2 * ROUNDS + LAST
    assert f"agent-2 went away after round {LAST}." in report["notes"]


@pytest.mark.parametrize("mode", MODES)
def test_nobody_loses_a_trade_to_an_agent_that_left_or_waits_for_it(
    reports: Reports, folder: Path, mode: str
) -> None:
    assert reports(mode)["legs"]["aligned"]["lost"]["other"] == 0
    for name in ("agent-0", "agent-1"):
        ends = [time_of(event) for event in events(folder, mode, name, "round_played")]
        assert len(ends) == ROUNDS
        longest = max((later - end).total_seconds() for end, later in pairwise(ends))
        assert longest < PATIENCE_SECONDS


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_that_left_comes_back_for_what_it_is_owed(
    reports: Reports, folder: Path, mode: str
) -> None:
    report = reports(mode)
    assert len(events(folder, mode, "agent-2", "node_ready")) == 2
    assert report["complete"]
    assert report["ledger"]["balances"]
    assert {trade["on_chain"] for trade in report["trades"]} == {"paid"}


def events(folder: Path, mode: str, name: str, kind: str) -> list[dict[str, Any]]:
    return read_events(folder / mode / "markets" / "aligned-seed-0" / name, (kind,))


def time_of(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["time"])
