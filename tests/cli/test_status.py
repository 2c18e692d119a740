"""What a node's directory tells of it, while it runs and when it does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from node.home import Home
from node.journal import Journal, TradeRow, TransactionRow
from node.protocol import cbor
from node.protocol.brokerage import BrokerageState
from node.protocol.purchase import PurchaseState
from node.protocol.sale import SaleState
from node.protocol.schema import to_map
from node.protocol.types import Digest
from tests.cli.conftest import PASSWORD, Command
from tests.protocol.cast import brokerage_record, purchase_record, sale_record, word


@pytest.fixture
def node_home(home: Path) -> Home:
    return Home(home).prepare()


@pytest.fixture
def journal(node_home: Home) -> Journal:
    """A journal of a purchase, a sale and a quote; closed, as of a node that ended."""
    journal = Journal(node_home.journal)
    bought = purchase_record(PurchaseState.COMPLETE)
    journal.save_trade(
        TradeRow(
            trade_id=bought.trade_id,
            role="buyer",
            state="complete",
            over=True,
            record=cbor.encode(to_map(bought)),
        )
    )
    sold = sale_record(SaleState.PREPARED)
    journal.save_trade(
        TradeRow(
            trade_id=word("another trade"),
            role="seller",
            state="prepared",
            over=False,
            record=cbor.encode(to_map(sold)),
        )
    )
    quoted = brokerage_record(BrokerageState.QUOTED)
    journal.save_trade(
        TradeRow(
            trade_id=word("a third trade"),
            role="broker",
            state="quoted",
            over=False,
            record=cbor.encode(to_map(quoted)),
        )
    )
    journal.save_transaction(
        TransactionRow(
            trade_id=bought.trade_id,
            step="fund",
            attempt=0,
            nonce=4,
            hash=word("fund"),
            raw=b"raw",
        )
    )
    journal.mark_mined(word("fund"), gas=77_000, block=5, succeeded=True)
    journal.remember("progress", [3, 15, word("weights"), True, [word("earlier")]])
    journal.close()
    return journal


BOUGHT = "0x" + purchase_record().trade_id.hex()


def log(home: Home, *events: str) -> None:
    lines = [json.dumps({"time": "t", "level": "info", "event": name}) for name in events]
    (home.logs / "broker.jsonl").write_text("\n".join(lines) + "\n")


def test_a_stopped_node_is_told_from_its_directory(
    pm_node: Command, node_home: Home, journal: Journal
) -> None:
    pm_node("keys", "new", "--development", "--data-dir", node_home.root, stdin=PASSWORD + "\n")
    log(node_home, "first", "second", "third")
    keys = pm_node("keys", "show", "--json", "--data-dir", node_home.root).json
    ran = pm_node("status", "--json", "--events", "2", "--data-dir", node_home.root)
    assert ran.code == 0
    told = ran.json
    assert [event["event"] for event in told.pop("events")] == ["second", "third"]
    assert told == {
        "data_dir": str(node_home.root),
        "role": "broker",
        "running": False,
        "pid": None,
        "account": keys["account"],
        "peer_id": keys["peer_id"],
        "progress": {"round": 3, "rounds": None, "epoch": 15, "trained": True},
        "open_trades": 2,
        "trades": {"broker": {"quoted": 1}, "buyer": {"complete": 1}, "seller": {"prepared": 1}},
        "faults": [],
    }


def test_a_person_is_told_the_same(pm_node: Command, node_home: Home, journal: Journal) -> None:
    log(node_home, "third")
    ran = pm_node("status", "--data-dir", node_home.root, "--rounds", "9")
    assert ran.code == 0
    for fragment in ("does not run", "round 3 of 9, epoch 15", "1 complete", "2 open", "t info"):
        assert fragment in ran.out


def test_a_running_node_is_told_with_its_process(
    pm_node: Command, node_home: Home, journal: Journal
) -> None:
    with node_home.lock():
        writer = Journal(node_home.journal)
        try:
            told = pm_node("status", "--json", "--data-dir", node_home.root).json
            assert (told["running"], told["pid"]) == (True, os.getpid())
            assert told["open_trades"] == 2
            writer.remember("progress", [4, 20, word("weights"), False])  # it is not in the way
        finally:
            writer.close()
    assert not pm_node("status", "--json", "--data-dir", node_home.root).json["running"]


def test_the_pid_of_a_killed_node_is_not_taken_for_a_running_one(
    pm_node: Command, node_home: Home
) -> None:
    node_home.run_lock.write_text(f"{os.getpid()}\n")
    told = pm_node("status", "--json", "--data-dir", node_home.root).json
    assert (told["running"], told["pid"]) == (False, None)


def test_status_makes_nothing(pm_node: Command, home: Path) -> None:
    pm_node("status", "--data-dir", home).refused(3, str(home), "pm-node init")
    assert not home.exists()
    pm_node("init", "--data-dir", home)
    before = sorted(home.rglob("*"))
    assert pm_node("status", "--data-dir", home).code == 0
    assert sorted(home.rglob("*")) == before


def test_what_cannot_be_read_is_a_fault_beside_what_can(
    pm_node: Command, node_home: Home, journal: Journal
) -> None:
    node_home.peer_key.write_text("no key")
    node_home.peer_key.chmod(0o600)
    ran = pm_node("status", "--json", "--data-dir", node_home.root)
    assert ran.code == 1
    assert len(ran.json["faults"]) == 1
    assert "PEM" in ran.json["faults"][0]
    assert ran.json["open_trades"] == 2


def test_a_line_cut_short_by_a_crash_is_no_event(pm_node: Command, node_home: Home) -> None:
    log(node_home, "first", "second")
    with (node_home.logs / "broker.jsonl").open("a") as file:
        file.write('{"time": "t", "ev')
    told = pm_node("status", "--json", "--data-dir", node_home.root).json
    assert [event["event"] for event in told["events"]] == ["first", "second"]


def test_trades_are_listed_with_their_prices(
    pm_node: Command, node_home: Home, journal: Journal
) -> None:
    rows = pm_node("trade", "list", "--json", "--data-dir", node_home.root).json
    assert [row["state"] for row in rows] == ["complete", "prepared", "quoted"]
    assert rows[0]["price"] == str(purchase_record().quote.price)
    assert rows[0]["gas"] == {"fund": 77_000}
    lines = pm_node("trade", "list", "--data-dir", node_home.root).out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(BOUGHT[:18])


def test_a_node_that_never_traded_has_no_trades(pm_node: Command, node_home: Home) -> None:
    ran = pm_node("trade", "list", "--json", "--data-dir", node_home.root)
    assert (ran.code, ran.json) == (0, [])
    assert not node_home.journal.exists()


def test_one_trade_is_shown_by_the_beginning_of_its_id(
    pm_node: Command, node_home: Home, journal: Journal
) -> None:
    words = ("trade", "show", BOUGHT[:12], "--data-dir", node_home.root)
    (side,) = pm_node(*words, "--json").json
    assert (side["trade_id"], side["side"], side["state"]) == (BOUGHT, "buyer", "complete")
    assert side["terms"]["price"] == str(purchase_record().quote.price)
    assert side["transactions"] == [
        {
            "step": "fund",
            "attempt": 0,
            "nonce": 4,
            "hash": "0x" + word("fund").hex(),
            "fate": "mined",
            "block": 5,
            "gas": 77_000,
        }
    ]
    shown = pm_node(*words)
    assert shown.code == 0
    assert f"{purchase_record().quote.price} wei" in shown.out


def test_no_secret_of_a_trade_is_shown(pm_node: Command, node_home: Home, journal: Journal) -> None:
    sold, bought = sale_record(), purchase_record()
    secrets = [value for value in (sold.secret, sold.private_key, bought.private_key) if value]
    for trade_id in (BOUGHT, "0x" + word("another trade").hex()):
        for form in ([], ["--json"]):
            ran = pm_node("trade", "show", trade_id, "--data-dir", node_home.root, *form)
            assert ran.code == 0
            assert not [secret for secret in secrets if secret.hex() in ran.out]


@pytest.mark.parametrize(
    ("trade_id", "fragment"),
    [("0x00000000", "no trade"), ("zz", "hex digits"), ("0xab", "hex digits")],
)
def test_a_trade_that_is_not_there_is_refused(
    pm_node: Command, node_home: Home, journal: Journal, trade_id: str, fragment: str
) -> None:
    pm_node("trade", "show", trade_id, "--data-dir", node_home.root).refused(
        2, trade_id, fragment, "pm-node trade list"
    )


def test_an_id_that_begins_two_trades_asks_for_more_of_it(
    pm_node: Command, node_home: Home
) -> None:
    journal = Journal(node_home.journal)
    for last in (1, 2):
        trade_id = Digest(b"\xaa" * 31 + bytes([last]))
        journal.save_trade(
            TradeRow(trade_id=trade_id, role="buyer", state="x", over=True, record=b"x")
        )
    journal.close()
    pm_node("trade", "show", "0xaaaa", "--data-dir", node_home.root).refused(2, "more digits")


def test_a_journal_of_another_version_is_refused(pm_node: Command, node_home: Home) -> None:
    node_home.journal.write_bytes(b"no database" * 100)
    pm_node("trade", "list", "--data-dir", node_home.root).refused(3, str(node_home.journal))
