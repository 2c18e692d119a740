"""A market with a replicator in it, by the real nodes: what its broker finds and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from node.devnet.arms import ARMS
from node.devnet.defaults import USUAL_REPLICAS
from node.devnet.errors import DevnetError
from node.devnet.folder import name_of
from node.devnet.logs import read_events
from node.devnet.play import broker_config
from node.devnet.report.document import Report, as_written
from node.devnet.report.table import print_report
from node.devnet.spec import RunSpec
from tests.devnet.in_process import played
from tests.devnet.test_report_page import page_of

WORDS = (
    *("--dataset", "digits", "--agents", "3", "--rounds", "3", "--arms", "aligned"),
    *("--strategies", "2=replicator", "--replicas", "refuse", "--scan", "--control", "tune"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devnet") / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return played(folder, *WORDS)


def test_the_replicator_is_caught_and_nobody_else(report: dict[str, Any]) -> None:
    (found,) = report["honesty"]
    assert found["replicas"]
    assert {row["seller"] for row in found["replicas"]} == {"agent-2"}
    assert all(row["refused"] and row["score"] > 0.99 for row in found["replicas"])
    (goods,) = report["strategies"]["goods"]
    assert (goods["agent"], goods["kind"], goods["sold"]) == ("agent-2", "replica", 0)
    assert report["trades"]
    assert report["ledger"]["balances"]


def test_what_honest_agents_merged_of_one_another_is_explained(
    report: dict[str, Any], folder: Path
) -> None:
    broker = folder / "markets" / "aligned-seed-0" / "broker"
    explained = read_events(broker, ("likeness_explained",))
    assert len(explained) == report["honesty"][0]["explained"] > 0
    assert {event["why"] for event in explained} <= {"descends", "related", "bought"}


def test_every_trial_has_its_controls_and_its_scan_beside_it(
    report: dict[str, Any], folder: Path
) -> None:
    (found,) = report["honesty"]
    broker = folder / "markets" / "aligned-seed-0" / "broker"
    trials = read_events(broker, ("trial_done",))
    scans = read_events(broker, ("merge_scanned",))
    assert found["controlled"]["trials"] == len(trials) == found["scanned"] == len(scans)
    assert {t["trial_id"] for t in trials} == {s["trial_id"] for s in scans}
    assert {s["verdict"] for s in scans} <= {"found", "not found"}
    assert all(t["control"] is not None and t["tuned"] is not None for t in trials)
    assert found["controlled"]["tuned"] == pytest.approx(
        sum(t["tuned"] for t in trials) / len(trials) / 1e6
    )


def test_the_split_is_told_with_its_counts(report: dict[str, Any]) -> None:
    (note,) = [note for note in report["notes"] if note.startswith("Clean split")]
    for part in ("1,197 to train on", "300 of the broker", "300 reported on"):
        assert part in note


def test_page_and_terminal_show_what_was_found(
    report: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = as_written(cast(Report, report))
    print_report(told, folder)
    for shown in (page_of(cast(Report, report)), capsys.readouterr().out):
        assert "Replicas: models for sale" in shown
        assert "not found" in shown
    assert "safe" not in json.dumps(report["honesty"])


def test_an_experiment_says_what_is_asked_of_its_broker(tmp_path: Path) -> None:
    usual = RunSpec(folder=tmp_path)
    asked = RunSpec(folder=tmp_path, replicas="refuse", scan=True, control="tune")
    config = broker_config(asked, ARMS["aligned"], 0)
    assert (config.replicas, config.scan, config.control) == ("refuse", "merges", "tune")
    config = broker_config(usual, ARMS["aligned"], 0)
    assert (config.replicas, config.scan, config.control) == (USUAL_REPLICAS, "none", "tune")
    assert name_of(asked) == "mnist-replicas-refuse-scanned-control-tune"
    assert not {"replicas", "scan", "control"} & set(usual.document())
    with pytest.raises(DevnetError, match="--replicas refuse"):
        RunSpec(folder=tmp_path, dataset="digits", mechanism="shapley", replicas="refuse").check()
