"""What the journal has answered it keeps: over restarts, over kills, or it says what is wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.journal import Journal, JournalError, TradeRow, TransactionRow
from node.protocol import cbor
from node.protocol.types import Digest

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("buyer", "seller", "broker")


def name(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def trade(number: int, side: str = "buyer", *, state: str = "open", over: bool = False) -> TradeRow:
    return TradeRow(trade_id=name(number), role=side, state=state, over=over, record=state.encode())


def transaction(number: int, step: str, attempt: int, nonce: int) -> TransactionRow:
    return TransactionRow(
        trade_id=name(number),
        step=step,
        attempt=attempt,
        nonce=nonce,
        hash=name(1_000 * nonce + attempt),
        raw=bytes([nonce, attempt]),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def reopened(journal: Journal, path: Path) -> Journal:
    journal.close()
    return Journal(path)


# ── trades ──


def test_trades_are_there_after_a_restart_in_the_order_of_their_opening(
    journal: Journal, path: Path
) -> None:
    rows = [trade(3), trade(1, "seller"), trade(2, "broker"), trade(1, "buyer")]
    for row in rows:
        journal.save_trade(row)
    again = reopened(journal, path)
    assert again.trades() == rows
    again.close()


def test_a_changed_trade_keeps_its_place_and_only_its_last_state(journal: Journal) -> None:
    for number in (1, 2):
        journal.save_trade(trade(number))
    journal.save_trade(trade(1, state="funded"))
    assert journal.trades() == [trade(1, state="funded"), trade(2)]
    assert journal.trade(name(1), "buyer") == trade(1, state="funded")


def test_the_sides_of_one_trade_are_rows_of_their_own(journal: Journal) -> None:
    for side in SIDES:
        journal.save_trade(trade(7, side, state=side))
    for side in SIDES:
        assert journal.trade(name(7), side) == trade(7, side, state=side)
        assert journal.trades(role=side) == [trade(7, side, state=side)]
    assert journal.trade(name(8), "buyer") is None


def test_a_trade_that_is_over_is_not_resumed_and_not_forgotten(journal: Journal) -> None:
    journal.save_trade(trade(1))
    journal.save_trade(trade(2))
    journal.save_trade(trade(1, state="complete", over=True))
    assert journal.trades(open_only=True) == [trade(2)]
    assert journal.trade(name(1), "buyer") == trade(1, state="complete", over=True)


# ── transactions ──


def test_attempts_at_a_step_come_back_oldest_first(journal: Journal, path: Path) -> None:
    rows = [
        transaction(1, "fund", 0, 4),
        transaction(2, "reveal", 0, 5),
        transaction(1, "fund", 1, 6),
        transaction(1, "refund", 0, 7),
    ]
    for row in rows:
        journal.save_transaction(row)
    again = reopened(journal, path)
    assert again.transactions(name(1), "fund") == [rows[0], rows[2]]
    assert again.transactions(name(1)) == [rows[0], rows[2], rows[3]]
    assert again.transactions(name(3)) == []
    again.close()


def test_what_became_of_a_transaction_is_noted_on_it_alone(journal: Journal) -> None:
    first, second = transaction(1, "fund", 0, 4), transaction(1, "fund", 1, 5)
    for row in (first, second):
        journal.save_transaction(row)
    journal.mark_mined(second.hash, gas=63_000, block=12, succeeded=False)
    kept, mined = journal.transactions(name(1), "fund")
    assert kept == first
    assert (mined.gas, mined.block, mined.succeeded) == (63_000, 12, False)


def test_a_transaction_of_several_trades_is_journalled_in_each_of_them_or_in_none(
    journal: Journal,
) -> None:
    first, second = transaction(1, "fund", 0, 4), transaction(2, "fund", 0, 4)
    second = dataclasses.replace(second, hash=first.hash, raw=first.raw)
    journal.save_transaction(first, second)
    journal.save_transaction(transaction(2, "reveal", 0, 5))
    assert journal.sharers(first.hash) == [name(1), name(2)]
    journal.mark_mined(first.hash, gas=101, block=12, succeeded=True)
    for number in (1, 2):
        (row,) = journal.transactions(name(number), "fund")
        assert (row.succeeded, row.gas, row.shared, row.share) == (True, 101, 2, 51)
    (other,) = journal.transactions(name(2), "reveal")
    assert (other.succeeded, other.shared, other.share) == (None, 1, 0)
    with pytest.raises(JournalError, match="UNIQUE"):
        journal.save_transaction(transaction(3, "fund", 0, 6), second)
    assert journal.transactions(name(3)) == []


def test_an_attempt_is_never_written_over(journal: Journal) -> None:
    journal.save_transaction(transaction(1, "fund", 0, 4))
    with pytest.raises(JournalError, match="UNIQUE"):
        journal.save_transaction(transaction(1, "fund", 0, 5))
    assert journal.transactions(name(1)) == [transaction(1, "fund", 0, 4)]


# ── statements, facts, nonces ──


def test_statements_are_said_again_until_they_expire(journal: Journal, path: Path) -> None:
    for number in (1, 2, 3):
        journal.save_statement(name(number), 100 + number, b"offer %d" % number)
    again = reopened(journal, path)
    assert again.statements(100) == [b"offer 1", b"offer 2", b"offer 3"]
    assert again.statements(101) == [b"offer 2", b"offer 3"]
    assert again.statements(103) == []
    again.close()


def test_a_statement_that_is_kept_twice_is_said_once(journal: Journal) -> None:
    for _ in range(2):
        journal.save_statement(name(1), 100, b"offer")
    assert journal.statements(0) == [b"offer"]


_scalar = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=64)
    | st.text(max_size=16)
)
_value: st.SearchStrategy[cbor.Value] = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=_value)
def test_a_fact_comes_back_as_it_was_told(journal: Journal, value: cbor.Value) -> None:
    journal.remember("fact", value)
    assert journal.recall("fact") == value


def test_a_fact_has_its_last_value_after_a_restart(journal: Journal, path: Path) -> None:
    journal.remember("watermark", 7)
    journal.remember("watermark", 9)
    again = reopened(journal, path)
    assert again.recall("watermark") == 9
    assert again.recall("never told") is None
    again.close()


def test_no_nonce_is_given_twice_whatever_the_restarts(journal: Journal, path: Path) -> None:
    given_out: list[int] = []
    for _ in range(4):
        given_out += [journal.next_nonce() for _ in range(3)]
        journal = reopened(journal, path)
    journal.close()
    assert given_out == sorted(set(given_out))
    assert len(given_out) == 12


# ── what is wrong is said ──


def test_a_journal_of_another_version_is_refused_and_left_alone(
    journal: Journal, path: Path
) -> None:
    journal.save_trade(trade(1))
    journal.close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=3")
    database.close()
    with pytest.raises(JournalError, match="has version 3, this code reads 2"):
        Journal(path)
    database = sqlite3.connect(path)
    assert database.execute("SELECT COUNT(*) FROM trade").fetchone() == (1,)
    database.close()


def test_a_file_that_is_no_journal_is_refused_by_name(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 1_000)
    with pytest.raises(JournalError, match=str(path)):
        Journal(path)


def test_a_journal_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="nowhere"):
        Journal(tmp_path / "nowhere" / "journal.db")


def test_damage_in_the_middle_is_told_where_it_is_read(journal: Journal, path: Path) -> None:
    for number in range(20):
        journal.save_trade(
            TradeRow(
                trade_id=name(number), role="buyer", state="x", over=False, record=bytes(9_000)
            )
        )
        journal.save_transaction(transaction(number, "fund", 0, 1))
        journal.save_statement(name(number), 10**9, bytes(9_000))
        journal.remember(f"fact {number}", bytes(9_000))
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(2 * 4_096)  # past the header and the schema
        file.write(b"\xa5" * (size - 2 * 4_096))
    with pytest.raises(JournalError):
        damaged = Journal(path)
        try:
            reads = (
                damaged.trades,
                lambda: damaged.trade(name(1), "buyer"),
                lambda: damaged.transactions(name(1)),
                lambda: damaged.statements(0),
                lambda: damaged.recall("fact 7"),
            )
            for read in reads:
                with pytest.raises(JournalError):
                    read()
            damaged.save_trade(trade(1))
        finally:
            damaged.close()


def test_a_fact_that_is_not_ours_is_damage_too(journal: Journal, path: Path) -> None:
    journal.remember("watermark", 7)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE fact SET value = x'ff'")
    database.close()
    with pytest.raises(JournalError, match="watermark"):
        journal.recall("watermark")


def test_a_write_that_fails_leaves_the_journal_as_it_was_and_fit_for_the_next(
    journal: Journal,
) -> None:
    with pytest.raises(JournalError):
        journal.save_statement(name(1), 2**64, b"expires after the end of time")
    journal.save_statement(name(2), 100, b"good")
    assert journal.statements(0) == [b"good"]


def test_nobody_else_may_read_the_secrets_in_it(path: Path) -> None:
    before = os.umask(0o022)
    try:
        journal = Journal(path)
        journal.save_trade(trade(1))
    finally:
        os.umask(before)
    files = sorted(path.parent.iterdir())
    assert len(files) == 3  # the database, its log, the log's index
    assert {file.name: stat.S_IMODE(file.stat().st_mode) & 0o077 for file in files} == {
        file.name: 0 for file in files
    }
    journal.close()


# ── death ──

WRITER = """
import sys
from pathlib import Path
from node.journal import Journal, TradeRow, TransactionRow
from node.protocol.types import Digest

