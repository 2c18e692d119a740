"""The log of the development chain: what it survives, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.chain.chain_log import ChainLog, Kind, Record
from node.chain.errors import ChainLogError
from node.protocol.types import UnixTime

RECORDS = (
    Record(Kind.GENESIS, UnixTime(5), b"{}"),
    Record(Kind.TRANSACTION, UnixTime(6), b"\x01" * 90),
    Record(Kind.EMPTY, UnixTime(7), b""),
    Record(Kind.TRANSACTION, UnixTime(7), b"\x00" * 40),
)


def write(path: Path, records: tuple[Record, ...] = RECORDS) -> bytes:
    with ChainLog(path) as log:
        for record in records:
            log.append(record)
    return path.read_bytes()


def read(path: Path) -> tuple[Record, ...]:
    with ChainLog(path) as log:
        return log.records


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "log")
    assert read(tmp_path / "log") == RECORDS
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_record_torn_at_any_byte_is_forgotten_and_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = write(path)
    before = len(write(tmp_path / "shorter", RECORDS[:-1]))
    for end in range(before, len(whole)):
        path.write_bytes(whole[:end])
        assert read(path) == RECORDS[:-1]
        with ChainLog(path) as log:
            log.append(RECORDS[-1])
        assert path.read_bytes() == whole


def test_a_last_record_that_never_reached_the_disk_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = write(path)
    path.write_bytes(whole + bytes(500))
    assert read(path) == RECORDS
    path.write_bytes(whole[:-30] + bytes(30)[:-1] + b"\x01")
    assert read(path) == RECORDS[:-1]


@settings(deadline=None)
@given(data=st.data())
def test_damage_is_never_read_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    whole = bytearray(write(path))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        found = read(path)
    except ChainLogError:
        return
    assert found == RECORDS[: len(found)]
    assert len(found) == len(RECORDS) - 1  # only the last record may be taken for torn


def test_damage_before_the_last_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = bytearray(write(path))
    whole[40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ChainLogError, match="damaged"):
        read(path)
    assert path.read_bytes() == bytes(whole)  # nothing was cut off


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with ChainLog(tmp_path / "log"), pytest.raises(ChainLogError, match="in use"):
        ChainLog(tmp_path / "log")


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    whole = write(path)
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:10])

    with ChainLog(path) as log:
        with monkeypatch.context() as patched:
            patched.setattr("node.chain.chain_log.os.write", short)
            with pytest.raises(ChainLogError, match="cannot write"):
                log.append(RECORDS[1])
        assert path.read_bytes() == whole
        log.append(RECORDS[1])
    assert read(path) == (*RECORDS, RECORDS[1])
