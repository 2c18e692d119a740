"""What ended long ago is forgotten, but for its name; what is open never is."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.journal import STATEMENT_SECONDS, Journal, JournalError, TradeRow
from node.observe import Observer
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError
from node.protocol.purchase import Purchase, PurchaseState
from node.protocol.schema import to_map
from node.protocol.types import UnixTime
from node.settlement.desk import TradeDesk
from node.settlement.history import trade_rows
from node.settlement.treasury import Treasury
from node.settlement.watch import ChainWatch
from tests.node.test_journal import name, trade, transaction
from tests.protocol.cast import NOW, purchase_record, word
from tests.settlement.fake_chain import FakeChain, FakeEscrow
from tests.settlement.trades import BUYER, Bench

KEPT = 90 * 86_400
VERSION_1 = """
CREATE TABLE trade (
    trade_id BLOB NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, over INTEGER NOT NULL,
    record BLOB NOT NULL, opened INTEGER NOT NULL,
    PRIMARY KEY (trade_id, role)
) STRICT;
CREATE INDEX trade_open ON trade (over, opened);
CREATE TABLE "transaction" (
    trade_id BLOB NOT NULL, step TEXT NOT NULL, attempt INTEGER NOT NULL,
    nonce INTEGER NOT NULL, hash BLOB NOT NULL, raw BLOB NOT NULL, gas INTEGER, block INTEGER,
    succeeded INTEGER,
    PRIMARY KEY (trade_id, step, attempt)
) STRICT;
CREATE TABLE statement (
    digest BLOB PRIMARY KEY, expires_at INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE TABLE fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
PRAGMA user_version=1;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    yield journal
    journal.close()


def prune(journal: Journal, day: float) -> None:
    journal.prune(int(day * 86_400), trade_seconds=KEPT)


def begun(number: int, side: str = "seller") -> TradeRow:
    return trade(number, side)


def ended(number: int, side: str = "seller") -> TradeRow:
    return trade(number, side, state="paid", over=True)


# ── trades ──


def test_a_trade_is_kept_whole_for_as_long_as_was_said(journal: Journal) -> None:
    journal.save_trade(ended(1))
    prune(journal, 0)
    prune(journal, 89.9)
    assert journal.trades() == [ended(1)]
    prune(journal, 90)
    assert journal.trades() == []


def test_of_a_trade_that_ended_long_ago_its_name_and_its_end_are_known_for_ever(
    journal: Journal,
) -> None:
    journal.save_trade(ended(1))
    for day in (0, 90, 10_000):
        prune(journal, day)
    row = journal.trade(name(1), "seller")
    assert row == dataclasses.replace(ended(1), record=b"")
    assert row is not None
    assert row.pruned
    assert not ended(1).pruned
    with pytest.raises(JournalError, match="ended long ago as seller"):
        journal.save_trade(begun(1))
    assert journal.trade(name(1), "seller") == row
    journal.save_trade(begun(2))
    assert journal.trades() == [begun(2)]


def test_an_open_trade_is_never_forgotten(journal: Journal) -> None:
    journal.save_trade(begun(1))
    journal.save_transaction(transaction(1, "fund", 0, 1))
    journal.mark_mined(name(1_000), gas=1, block=1, succeeded=True)
    before = journal.transactions(name(1))
    for day in (0, 90, 10_000):
        prune(journal, day)
    assert journal.trades(open_only=True) == [begun(1)]
    assert journal.transactions(name(1)) == before


def test_a_trade_counts_as_ended_from_when_it_was_first_found_over(journal: Journal) -> None:
    journal.save_trade(begun(1))
    prune(journal, 80)
    journal.save_trade(ended(1))
    prune(journal, 100)
    prune(journal, 189)
    assert journal.trades() == [ended(1)]
    prune(journal, 190)
    assert journal.trades() == []


def test_a_clock_that_was_wrong_once_makes_no_trade_stay_for_ever(journal: Journal) -> None:
    journal.save_trade(ended(1))
    prune(journal, 100_000)
    prune(journal, 10)
    prune(journal, 100)
    assert journal.trades() == []


@pytest.mark.parametrize(
    ("state", "stays"),
    [("complete", True), ("cheated", True), ("abandoned", False), ("refunded", False)],
)
def test_what_was_bought_keeps_its_record_and_what_came_to_nothing_does_not(
    journal: Journal, state: str, stays: bool
) -> None:
    bought = trade(1, "buyer", state=state, over=True)
    sold = trade(1, "seller", state=state, over=True)
    for row in (bought, sold):
        journal.save_trade(row)
    journal.save_transaction(transaction(1, "fund", 0, 1))
    journal.mark_mined(name(1_000), gas=1, block=1, succeeded=True)
    for day in (0, 90):
        prune(journal, day)
    assert journal.trades() == ([bought] if stays else [])
    assert journal.transactions(name(1)) == []


# ── their transactions ──


def test_its_transactions_go_with_a_trade_and_no_others(journal: Journal) -> None:
    for number in (1, 2):
        for nonce, step in enumerate(("fund", "withdraw")):
            journal.save_transaction(transaction(number, step, 0, 2 * number + nonce))
            hash_ = name(1_000 * (2 * number + nonce))
            journal.mark_mined(hash_, gas=1, block=1, succeeded=True)
    journal.save_trade(ended(1))
    prune(journal, 0)
    journal.save_trade(ended(2))
    prune(journal, 50)
    prune(journal, 100)
    assert journal.transactions(name(1)) == []
    assert len(journal.transactions(name(2))) == 2


def test_a_transaction_that_may_still_be_mined_is_kept(journal: Journal) -> None:
    journal.save_trade(ended(1))
    dead, mined, open_ = (transaction(1, "fund", attempt, 5 + attempt) for attempt in range(3))
    for row in (dead, mined, open_):
        journal.save_transaction(row)
    journal.mark_mined(mined.hash, gas=1, block=1, succeeded=False)
    for day in (0, 100):
        prune(journal, day)
    assert journal.transactions(name(1)) == [open_]
    assert journal.unmined_transactions(0, 100) == [open_]


def test_transactions_stay_while_one_side_of_their_trade_is_known(journal: Journal) -> None:
    journal.save_trade(ended(1))
    journal.save_transaction(transaction(1, "fund", 0, 1))
    journal.mark_mined(name(1_000), gas=1, block=1, succeeded=True)
    prune(journal, 0)
    journal.save_trade(begun(1, "buyer"))
    prune(journal, 100)
    assert journal.trades() == [begun(1, "buyer")]
    assert len(journal.transactions(name(1))) == 1


# ── statements ──


def test_an_expired_statement_is_kept_for_some_days(journal: Journal, path: Path) -> None:
    for number, expires_at in enumerate((100, 200)):
        journal.save_statement(name(number), expires_at, b"offer %d" % number)

    def held() -> int:
        with sqlite3.connect(path) as reader:
            (count,) = reader.execute("SELECT COUNT(*) FROM statement").fetchone()
        reader.close()
        return int(count)

    journal.prune(100 + STATEMENT_SECONDS - 1, trade_seconds=KEPT)
    assert held() == 2
    journal.prune(100 + STATEMENT_SECONDS, trade_seconds=KEPT)
    assert held() == 1
    assert journal.statements(150) == [b"offer 1"]


# ── whatever happens, in whatever order ──

_happening = st.tuples(
    st.sampled_from(["open", "end", "prune"]), st.integers(1, 4), st.sampled_from([0, 1, 40, 91])
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(_happening, max_size=20))
def test_no_trade_is_lost_that_is_open_and_none_is_opened_twice(
    tmp_path: Path, script: list[tuple[str, int, int]]
) -> None:
    journal = Journal(tmp_path / f"{len(list(tmp_path.iterdir()))}.db")
    opened: dict[int, bool] = {}
    day = 0
    for what, number, days in script:
        day += days
        if what == "prune":
            prune(journal, day)
        elif what == "open" and journal.trade(name(number), "seller") is None:
            assert number not in opened
            journal.save_trade(begun(number))
            opened[number] = True
        elif what == "end" and opened.get(number):
            journal.save_trade(ended(number))
            opened[number] = False
        still = {row.trade_id for row in journal.trades(open_only=True)}
        assert still == {name(n) for n, is_open in opened.items() if is_open}
        assert all(journal.trade(name(n), "seller") is not None for n in opened)
    journal.close()


# ── what others make of it ──


def full_row(state: PurchaseState) -> TradeRow:
    record = purchase_record(state)
    return TradeRow(
        trade_id=record.trade_id,
        role="buyer",
        state=record.state,
        over=Purchase(record).over,
        record=cbor.encode(to_map(record)),
    )


def test_people_are_told_of_the_trades_that_are_still_known(journal: Journal, path: Path) -> None:
    journal.save_trade(full_row(PurchaseState.ABANDONED))
    other = dataclasses.replace(full_row(PurchaseState.FUNDED), trade_id=word("another"))
    journal.save_trade(other)
    prune(journal, 0)
    assert [row["state"] for row in trade_rows(path)] == ["abandoned", "funded"]
    prune(journal, 100)
    assert [row["state"] for row in trade_rows(path)] == ["funded"]


async def test_a_trade_that_was_pruned_is_not_opened_again(journal: Journal) -> None:
    journal.save_trade(full_row(PurchaseState.ABANDONED))
    for day in (0, 100):
        prune(journal, day)

    def clock() -> UnixTime:
        return NOW

    escrow, observer = FakeEscrow(FakeChain(clock), BUYER), Observer()
    desk = TradeDesk(
        treasury=Treasury(escrow, journal, observer),
        watch=ChainWatch(escrow, journal, observer, confirmations=0),
        journal=journal,
        workshop=Bench(),
        observer=observer,
        clock=clock,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.run)
        await desk.running.wait()
        with pytest.raises(LocalProtocolError, match="known already as buyer"):
            desk.open(Purchase(purchase_record()))
        assert not desk.open_trades()
        nursery.cancel_scope.cancel()


# ── a journal of version 1 ──


def version_1(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(VERSION_1)
    for number, (state, over) in enumerate([("paid", 1), ("funded", 0)]):
        database.execute(
            "INSERT INTO trade VALUES (?, ?, ?, ?, ?, ?)",
            (name(number), "seller", state, over, state.encode(), number + 1),
        )
    database.execute("INSERT INTO fact VALUES (?, ?)", ("nonce", cbor.encode(41)))
    database.commit()
    database.close()


OLD = [ended(0), trade(1, "seller", state="funded")]


def test_a_journal_of_version_1_goes_on_with_all_that_is_in_it(path: Path) -> None:
    version_1(path)
    for _ in range(2):  # the second time it is of version 2 already
        journal = Journal(path)
        assert journal.trades() == OLD
        journal.close()
    journal = Journal(path)
    assert journal.next_nonce() == 42
    journal.save_trade(trade(7))
    assert journal.trades() == [*OLD, trade(7)]
    prune(journal, 20_000)  # when a trade of before ended is not known: its time begins now
    assert journal.trades() == [*OLD, trade(7)]
    prune(journal, 20_090)
    assert journal.trades() == [OLD[1], trade(7)]
    journal.close()


def test_a_journal_of_version_1_is_read_as_it_is(path: Path) -> None:
    version_1(path)
    reader = Journal(path, read_only=True)
    assert reader.trades() == OLD
    assert reader.trade(name(0), "seller") == OLD[0]
    reader.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (1,)
    database.close()