journal = Journal(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    name = Digest(number.to_bytes(32, "big"))
    journal.save_trade(
        TradeRow(trade_id=name, role="buyer", state="funding", over=False, record=bytes(2000))
    )
    journal.save_transaction(
        TransactionRow(
            trade_id=name, step="fund", attempt=0, nonce=number, hash=name, raw=bytes(500)
        )
    )
    nonce = journal.next_nonce()
    print(number, nonce, flush=True)
"""


@pytest.mark.parametrize("answers", [1, 40])
def test_a_kill_loses_nothing_that_was_answered(path: Path, answers: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(answers):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    whole = [line.split() for line in rest if len(line.split()) == 2][:-1]
    answered = answers + len(whole)

    journal = Journal(path)
    kept = [row.trade_id for row in journal.trades(open_only=True)]
    assert kept[:answered] == [name(number) for number in range(1, answered + 1)]
    assert len(kept) <= answered + 2  # the one being written, and one whose line was cut
    for number in range(1, answered + 1):
        assert [row.nonce for row in journal.transactions(name(number))] == [number]
    assert journal.next_nonce() > answered
    journal.close()


# ── readers ──


def test_a_reader_sees_what_its_owner_has_written_and_writes_nothing(
    journal: Journal, path: Path
) -> None:
    journal.save_trade(trade(1))
    reader = Journal(path, read_only=True)
    assert reader.trades() == [trade(1)]
    journal.save_trade(trade(2))
    assert reader.trades() == [trade(1), trade(2)]
    with pytest.raises(JournalError, match="readonly"):
        reader.save_trade(trade(3))
    reader.close()
    assert journal.trades() == [trade(1), trade(2)]


def test_a_journal_that_is_only_to_be_read_is_not_made(path: Path) -> None:
    with pytest.raises(JournalError, match=str(path)):
        Journal(path, read_only=True)
    assert not path.exists()
