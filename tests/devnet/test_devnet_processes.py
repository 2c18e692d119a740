"""The first trade, and the next: real weights, real processes, real money movements."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devnet.in_process import played

AGENTS = ("agent-0", "agent-1")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two agents and a broker as three processes, the chain a fourth; two rounds."""
    return played(
        tmp_path_factory.mktemp("devnet") / "run",
        *("--processes", "--rounds", "2", "--epochs-per-round", "5", "--warmup-epochs", "0"),
        *("--dataset", "digits", "--arms", "aligned"),
    )


def test_every_trade_that_was_agreed_is_paid_on_chain(report: dict[str, Any]) -> None:
    assert report["trades"]
    assert {trade["on_chain"] for trade in report["trades"]} == {"paid"}
    assert {trade["state"] for trade in report["trades"]} == {"complete"}


def test_the_buyers_test_accuracy_rises(report: dict[str, Any]) -> None:
    curves = report["arms"]["aligned"]["curves"]["0"]
    for agent in AGENTS:
        assert curves[agent][-1][1] > curves[agent][0][1] + 10
        assert len(curves[agent]) == 10


def test_the_ledger_balances_to_the_wei(report: dict[str, Any]) -> None:
    ledger = report["ledger"]
    assert ledger["balances"]
    assert int(ledger["deposited"]) == sum(int(trade["price"]) for trade in report["trades"])
    assert int(ledger["deposited"]) == int(ledger["paid_out"]) + int(ledger["fees"])
    assert (ledger["stuck"], ledger["open_trades"]) == ("0", 0)
    agents = report["agents"]
    assert sum(int(agent["spent"]) for agent in agents) == int(ledger["deposited"])
    assert sum(int(agent["earned"]) for agent in agents) == int(ledger["paid_out"])


def test_bytes_crossed_libp2p_and_the_chain_gave_receipts(report: dict[str, Any]) -> None:
    network = report["network"]
    for protocol in ("/pm/broker/2", "/pm/params/1", "/pm/goods/1"):
        assert network["bytes_in"][protocol] > 0
        assert network["bytes_out"][protocol] > 0
    assert network["accepted"] > 0
    for trade in report["trades"]:
        for step in ("fund", "reveal", "finalize"):
            assert trade["transactions"][step].startswith("0x")
            assert trade["gas"][step] > 0


def test_prices_are_decimal_strings_of_wei(report: dict[str, Any]) -> None:
    for trade in report["trades"]:
        assert trade["price"] == str(int(trade["price"]))
