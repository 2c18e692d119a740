"""A run's folder: called by what is played, one run's at a time, and never lost without a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.cli.exits import code_of
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.folder import LOCK, MARKER, RunInProgressError, name_of, run_folder
from node.devnet.report.document import DOCUMENT
from node.devnet.spec import RunSpec
from node.home import RunLock
from node.protocol.errors import MarketError
from node.protocol.types import Millionths, Wei

ASKED = {"dataset": "digits", "rounds": 4}
OTHER = {"dataset": "digits", "rounds": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "digits"


def play(
    folder: Path,
    asked: Mapping[str, object] = ASKED,
    *,
    complete: bool | None = True,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Leave what a run leaves; of one that was killed (None) there is no report."""
    with run_folder(folder, asked, resume=resume, force=force):
        (folder / "markets" / "aligned-seed-0").mkdir(parents=True, exist_ok=True)
        if complete is not None:
            (folder / DOCUMENT).write_text(json.dumps({"complete": complete}))


def test_a_finished_run_of_the_same_settings_is_replaced(folder: Path) -> None:
    play(folder)
    with run_folder(folder, ASKED):
        assert {path.name for path in folder.iterdir()} == {MARKER, LOCK}


@pytest.mark.parametrize("complete", [False, None])
def test_an_unfinished_run_is_kept_unless_it_is_said_what_becomes_of_it(
    folder: Path, complete: bool | None
) -> None:
    play(folder, complete=complete)
    with pytest.raises(DevnetError, match=r"unfinished: .*--resume.*--force.*ARGS=--resume"):
        play(folder)
    with run_folder(folder, ASKED, resume=True):
        assert (folder / "markets" / "aligned-seed-0").is_dir()
    with run_folder(folder, ASKED, force=True):
        assert not (folder / "markets").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_of_other_settings_is_kept_and_the_difference_named(
    folder: Path, resume: bool
) -> None:
    play(folder)
    with pytest.raises(DevnetError, match=r"asked for with another rounds: --name .* --force"):
        play(folder, OTHER, resume=resume)
    assert (folder / DOCUMENT).exists()
    play(folder, OTHER, force=True)


def test_a_second_run_in_the_folder_of_one_in_progress_is_refused_whatever_it_says(
    folder: Path,
) -> None:
    with run_folder(folder, ASKED):
        (folder / "kept").touch()
        for resume, force in ((False, False), (True, False), (False, True)):
            with pytest.raises(RunInProgressError, match=r"process \d+ plays .*--name") as caught:
                play(folder, resume=resume, force=force)
            assert code_of(caught.value) == 4
        assert (folder / "kept").exists()
    play(folder, force=True)


