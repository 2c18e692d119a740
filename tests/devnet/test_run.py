"""The devnet: two agents in one process by the real shells, every arm, to a settled ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from node.cli.exits import BAD_INPUT
from node.cli.main import run
from node.data.files import DataError
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.floor import Floor
from node.devnet.logs import read_events
from node.devnet.report.document import CAUSES
from node.devnet.spec import RunSpec
from tests.devnet import in_process

CHECKOUT = Path(__file__).parents[2]
ROUNDS = 3
WORDS = ("--dataset", "digits", "--rounds", str(ROUNDS))


def command(folder: Path, *words: str) -> list[str]:
    return [
        *(sys.executable, "-m", "node.cli.main", "devnet", *WORDS),
        *("--name", str(folder), *words),
    ]


def played(folder: Path, *words: str) -> dict[str, Any]:
    return in_process.played(folder, *WORDS, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devnet") / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return played(folder, "--arms", "all", "--free", "--protocol", "paper")


def test_every_arm_starts_from_the_same_weights_and_batches(report: dict[str, Any]) -> None:
    curves = [report["arms"][arm]["curves"]["0"] for arm in ARMS]
    for agent in ("agent-0", "agent-1"):
        # nobody trades before epoch 5
        assert all(curve[agent][:5] == curves[0][agent][:5] for curve in curves)
        assert [epoch for epoch, _ in curves[0][agent]] == list(range(5 + ROUNDS))
        assert len({tuple(map(tuple, curve[agent])) for curve in curves}) == len(ARMS)


def test_every_trade_is_paid_on_chain_and_the_ledger_balances(report: dict[str, Any]) -> None:
    assert report["trades"]
    assert {trade["on_chain"] for trade in report["trades"]} == {"paid"}
    assert {trade["state"] for trade in report["trades"]} == {"complete"}
    ledger = report["ledger"]
    assert ledger["balances"]
    assert (ledger["stuck"], ledger["held"], ledger["open_trades"]) == ("0", "0", 0)
    for trade in report["trades"]:
        assert {"fund", "reveal", "finalize"} <= trade["transactions"].keys()
        assert all(gas > 0 for gas in trade["gas"].values())
        assert trade["buyer"] != trade["seller"]
        assert 1 <= trade["round"] <= ROUNDS


def test_a_free_trade_settles_for_one_wei_and_says_so(report: dict[str, Any]) -> None:
    assert not report["priced"]
    assert {trade["price"] for trade in report["trades"]} == {"1"}
    assert int(report["ledger"]["deposited"]) == len(report["trades"])
    assert any("one wei" in note for note in report["notes"])


def test_every_possible_trade_is_accounted_for(report: dict[str, Any]) -> None:
    for arm in ("fedavg", "unaligned", "aligned"):
        legs = report["legs"][arm]
        assert legs["possible"] == 2 * ROUNDS == legs["traded"] + sum(legs["lost"].values())
        assert set(legs["lost"]) == set(CAUSES)
        assert legs["traded"] == sum(trade["arm"] == arm for trade in report["trades"])
    assert "out-of-market" not in report["legs"]


def test_the_nodes_and_the_floor_without_nodes_learn_the_same_to_the_bit(
    report: dict[str, Any], folder: Path
) -> None:
    spec = RunSpec(
        folder=folder, dataset="digits", rounds=ROUNDS, priced=False, protocol="paper"
    )  # fmt: skip
    torch.set_num_threads(1)  # as in a run
    for name, arm in ARMS.items():
        floor = Floor(spec, arm, seed=0).play()
        for number, curve in enumerate(floor.curves):
            nodes = report["arms"][name]["curves"]["0"][f"agent-{number}"]
            assert [figure for _, figure in nodes] == [figure for _, figure in curve], name


def test_the_report_has_its_files(report: dict[str, Any], folder: Path) -> None:
    assert report["complete"]
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(list((folder / "plots").glob("*.png"))) >= 6
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {event["market"] for event in events} == {
        f"{arm}-seed-0" for arm in ARMS if arm != "out-of-market"
    }
    assert report["network"]["bytes"] > 0
    assert report["network"]["offers_sent"] == (len(ARMS) - 1) * 2 * ROUNDS


@pytest.mark.slow
def test_prices_are_paid_where_there_are_any_and_an_agent_that_leaves_is_not_waited_for(
    tmp_path: Path,
) -> None:
    report = played(
        tmp_path / "run",
        *("--arms", "aligned", "--agents", "3", "--endowment", "dirichlet", "--leave", "2@1"),
    )
    trades = report["trades"]
    assert trades
    assert {trade["on_chain"] for trade in trades} == {"paid"}
    assert all(int(trade["price"]) > 1 for trade in trades)
    ledger = report["ledger"]
    assert int(ledger["deposited"]) == sum(int(trade["price"]) for trade in trades)
    assert int(ledger["deposited"]) == int(ledger["paid_out"]) + int(ledger["fees"])
    assert not [t for t in trades if "agent-2" in (t["buyer"], t["seller"]) and t["round"] > 1]
    assert any("agent-2 went away" in note for note in report["notes"])


def test_a_run_that_is_interrupted_while_it_buys_ends_as_if_it_never_had_been(
    report: dict[str, Any], tmp_path: Path
) -> None:
    """Without prices, and with the same rows in every trial, a run is deterministic.

    One agent has a deal of the first round when the interrupt comes, and the other may have
    none yet: it then plays that round with what was offered in it.
    """
    folder = tmp_path / "run"
    words = ("--arms", "aligned", "--free", "--protocol", "paper")
    with subprocess.Popen(
        command(folder, *words),
        cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        patience = time.monotonic() + 120
        while funding(folder / "markets" / "aligned-seed-0") < 1:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert "--resume" in err
    partial = json.loads((folder / "report.json").read_text())
    assert partial["interrupted"]
    assert not partial["complete"]
    assert partial["ledger"]["balances"]
    assert (folder / "report.html").exists()
    assert every_trade_is_a_leg(partial)
    resumed = played(folder, *words, "--resume")
    assert resumed["complete"]
    assert every_trade_is_a_leg(resumed)
    assert {trade["id"] for trade in partial["trades"]} <= {t["id"] for t in resumed["trades"]}
    assert {trade["on_chain"] for trade in resumed["trades"]} == {"paid"}
    # what was bought is not told by prices and ids, which are drawn anew, but by what it did
    assert measured(resumed) == measured(report)
    assert resumed["legs"]["aligned"] == report["legs"]["aligned"]
    assert resumed["arms"]["aligned"] == report["arms"]["aligned"]
    assert resumed["timings"]["total_s"] > partial["timings"]["total_s"]
    assert "peak_memory_mb" not in resumed["cost"]


def funding(market: Path) -> int:
    """How many purchases have got as far as their deposit."""
    return sum(
        event.get("event") == "trade_changed" and event["state"] == "funding"
        for number in (0, 1)
        for event in read_events(market / f"agent-{number}")
    )


def every_trade_is_a_leg(report: dict[str, Any]) -> bool:
    """Whether each trade is one of a round that was played, with what was measured in it."""
    trades = report["trades"]
    assert all(1 <= trade["round"] <= ROUNDS for trade in trades)
    assert None not in [t[key] for t in trades for key in ("alpha", "gain", "bound")]
    paid = sum(trade["on_chain"] == "paid" for trade in trades)
    return bool(paid) and paid == report["legs"]["aligned"]["traded"]


def measured(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    keys = ("round", "buyer", "seller", "alpha", "gain", "bound")
    return [tuple(t[key] for key in keys) for t in report["trades"] if t["arm"] == "aligned"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": ("alined",)}, "no arm 'alined'; there are out-of-market, fedavg"),
        ({"arms": ()}, "no arm"),
        ({"agents": 1}, "a market has 2 to 64"),
        ({"seeds": ()}, "name at least one"),
        ({"leaves": {7: 1}}, "agent 7 cannot leave"),
        ({"dataset": "linear", "agents": 3}, "has 2 agents"),
    ],
)
def test_what_cannot_be_played_is_said_before_anything_is_begun(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    options = {"dataset": "digits", **changes}
    with pytest.raises(DevnetError, match=told):
        RunSpec(folder=tmp_path / "run", **options).check()
    assert not (tmp_path / "run").exists()


def test_more_agents_than_classes_are_told_of_the_endowment_that_can(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="take the endowment `dirichlet`"):
        RunSpec(folder=tmp_path / "run", dataset="digits", agents=11).check()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dataset", "cifar"), "'cifar' is not one of"),
        (("--dataset", "cifar10", "--data-folder", "/nowhere"), "CIFAR-10"),
        (("--arms", "some"), "'some' is no arm"),
        (("--leave", "2"), "is not AGENT@ROUND"),
        (("--resume",), "there is no run to resume"),
        (("--agents", "1"), "not in the range"),
    ],
)
def test_bad_words_are_refused_on_one_line(
    tmp_path: Path, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tmp_path / "run", *words)[3:]) == BAD_INPUT
    said = capsys.readouterr().err
    assert told in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_with_other_options_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".pm-node-run").write_text(json.dumps({"dataset": "mnist"}))
    assert run(command(folder, "--resume")[3:]) == 2
    assert "was asked for with another" in capsys.readouterr().err
    (folder / ".pm-node-run").unlink()
    (folder / "thesis.txt").write_text("mine")
    assert run(command(folder)[3:]) == 2
    assert "holds something else than a run" in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "mine"
