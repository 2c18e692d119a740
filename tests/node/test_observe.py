"""What happened reaches whoever listens; what is secret reaches nobody."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import io
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import chronicle
from node.observe import Console, Event, JsonLines, Level, Memory, Observer, Record
from node.observe.plain import REDACTED, is_secret, plain
from node.protocol.types import Address, Digest

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
ADA = Address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferAccepted(Event):
    offer: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRejected(Event):
    level: ClassVar[Level] = Level.WARNING
    offer: Digest
    seller: Address
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished(Event):
    round: int
    accuracy: float


def observer() -> Observer:
    return Observer(clock=lambda: NOON)


def rejected(reason: str = "expired", detail: str = "") -> OfferRejected:
    return OfferRejected(offer=Digest(b"\1" * 32), seller=ADA, reason=reason, detail=detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaky(Event):
    delivery_key: bytes = b"\xaa" * 32
    secret: str = "hunter2"
    seed: int = 7
    secret_commitment: bytes = b"\xbb" * 32
    nested: Any = None


def test_an_event_reaches_every_subscriber_with_its_time_and_context() -> None:
    memory, seen = Memory(), list[Record]()
    source = observer()
    source.subscribe(memory)
    source.subscribe(seen.append)
    source.bind(node="agent-1").emit(rejected())
    assert memory.records == seen
    (record,) = seen
    assert (record.time, record.name, record.context) == (
        NOON,
        "offer_rejected",
        {"node": "agent-1"},
    )
    assert memory.events(OfferRejected) == [rejected()]
    assert memory.events(OfferAccepted) == []


def test_an_unsubscribed_listener_hears_no_more() -> None:
    memory = Memory()
    source = observer()
    leave = source.subscribe(memory)
    source.emit(rejected())
    leave()
    leave()
    source.emit(rejected())
    assert len(memory.records) == 1


def test_events_are_counted_under_their_reason() -> None:
    source = observer()
    bound = source.bind(node="b")
    for reason in ("expired", "expired", "bad-signature"):
        bound.emit(rejected(reason))
    source.emit(OfferAccepted(offer=Digest(b"\1" * 32)))
    assert source.counters == {
        ("offer_rejected", "expired"): 2,
        ("offer_rejected", "bad-signature"): 1,
        ("offer_accepted", ""): 1,
    }


def test_a_failpoint_stops_the_emitter() -> None:
    def stop(record: Record) -> None:
        raise KeyboardInterrupt(record.name)

    source = observer()
    source.subscribe(stop)
    with pytest.raises(KeyboardInterrupt, match="offer_rejected"):
        source.emit(rejected())


def test_a_subscriber_may_emit_and_subscribe_itself() -> None:
    source, memory = observer(), Memory()

    def once(record: Record) -> None:
        leave()
        source.subscribe(memory)
        source.emit(OfferAccepted(offer=Digest(record.name.encode())))

    leave = source.subscribe(once)
    source.emit(rejected())
    assert [record.name for record in memory.records] == ["offer_accepted"]


def test_threads_do_not_lose_events() -> None:
    source, memory = observer(), Memory()
    source.subscribe(memory)

    def emit_many() -> None:
        for _ in range(200):
            source.emit(rejected())

    threads = [threading.Thread(target=emit_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.counters["offer_rejected", "expired"] == len(memory.records) == 800


# ---------------------------------------------------------------------------- the file


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_line_is_json_with_hex_for_bytes(tmp_path: Path) -> None:
    source, sink = observer(), JsonLines(tmp_path / "log.jsonl")
    source.subscribe(sink)
    source.bind(node="n").emit(rejected(detail="two\nlines"))
    sink.close()
    assert lines(tmp_path / "log.jsonl") == [
        {
            "time": "2026-11-21T12:00:00.000+00:00", "level": "warning", "event": "offer_rejected",
            "node": "n", "offer": "0x" + "01" * 32, "seller": ADA, "reason": "expired",
            "detail": "two\nlines",
        }
    ]  # fmt: skip
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o077 == 0


def test_no_secret_is_ever_written(tmp_path: Path) -> None:
    source, sink, screen = observer(), JsonLines(tmp_path / "log"), io.StringIO()
    source.subscribe(sink)
    source.subscribe(Console(screen))
    source.bind(password="hunter2").emit(Leaky(nested={"deep": [Leaky()], "secret": "hunter2"}))
    for text in ((tmp_path / "log").read_text(), screen.getvalue()):
        assert "hunter2" not in text
        assert "aaaa" not in text
        assert "bb" * 32 in text  # a commitment is public
    assert lines(tmp_path / "log")[0]["seed"] == REDACTED


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("secret", True), ("private_key", True), ("key", True), ("password", True), ("dh", True),
        ("Delivery_Key", True), ("mnemonic", True), ("seed", True),
        ("public_key", False), ("secret_commitment", False), ("trade_id", False),
        ("keyword", False),
    ],
)  # fmt: skip
def test_a_field_is_secret_by_its_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_old_logs_are_rotated_and_the_oldest_dropped(tmp_path: Path) -> None:
    source, sink = observer(), JsonLines(tmp_path / "log", max_bytes=2_000, keep=2)
    source.subscribe(sink)
    for number in range(60):
        source.emit(rejected(detail=str(number)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    kept = [lines(tmp_path / name) for name in ("log.2", "log.1", "log")]
    numbers = [int(line["detail"]) for file in kept for line in file]
    assert numbers == list(range(numbers[0], 60))
    assert all(path.stat().st_size <= 2_000 for path in tmp_path.iterdir())


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        source, sink = observer(), JsonLines(tmp_path / "log")
        source.subscribe(sink)
        source.emit(rejected())
        sink.close()
    assert len(lines(tmp_path / "log")) == 2


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, sink, memory = observer(), JsonLines(tmp_path / "gone" / "log"), Memory()
    source.subscribe(sink)
    source.subscribe(memory)
    source.emit(rejected())
    source.emit(rejected())
    assert sink.lost == len(memory.records) == 2
    assert capsys.readouterr().err.count("cannot write") == 1


def test_a_sink_leaves_out_what_is_below_its_level(tmp_path: Path) -> None:
    source, screen = observer(), io.StringIO()
    source.subscribe(Console(screen, level=Level.named("error")))
    source.subscribe(JsonLines(tmp_path / "log", level=Level.ERROR))
    source.emit(rejected())
    assert screen.getvalue() == ""
    assert not (tmp_path / "log").exists()


# -------------------------------------------------------------------------- the console


def test_a_console_line_is_for_people() -> None:
    source, screen = observer(), io.StringIO()
    source.subscribe(Console(screen))
    source.emit(RoundFinished(round=3, accuracy=0.5))
    assert screen.getvalue() == ("12:00:00 round finished round=3 accuracy=0.5\n")


@given(text=st.text())
def test_no_text_of_a_peer_controls_the_terminal(text: str) -> None:
    source, screen = observer(), io.StringIO()
    source.subscribe(Console(screen))
    source.emit(rejected(detail=text))
    line = screen.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_closed_terminal_stops_nobody() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(len(text))

    source = observer()
    source.subscribe(Console(Closed()))
    source.emit(rejected())


# -------------------------------------------------------------------------- plain values


class Colour(enum.Enum):
    RED = b"\xff"


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
        st.datetimes(), st.sampled_from(Colour), st.builds(Leaky), st.builds(object),
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)  # fmt: skip


@given(value=values)
def test_anything_can_be_written_as_strict_json(value: object) -> None:
    json.dumps(plain("field", value), allow_nan=False)


def test_what_is_written_is_bounded() -> None:
    loop: list[object] = []
    loop.append(loop)
    huge = ["x" * 10_000] * 10_000
    assert len(json.dumps(plain("field", [loop, huge, b"x" * 10**6]))) < 200_000


def test_the_catalogue_is_of_frozen_events_with_distinct_names() -> None:
    kinds = [
        kind
        for _, kind in inspect.getmembers(chronicle, inspect.isclass)
        if issubclass(kind, Event) and kind is not Event
    ]
    assert len(kinds) > 15
    assert len({kind.event_name() for kind in kinds}) == len(kinds)
    for kind in kinds:
        names = {field.name for field in dataclasses.fields(kind)}
        assert not any(is_secret(name) for name in names), kind
        assert not names & {"time", "level", "event"}, kind


def test_observing_needs_neither_trio_nor_torch() -> None:
    code = (
        "import sys, node.chronicle, node.config, node.home\n"
        "assert not {'trio', 'torch', 'libp2p', 'web3', 'logging.handlers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