def test_the_folder_is_let_go_of_when_a_run_fails(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_folder(folder, ASKED):
        _ = 1 // 0
    with RunLock(folder / LOCK):
        pass


def test_a_replacement_that_was_cut_short_leaves_nothing_to_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(folder, complete=False)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(DevnetError, match=r"Permission denied: .*markets.*--name"):
        play(folder, force=True)
    assert (folder / "markets").exists()
    monkeypatch.undo()
    with run_folder(folder, ASKED):
        assert not (folder / "markets").exists()


def a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch()


def below_a_file(folder: Path) -> None:
    folder.parent.touch()


def a_thesis(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")


def within_a_run(folder: Path) -> None:
    folder.parent.mkdir()
    (folder.parent / MARKER).write_text("{}")


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("there", "told"),
    [
        (a_file, "is a file"),
        (below_a_file, "Not a directory|File exists"),
        (a_thesis, "something else than a run"),
        (within_a_run, "within the run in"),
    ],
)
def test_what_is_no_runs_folder_is_left_as_it_is(
    folder: Path, there: Callable[[Path], None], told: str, force: bool
) -> None:
    there(folder)
    before = sorted(folder.parent.parent.rglob("*"))
    with pytest.raises(DevnetError, match=told) as caught:
        play(folder, force=force)
    assert str(folder) in str(caught.value)
    assert "--name" in str(caught.value)
    assert sorted(folder.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("marker", [b"[]", b"7", b"", b"\xff", b"[" * 100_000, b'"digits"'])
def test_a_damaged_marker_is_named(folder: Path, marker: bytes) -> None:
    play(folder)
    (folder / MARKER).write_bytes(marker)
    for resume in (False, True):
        with pytest.raises(DevnetError, match=rf"{MARKER} is damaged: .*--force"):
            play(folder, resume=resume)
    play(folder, force=True)


@pytest.mark.parametrize("report", [b"[]", b"\xff", b"{", b'{"complete": "yes"}'])
def test_a_run_with_a_damaged_report_counts_as_unfinished(folder: Path, report: bytes) -> None:
    play(folder)
    (folder / DOCUMENT).write_bytes(report)
    with pytest.raises(DevnetError, match="unfinished"):
        play(folder)


@given(data=st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_marker_is_a_run_or_a_market_error(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_bytes(data)
    try:
        play(folder)
    except MarketError:
        return


# ── names ──


def spec(**changes: Any) -> RunSpec:
    return replace(RunSpec(folder=Path("runs")), **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "mnist"),
        ({"rounds": 8}, "mnist-8-rounds"),
        ({"dataset": "linear", "rounds": 100, "warmup_epochs": 0}, "linear"),
        ({"dataset": "random", "rounds": 5, "warmup_epochs": 0, "arms": ("aligned",)}, "random"),
        ({"protocol": "paper", "priced": False}, "mnist-paper-free"),
        ({"seeds": tuple(range(10))}, "mnist-10-seeds"),
        ({"seeds": (3,)}, "mnist-seed-3"),
        ({"seeds": (3, 4)}, "mnist-seeds-3-to-4"),
        ({"arms": ("fedavg", "aligned")}, "mnist-fedavg+aligned"),
        ({"leaves": {1: 3}, "processes": True}, "mnist-leave-1@3-processes"),
        (
            {"agents": 16, "endowment": "dirichlet", "concentration": Millionths(100_000)},
            "mnist-16-agents-dirichlet-concentration-0.1",
        ),
        ({"fee_basis_points": 0, "budget": Wei(0)}, "mnist-fee-0-budget-0"),
    ],
)
def test_a_run_is_called_by_what_is_not_usual_about_it(changes: dict[str, Any], name: str) -> None:
    assert name_of(spec(**changes)) == name


specs = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.sampled_from(["mnist", "digits", "linear", "random"]),
        "protocol": st.sampled_from(["clean", "paper"]),
        "arms": st.sets(st.sampled_from(list(ARMS)), min_size=1).map(
            lambda some: tuple(name for name in ARMS if name in some)
        ),
        "seeds": st.tuples(st.integers(0, 20), st.integers(1, 20)).map(
            lambda pair: tuple(range(pair[0], pair[0] + pair[1]))
        ),
        "agents": st.integers(2, 64),
        "rounds": st.integers(1, 100),
        "epochs_per_round": st.integers(0, 3),
        "warmup_epochs": st.integers(0, 6),
        "priced": st.booleans(),
        "endowment": st.sampled_from(["paper", "dirichlet"]),
        "concentration": st.integers(499_998, 500_002) | st.integers(1_000, 10**9),
        "fee_basis_points": st.integers(0, 1_000),
        "budget": st.none() | st.integers(0, 2**256 - 1),
        "layers": st.sets(st.integers(0, 4)).map(lambda some: tuple(sorted(some))),
        "leaves": st.dictionaries(st.integers(0, 63), st.integers(1, 100), max_size=30),
        "processes": st.booleans(),
    },
)


@given(one=specs, other=specs)
def test_runs_of_other_settings_have_other_names_that_a_file_system_takes(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    ours, theirs = spec(**one), spec(**other)
    assert (name_of(ours) == name_of(theirs)) == (ours.document() == theirs.document())
    assert len(name_of(ours).encode()) <= 120
    assert "/" not in name_of(ours)
