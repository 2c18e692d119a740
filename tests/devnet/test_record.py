"""What a market is said to have come to, when it was interrupted, taken up, or left early."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from node.agent.progress import Progress, remember
from node.chain.port import EscrowState
from node.devnet import assemble as assembling
from node.devnet.assemble import assemble
from node.devnet.ledger import Ledger
from node.devnet.record import MarketRecord, load_record, record_market, save_record
from node.devnet.report.document import CAUSES, Report
from node.devnet.spec import RunSpec
from node.journal import Journal, TradeRow
from node.protocol import cbor
from node.protocol.purchase import PurchaseRecord, PurchaseState
from node.protocol.schema import to_map
from node.protocol.types import ONE, Digest, Wei
from tests.protocol.cast import purchase_record

NOTHING = Ledger(
    deposited=Wei(0), paid_out=Wei(0), fees=Wei(0), refunded=Wei(0), credited=Wei(0),
    held=Wei(0), stuck=0, open_trades=0, states={},
)  # fmt: skip


def log(folder: Path, node: str, *events: Mapping[str, Any]) -> None:
    """Add to the log of a node; each event is a second after the last, unless it says when."""
    path = folder / node / "logs" / "agent.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for second, event in enumerate(events):
            at = event.get("at", second)
            file.write(json.dumps({"time": f"2026-01-01T00:{at:02d}:00+00:00", **event}) + "\n")


def leg(number: int, because: str, trade_id: str | None = None) -> dict[str, Any]:
    return {"event": "leg_ended", "round": number, "because": because, "trade_id": trade_id}


def played(number: int, epoch: int, accuracy: float) -> dict[str, Any]:
    return {
        "event": "round_played", "round": number, "epoch": epoch,
        "accuracy": accuracy, "loss": 1 - accuracy,
    }  # fmt: skip


def recorded(folder: Path, **changes: Any) -> MarketRecord:
    options: dict[str, Any] = {
        "folder": folder, "agents": ["agent-0", "agent-1"], "brokers": ["broker"],
        "arm": "aligned", "seed": 0, "metric": "accuracy", "ledger": NOTHING, "complete": True,
        "seconds": 5.0, "rounds": 4,
    }  # fmt: skip
    return record_market(**{**options, **changes})


def purchase(folder: Path, record: PurchaseRecord, at: Progress | None = None) -> None:
    """Leave a purchase in agent-0's journal, and where that agent stood."""
    (folder / "agent-0").mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "agent-0" / "journal.db")
    journal.save_trade(
        TradeRow(
            trade_id=record.trade_id, role="buyer", state=record.state, over=False,
            record=cbor.encode(to_map(record)),
        )
    )  # fmt: skip
    if at is not None:
        remember(journal, at)
    journal.close()


def test_a_round_that_was_told_of_twice_counts_once_as_it_ended_in_the_end(tmp_path: Path) -> None:
    log(
        tmp_path, "agent-0", leg(1, "timeout"), played(1, 6, 0.5), leg(1, "bought"),
        played(1, 6, 0.75), leg(2, "ask"), played(2, 7, 0.75),
    )  # fmt: skip
    record = recorded(tmp_path)
    assert record["legs"] == {
        "possible": 8,
        "traded": 1,
        "lost": {**dict.fromkeys(CAUSES, 0), "ask": 1},
    }
    assert record["curves"]["agent-0"] == [(5, 75.0), (6, 75.0)]
    assert record["rounds_played"] == {"agent-0": 2, "agent-1": 0}


def test_what_was_bought_in_a_round_that_is_not_over_is_counted_and_measured(
    tmp_path: Path,
) -> None:
    bought = purchase_record(PurchaseState.DELIVERED)
    measured = bought.evaluation
    purchase(tmp_path, bought, Progress(2, 8, measured.base_root, True))
    record = recorded(
        tmp_path,
        complete=False,
        ledger=dataclasses.replace(NOTHING, states={bought.trade_id: EscrowState.PAID}),
    )
    (trade,) = record["trades"]
    assert (trade["round"], trade["buyer"], trade["on_chain"]) == (3, "agent-0", "paid")
    assert (trade["alpha"], trade["gain"], trade["bound"]) == (
        measured.alpha / ONE,
        measured.gain / ONE,
        measured.bound / ONE,
    )
    assert record["legs"] is not None
    assert record["legs"]["traded"] == 1


def test_a_trade_is_of_the_round_that_was_told_even_if_it_came_to_nothing(tmp_path: Path) -> None:
    given_up = purchase_record(PurchaseState.ABANDONED)
    purchase(tmp_path, given_up, Progress(4, 8, Digest(bytes(32)), False))
    name = "0x" + given_up.trade_id.hex()
    log(tmp_path, "agent-0", leg(2, "abandoned", name), leg(2, "gain"))
    record = recorded(tmp_path)
    assert [trade["round"] for trade in record["trades"]] == [2]
    assert record["legs"] is not None
    assert record["legs"]["traded"] == 0
    assert record["legs"]["lost"]["gain"] == 1


