"""The journal: what a node must not forget, written before any effect on the outside.

SQLite in WAL mode with `synchronous=FULL`, so that what `commit` returned from survives a
power cut. One writer, the node's own process (the run lock sees to it). Rows:

| table       | holds                                                                       |
|-------------|-----------------------------------------------------------------------------|
| trade       | each purchase and sale: its state and its record, canonical CBOR            |
| transaction | each signed transaction *before* it is sent, by (trade, step, attempt);     |
|             | one that does a step of several trades has a row of each                    |
| statement   | offers and notices that we signed, so that a restart offers them again      |
| fact        | small named values: the watermark of the chain, the round, the nonce        |

`prune` bounds it: statements go some days after they expired, transactions some time after
their trade ended. Then of most trades only the id, the side and the state stay; they stay for
good, so that no trade is ever opened twice, whatever a peer replays and however the clock was
set when the rest went. What was bought keeps its record: it says what is ours and what we spent.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from node.protocol import cbor
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.purchase import PurchaseState
from node.protocol.types import Digest

_VERSION: Final = 2
_ADD_ENDED: Final = "ALTER TABLE trade ADD COLUMN ended INTEGER"
"""What version 2 has over version 1: when a trade was first found to be over, if it is."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trade (
    trade_id BLOB NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, over INTEGER NOT NULL,
    record BLOB NOT NULL, opened INTEGER NOT NULL, ended INTEGER,
    PRIMARY KEY (trade_id, role)
) STRICT;
CREATE INDEX IF NOT EXISTS trade_open ON trade (over, opened);
CREATE TABLE IF NOT EXISTS "transaction" (
    trade_id BLOB NOT NULL, step TEXT NOT NULL, attempt INTEGER NOT NULL,
    nonce INTEGER NOT NULL, hash BLOB NOT NULL, raw BLOB NOT NULL, gas INTEGER, block INTEGER,
    succeeded INTEGER,
    PRIMARY KEY (trade_id, step, attempt)
) STRICT;
CREATE INDEX IF NOT EXISTS transaction_hash ON "transaction" (hash);
CREATE TABLE IF NOT EXISTS statement (
    digest BLOB PRIMARY KEY, expires_at INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
"""
_TRANSACTIONS: Final = (
    "SELECT trade_id, step, attempt, nonce, hash, raw, gas, block, succeeded, "
    '(SELECT COUNT(*) FROM "transaction" AS other WHERE other.hash = "transaction".hash) '
    'FROM "transaction" '
)
STATEMENT_SECONDS: Final = 7 * 86_400
"""How long an expired statement of ours can still be looked up."""
_BOUGHT: Final = (PurchaseState.COMPLETE.value, PurchaseState.CHEATED.value)
"""How a purchase ends that we paid for; the record of one that we cannot open is a proof."""


class JournalError(MarketError):
    """The journal cannot be read or written: nothing may be promised until it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeRow:
    """One trade of ours; `record` is what its machine is made from."""

    trade_id: Digest
    role: str
    """``buyer``, ``seller`` or ``broker``."""
    state: str
    over: bool
    record: bytes
    """Empty once the trade was pruned."""

    @property
    def pruned(self) -> bool:
        """Whether only its id, its side and its state are known any more."""
        return not self.record


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRow:
    """One signed transaction; `succeeded` is None until it was seen mined."""

    trade_id: Digest
    step: str
    attempt: int
    nonce: int
    hash: Digest
    raw: bytes
    gas: int | None = None
    block: int | None = None
    succeeded: bool | None = None
    shared: int = 1
    """Of how many trades this very transaction does a step."""

    @property
    def share(self) -> int:
        """Its gas, as much of it as falls to this trade, rounded up; 0 until it was mined."""
        return -(-(self.gas or 0) // self.shared)


class Journal:
    """The open journal of one node. Not for use from two threads at once."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the journal; only its own node does so without `read_only`.

        Raises `JournalError` if it cannot be opened, or is to be read and is not there.
        """
        with contextlib.ExitStack() as stack:
            try:
                if read_only:
                    self._db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
                    stack.callback(self._db.close)
                    self._require_version(path, (1, _VERSION))  # only `prune` asks for more
                    stack.pop_all()
                    return
                # SQLite gives its log and index the mode that the database has when they are made
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                path.chmod(0o600)
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                stack.callback(self._db.close)
                self._prepare(path)
            except (sqlite3.Error, OSError) as error:
                raise JournalError(f"cannot open {path}: {error}") from error
            stack.pop_all()

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if self._require_version(path, (0, 1, _VERSION)) == 1:
            with self._commit() as db:
                db.execute(_ADD_ENDED)
                db.execute(f"PRAGMA user_version={_VERSION}")
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version={_VERSION}")

    def _require_version(self, path: Path, known: tuple[int, ...]) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in known:
            raise JournalError(f"{path} has version {version}, this code reads {_VERSION}")
        return version

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    @contextmanager
    def _commit(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OverflowError) as error:  # SQLite's integers have 64 bits
            raise JournalError(f"cannot write the journal: {error}") from error

    def _read(self, query: str, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"cannot read the journal: {error}") from error

    # ── trades ──

    def save_trade(self, row: TradeRow) -> None:
        """Write the trade as it is now; on disk when this returns. Not one that was pruned."""
        with self._commit() as db:
            written = db.execute(
                "INSERT INTO trade VALUES (?, ?, ?, ?, ?, "
                "(SELECT COALESCE(MAX(opened), 0) + 1 FROM trade), NULL) "
                "ON CONFLICT (trade_id, role) DO UPDATE SET "
                "state = excluded.state, over = excluded.over, record = excluded.record, "
                "ended = NULL WHERE trade.record <> x''",
                (row.trade_id, row.role, row.state, int(row.over), row.record),
            )
            if not written.rowcount:
                raise JournalError(f"trade {row.trade_id.hex()[:16]} ended long ago as {row.role}")

    def trades(self, *, role: str | None = None, open_only: bool = False) -> list[TradeRow]:
        """Return trades in the order in which they were opened, without those that were pruned."""
        found = self._read(
            "SELECT trade_id, role, state, over, record FROM trade "
            "WHERE (? IS NULL OR role = ?) AND (NOT ? OR over = 0) AND record <> x'' "
            "ORDER BY opened",
            (role, role, open_only),
        )
        return [_trade_row(*values) for values in found]

    def trade(self, trade_id: Digest, role: str) -> TradeRow | None:
        """Return one trade, also one that was pruned."""
        found = self._read(
            "SELECT trade_id, role, state, over, record FROM trade WHERE trade_id = ? AND role = ?",
            (trade_id, role),
        )
        return _trade_row(*found[0]) if found else None

    # ── transactions ──

    def save_transaction(self, *rows: TransactionRow) -> None:
        """Write a signed transaction, before it is sent: a row of each trade, all or none."""
        with self._commit() as db:
            db.executemany(
                'INSERT INTO "transaction" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)',
                [(row.trade_id, row.step, row.attempt, row.nonce, row.hash, row.raw,
                  row.gas, row.block, row.succeeded) for row in rows],
            )  # fmt: skip

    def mark_mined(self, hash_: Digest, *, gas: int, block: int, succeeded: bool) -> None:
        """Note what became of a transaction."""
        with self._commit() as db:
            db.execute(
                'UPDATE "transaction" SET gas = ?, block = ?, succeeded = ? WHERE hash = ?',
                (gas, block, int(succeeded), hash_),
            )

    def transactions(self, trade_id: Digest, step: str | None = None) -> list[TransactionRow]:
        """Return the attempts at a step (or at all steps) of a trade, oldest first."""
        found = self._read(
            _TRANSACTIONS + "WHERE trade_id = ? AND (? IS NULL OR step = ?) ORDER BY rowid",
            (trade_id, step, step),
        )
        return [_transaction_row(*values) for values in found]

    def sharers(self, hash_: Digest) -> list[Digest]:
        """Return the trades of which one transaction does a step."""
        found = self._read('SELECT trade_id FROM "transaction" WHERE hash = ?', (hash_,))
        return [Digest(trade_id) for (trade_id,) in found]

    def unmined_transactions(self, first_nonce: int, before_nonce: int) -> list[TransactionRow]:
        """Return what was signed for these nonces and not seen mined, lowest nonce first."""
        found = self._read(
            _TRANSACTIONS
            + "WHERE succeeded IS NULL AND nonce >= ? AND nonce < ? ORDER BY nonce, rowid",
            (first_nonce, before_nonce),
        )
        return [_transaction_row(*values) for values in found]

    # ── statements ──

    def save_statement(self, digest: Digest, expires_at: int, data: bytes) -> None:
        """Keep a statement of ours, before it is published."""
        with self._commit() as db:
            db.execute(
                "INSERT OR REPLACE INTO statement VALUES (?, ?, ?)", (digest, expires_at, data)
            )

    def statements(self, now: int) -> list[bytes]:
        """Return our statements that are still good, oldest first."""
        found = self._read("SELECT data FROM statement WHERE expires_at > ? ORDER BY rowid", (now,))
        return [data for (data,) in found]

    # ── facts ──

    def remember(self, name: str, value: cbor.Value) -> None:
        """Write a small named value."""
        with self._commit() as db:
            db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, cbor.encode(value)))

    def recall(self, name: str) -> cbor.Value:
        """Return a named value, or None if there is none."""
        found = self._read("SELECT value FROM fact WHERE name = ?", (name,))
        return _decoded(name, found[0][0]) if found else None

    def facts(self, prefix: str) -> dict[str, cbor.Value]:
        """Return the named values whose names begin so."""
        found = self._read(
            "SELECT name, value FROM fact WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
        )
        return {name: _decoded(name, value) for name, value in found}

    def forget(self, names: Iterable[str]) -> None:
        """Delete named values, all or none."""
        with self._commit() as db:
            db.executemany("DELETE FROM fact WHERE name = ?", [(name,) for name in names])

    def forget_transactions(self, trades: Iterable[Digest]) -> None:
        """Delete the attempts at these, less those that the chain may still take."""
        with self._commit() as db:
            db.executemany(
                'DELETE FROM "transaction" WHERE trade_id = ? AND (succeeded IS NOT NULL OR nonce '
                '<= (SELECT MAX(nonce) FROM "transaction" WHERE succeeded IS NOT NULL))',
                [(trade,) for trade in trades],
            )

    def next_nonce(self) -> int:
        """Return a statement nonce that was never given before, across restarts."""
        last = self.recall("nonce")
        nonce = (last if isinstance(last, int) else 0) + 1
        self.remember("nonce", nonce)
        return nonce

    # ── what is forgotten ──

    def prune(self, now: int, *, trade_seconds: int) -> None:
        """Forget what nobody needs any more: old statements, and trades over for so long.

        A trade counts as ended from the first call that finds it over. Nothing of a trade that
        is open goes, nor a transaction that the chain may still take, nor what was bought.
        """
        last = now - trade_seconds
        with self._commit() as db:
            db.execute("DELETE FROM statement WHERE expires_at <= ?", (now - STATEMENT_SECONDS,))
            # a later time than now was stamped by a clock that was wrong
            db.execute(
                "UPDATE trade SET ended = ? WHERE over = 1 AND (ended IS NULL OR ended > ?)",
                (now, now),
            )
            db.execute(
                "UPDATE trade SET record = x'' WHERE over = 1 AND ended <= ? AND record <> x'' "
                "AND NOT (role = 'buyer' AND state IN (?, ?))",
                (last, *_BOUGHT),
            )
            (mined,) = db.execute(
                'SELECT COALESCE(MAX(nonce), -1) FROM "transaction" WHERE succeeded IS NOT NULL'
            ).fetchone()
            db.execute(
                'DELETE FROM "transaction" WHERE (succeeded IS NOT NULL OR nonce <= ?) AND '
                "trade_id IN (SELECT trade_id FROM trade GROUP BY trade_id "
                "HAVING MIN(over) = 1 AND MAX(ended) <= ?)",
                (mined, last),
            )


def _decoded(name: str, value: bytes) -> cbor.Value:
    try:
        return cbor.decode(value)
    except RemoteProtocolError as error:
        raise JournalError(f"the fact {name!r} is damaged: {error}") from error


def _transaction_row(
    trade_id: bytes, step: str, attempt: int, nonce: int, hash_: bytes, raw: bytes,
    gas: int | None, block: int | None, succeeded: int | None, shared: int,
) -> TransactionRow:  # fmt: skip
    return TransactionRow(
        trade_id=Digest(trade_id), step=step, attempt=attempt, nonce=nonce, hash=Digest(hash_),
        raw=raw, gas=gas, block=block,
        succeeded=None if succeeded is None else bool(succeeded), shared=shared,
    )  # fmt: skip


def _trade_row(trade_id: bytes, role: str, state: str, over: int, record: bytes) -> TradeRow:
    return TradeRow(
        trade_id=Digest(trade_id), role=role, state=state, over=bool(over), record=record
    )
