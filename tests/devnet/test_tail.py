"""A node's log is followed line by line, also while it is moved aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.devnet.logs import Tail
from node.observe import Event, JsonLines, Observer


class Counted(Event):
    """One of a row of events."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.jsonl"


@pytest.fixture
def tail(path: Path) -> Iterator[Tail]:
    found = Tail(path)
    yield found
    found.close()


def test_each_event_is_read_once(tail: Tail, path: Path) -> None:
    assert tail.read() == []
    with path.open("a") as log:
        for number in range(3):
            log.write(json.dumps({"event": str(number)}) + "\n")
            log.flush()
            assert tail.read() == [{"event": str(number)}]
            assert tail.read() == []


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tail: Tail, path: Path) -> None:
    line = json.dumps({"event": "α"}, ensure_ascii=False).encode() + b"\n"
    with path.open("ab", buffering=0) as log:
        for byte in line[:-1]:
            log.write(bytes([byte]))
            assert tail.read() == []
        log.write(line[-1:])
    assert tail.read() == [{"event": "α"}]


def test_what_was_there_before_is_not_read_and_what_is_no_event_is_passed_over(path: Path) -> None:
    path.write_text('{"event": "before"}\n')
    tail = Tail(path)
    with path.open("a") as log:
        log.write('nonsense\n[1]\n{"event": "after"}\n')
    assert tail.read() == [{"event": "after"}]
    tail.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(reads=st.lists(st.integers(1, 12), min_size=1, max_size=10))
def test_no_event_is_missed_where_a_full_log_is_moved_aside(
    reads: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "agent.jsonl"
    log, tail = JsonLines(path, max_bytes=1_000, keep=9), Tail(path)
    observer = Observer()
    observer.subscribe(log)
    heard: list[object] = []
    written = 0
    for count in reads:  # a line has about a hundred bytes: one full log at most between two reads
        for _ in range(min(count, 8)):
            observer.bind(number=written).emit(Counted())
            written += 1
        heard += [event["number"] for event in tail.read()]
    assert heard == list(range(written))
    log.close()
    tail.close()
