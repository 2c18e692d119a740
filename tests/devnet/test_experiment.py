"""What a run keeps: the rows of a seed, the markets that ended, the report of what did not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.chain.tester import DevelopmentChain
from node.chronicle import RoundsPlayed
from node.data.datasets import DATASETS, Source, load_digits
from node.data.rows import Dataset
from node.devnet import experiment
from node.devnet.arms import ARMS
from node.devnet.errors import DevnetError
from node.devnet.experiment import Experiment
from node.devnet.ledger import Ledger
from node.devnet.meeting import Meeting
from node.devnet.play import Ended, Play
from node.devnet.spec import RunSpec
from node.observe import Observer
from node.protocol.types import Wei


class Nobody:
    """Watches no run."""

    def start(self, arm: str, seed: int, epochs: int) -> None: ...
    def epoch(self, arm: str, seed: int, agent: str, epoch: int, metric: float) -> None: ...
    def trade(self, arm: str, seed: int, buyer: str, seller: str, price: int) -> None: ...
    def end(self, arm: str, seed: int) -> None: ...


def spec_in(tmp_path: Path, **changes: object) -> RunSpec:
    usual = {"dataset": "digits", "rounds": 1, "warmup_epochs": 0, "agents": 3}
    return RunSpec(folder=tmp_path / "run", **{**usual, **changes})  # type: ignore[arg-type]


def ledger(held: int) -> Ledger:
    nothing = Wei(0)
    return Ledger(
        deposited=Wei(held), paid_out=nothing, fees=nothing, refunded=nothing, credited=nothing,
        held=Wei(held), stuck=0, open_trades=int(held > 0), states={},
    )  # fmt: skip


def test_a_run_that_fails_leaves_the_report_of_the_markets_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_play: Play) -> Ended:
        raise DevnetError("the roof fell in")

    monkeypatch.setattr(Play, "run", fails)
    spec = spec_in(tmp_path, arms=("out-of-market", "aligned"), seeds=(4,))
    with pytest.raises(DevnetError, match="roof"):
        Experiment(spec, Nobody()).run()
    report = json.loads((spec.folder / "report.json").read_text())
    assert not report["complete"]
    assert not report["interrupted"]
    assert report["arms"].keys() == {"out-of-market"}
    assert report["arms"]["out-of-market"]["curves"]["4"].keys() == {
        "agent-0",
        "agent-1",
        "agent-2",
    }
    assert [note for note in report["notes"] if "failed" in note and "the roof fell in" in note]
    assert (spec.folder / "report.html").exists()
    assert (spec.folder / "events.jsonl").exists()


@pytest.mark.parametrize(("held", "kept"), [(0, True), (7, False)])
def test_a_market_that_did_not_settle_is_gone_on_with_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, kept: bool
) -> None:
    async def played(_play: Play) -> Ended:
        return Ended(complete=True, ledger=ledger(held))

    monkeypatch.setattr(Play, "run", played)
    monkeypatch.setattr(experiment, "write_report", lambda *_: None)
    spec = spec_in(tmp_path, arms=("aligned",))
    Experiment(spec, Nobody()).run()
    assert (spec.folder / "markets" / "aligned-seed-0" / "record.json").exists() == kept


def test_all_agents_and_seeds_of_a_run_share_one_copy_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0

    def counted(folder: Path, _seed: int) -> Dataset:
        nonlocal loads
        loads += 1
        return load_digits(folder)

    monkeypatch.setitem(DATASETS, "digits", Source(load=counted, locate=lambda _: None))
    monkeypatch.setattr(experiment, "write_report", lambda *_: None)
    spec = spec_in(tmp_path, arms=("out-of-market",), seeds=(0, 1, 2), data_folder=tmp_path)
    Experiment(spec, Nobody()).run()
    assert loads == 2  # to check what was asked for, and to play it


async def test_an_agent_that_has_played_all_its_rounds_is_waited_for_no_longer(
    tmp_path: Path, chain: DevelopmentChain
) -> None:
    """As after an interruption that one agent's last round outlived, and another's did not."""
    market = Play(
        spec_in(tmp_path), ARMS["aligned"], 0, tmp_path, chain, lambda *_: None, trio.Event()
    )
    market._meeting = Meeting(["agent-0", "agent-1"])
    market._played = {name: trio.Event() for name in ("agent-0", "agent-1")}
    observer = Observer()
    observer.subscribe(market._hear)
    observer.bind(node="agent-0").emit(RoundsPlayed(rounds=1, accuracy=0.5))
    with trio.fail_after(5):
        assert await market._meeting.arrive("agent-1", 1, "offered") == 0
    assert market._played["agent-0"].is_set()
    assert not market._played["agent-1"].is_set()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[DevelopmentChain]:
    with DevelopmentChain(tmp_path / "chain") as opened:
        yield opened
