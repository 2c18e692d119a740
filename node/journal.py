"""The journal: what a node must not forget, written before any effect on the outside.

SQLite in WAL mode with `synchronous=FULL`, so that what `commit` returned from survives a
power cut. One writer, the node's own process (the run lock sees to it). Rows:

| table       | holds                                                                       |
|-------------|-----------------------------------------------------------------------------|
| trade       | each purchase and sale: its state and its record, canonical CBOR            |
| transaction | each signed transaction *before* it is sent, by (trade, step, attempt)      |
| statement   | offers and notices that we signed, so that a restart offers them again      |
| fact        | small named values: the watermark of the chain, the round, the nonce        |
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from node.protocol import cbor
from node.protocol.errors import MarketError, RemoteProtocolError
from node.protocol.types import Digest

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trade (
    trade_id BLOB NOT NULL, role TEXT NOT NULL, state TEXT NOT NULL, over INTEGER NOT NULL,
    record BLOB NOT NULL, opened INTEGER NOT NULL,
    PRIMARY KEY (trade_id, role)
) STRICT;
CREATE INDEX IF NOT EXISTS trade_open ON trade (over, opened);
CREATE TABLE IF NOT EXISTS "transaction" (
    trade_id BLOB NOT NULL, step TEXT NOT NULL, attempt INTEGER NOT NULL,
    nonce INTEGER NOT NULL, hash BLOB NOT NULL, raw BLOB NOT NULL, gas INTEGER, block INTEGER,
    succeeded INTEGER,
    PRIMARY KEY (trade_id, step, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS statement (
    digest BLOB PRIMARY KEY, expires_at INTEGER NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
"""


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
                    self._require_version(path, (_VERSION,))
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
        self._require_version(path, (0, _VERSION))
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version={_VERSION}")

    def _require_version(self, path: Path, known: tuple[int, ...]) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in known:
            raise JournalError(f"{path} has version {version}, this code reads {_VERSION}")

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
        """Write the trade as it is now; on disk when this returns."""
        with self._commit() as db:
            db.execute(
                "INSERT INTO trade VALUES (?, ?, ?, ?, ?, "
                "(SELECT COALESCE(MAX(opened), 0) + 1 FROM trade)) "
                "ON CONFLICT (trade_id, role) DO UPDATE SET "
                "state = excluded.state, over = excluded.over, record = excluded.record",
                (row.trade_id, row.role, row.state, int(row.over), row.record),
            )

    def trades(self, *, role: str | None = None, open_only: bool = False) -> list[TradeRow]:
        """Return trades in the order in which they were opened."""
        found = self._read(
            "SELECT trade_id, role, state, over, record FROM trade "
            "WHERE (? IS NULL OR role = ?) AND (NOT ? OR over = 0) ORDER BY opened",
            (role, role, open_only),
        )
        return [_trade_row(*values) for values in found]

    def trade(self, trade_id: Digest, role: str) -> TradeRow | None:
        """Return one trade."""
        found = self._read(
            "SELECT trade_id, role, state, over, record FROM trade WHERE trade_id = ? AND role = ?",
            (trade_id, role),
        )
        return _trade_row(*found[0]) if found else None

    # ── transactions ──

    def save_transaction(self, row: TransactionRow) -> None:
        """Write a signed transaction, before it is sent."""
        with self._commit() as db:
            db.execute(
                'INSERT INTO "transaction" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)',
                (row.trade_id, row.step, row.attempt, row.nonce, row.hash, row.raw,
                 row.gas, row.block, row.succeeded),
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
            "SELECT trade_id, step, attempt, nonce, hash, raw, gas, block, succeeded "
            'FROM "transaction" WHERE trade_id = ? AND (? IS NULL OR step = ?) ORDER BY rowid',
            (trade_id, step, step),
        )
        return [_transaction_row(*values) for values in found]

    def unmined_transactions(self, first_nonce: int, before_nonce: int) -> list[TransactionRow]:
        """Return what was signed for these nonces and not seen mined, lowest nonce first."""
        found = self._read(
            "SELECT trade_id, step, attempt, nonce, hash, raw, gas, block, succeeded "
            'FROM "transaction" WHERE succeeded IS NULL AND nonce >= ? AND nonce < ? '
            "ORDER BY nonce, rowid",
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
        try:
            return cbor.decode(found[0][0]) if found else None
        except RemoteProtocolError as error:
            raise JournalError(f"the fact {name!r} is damaged: {error}") from error

    def next_nonce(self) -> int:
        """Return a statement nonce that was never given before, across restarts."""
        last = self.recall("nonce")
        nonce = (last if isinstance(last, int) else 0) + 1
        self.remember("nonce", nonce)
        return nonce


def _transaction_row(
    trade_id: bytes, step: str, attempt: int, nonce: int, hash_: bytes, raw: bytes,
    gas: int | None, block: int | None, succeeded: int | None,
) -> TransactionRow:  # fmt: skip
    return TransactionRow(
        trade_id=Digest(trade_id), step=step, attempt=attempt, nonce=nonce, hash=Digest(hash_),
        raw=raw, gas=gas, block=block,
        succeeded=None if succeeded is None else bool(succeeded),
    )  # fmt: skip


def _trade_row(trade_id: bytes, role: str, state: str, over: int, record: bytes) -> TradeRow:
    return TradeRow(
        trade_id=Digest(trade_id), role=role, state=state, over=bool(over), record=record
    )