def test_a_round_that_an_agent_was_not_there_for_is_no_possible_trade(tmp_path: Path) -> None:
    legs = recorded(tmp_path, leaves={1: 3})["legs"]
    assert legs is not None
    assert legs["possible"] == 4 + 3


def test_the_seconds_of_processes_before_are_added(tmp_path: Path) -> None:
    assert recorded(tmp_path)["earlier_seconds"] == 0
    ready = {"event": "node_ready", "peer_id": "x", "account": "y"}
    log(tmp_path, "broker", {**ready, "at": 0}, {**ready, "at": 30})
    log(tmp_path, "agent-0", {**played(1, 6, 0.5), "at": 2}, {**played(2, 7, 0.5), "at": 31})
    record = recorded(tmp_path, seconds=9.0)
    assert (record["earlier_seconds"], record["seconds"]) == (120, 129)


def test_only_a_market_that_ended_and_settled_is_not_played_again(tmp_path: Path) -> None:
    assert load_record(tmp_path) is None
    record = recorded(tmp_path)
    save_record(tmp_path, record)
    found = load_record(tmp_path)
    assert found is not None
    assert found["earlier_seconds"] == record["seconds"]
    for spoilt in (
        {**record, "complete": False},
        {**record, "ledger": {**(record["ledger"] or {}), "balances": False}},
        {name: value for name, value in record.items() if name != "rounds_played"},
        [record],
    ):
        (tmp_path / "record.json").write_text(json.dumps(spoilt))
        assert load_record(tmp_path) is None


# ── the report of a run ──


def spec_of(folder: Path, **changes: Any) -> RunSpec:
    options: dict[str, Any] = {"dataset": "digits", "rounds": 4, "arms": ("aligned",)}
    return RunSpec(folder=folder, **{**options, **changes})


def market(seed: int = 0, *, epochs: int = 9, figure: float = 80.0, **changes: Any) -> MarketRecord:
    """Return a market of two agents, of which the second trained for `epochs`."""
    record = MarketRecord(
        arm="aligned",
        seed=seed,
        complete=epochs == 9,
        seconds=8.0,
        earlier_seconds=0.0,
        rounds_played={"agent-0": 4, "agent-1": max(0, epochs - 5)},
        curves={
            "agent-0": [(epoch, figure) for epoch in range(9)],
            "agent-1": [(epoch, figure) for epoch in range(epochs)],
        },
        agents=[],
        trades=[],
        legs=None,
        ledger=None,
        gas={},
        network=None,
    )
    record.update(changes)  # type: ignore[typeddict-item]  # keys of it
    return record


def report_of(spec: RunSpec, *records: MarketRecord) -> Report:
    return assemble(spec, records, interrupted=False, seconds=20.0, megabytes=(300.0, 100.0))


def test_a_seed_that_was_cut_short_is_in_no_mean_of_the_last_epoch(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, seeds=(0, 1))
    arm = report_of(spec, market(0), market(1, epochs=7, figure=60.0))["arms"]["aligned"]
    assert arm["accuracy"] == {"agent-0": 70.0, "agent-1": 80.0}
    assert arm["by_seed"]["1"] == {"agent-0": 60.0, "agent-1": None}
    assert arm["curves"]["1"]["agent-1"][-1] == (6, 60.0)
    (short,) = report_of(spec, market(1, epochs=7))["arms"].values()
    assert short["accuracy"]["agent-1"] is None


def test_a_round_costs_what_the_rounds_that_were_played_took(tmp_path: Path) -> None:
    cost = report_of(spec_of(tmp_path), market(epochs=7))["cost"]  # 4 + 2 of 8
    assert cost == {
        "seconds_a_round": round(8 / 3, 2),
        "seconds_a_round_and_agent": round(8 / 6, 3),
        "memory_an_agent_mb": 100.0,
        "peak_memory_mb": 300,
    }
    assert report_of(spec_of(tmp_path, processes=True), market())["cost"] == {}


def test_what_was_played_before_counts_in_time_and_says_nothing_of_memory(tmp_path: Path) -> None:
    report = report_of(spec_of(tmp_path), market(earlier_seconds=5.0))
    assert report["timings"]["total_s"] == 25.0
    assert "seconds_a_round" in report["cost"]
    assert not any("mb" in name for name in report["cost"])


def test_a_report_says_what_was_asked_for_and_what_played_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, fee_basis_points=150, leaves={1: 3}, budget=Wei(7))
    settings = report_of(spec, market())["settings"]
    assert settings.keys() == {*spec.document(), "code_version"}
    assert (settings["fee_basis_points"], settings["budget"]) == (150, 7)
    assert settings["leaves"] == {"1": 3}
    assert settings["code_version"].startswith(version("pm-node"))


def test_code_without_a_checkout_has_its_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembling, "_git", lambda *_: "")
    assert assembling.code_version() == version("pm-node")


def test_only_an_agent_that_went_away_is_said_to_have(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, leaves={1: 3})
    assert not any("went away" in note for note in report_of(spec, market(epochs=7))["notes"])
    gone = market(rounds_played={"agent-0": 4, "agent-1": 3})
    assert "agent-1 went away after round 3." in report_of(spec, gone)["notes"]
