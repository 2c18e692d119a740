"""Messages and answers on a stream, without a network: every read has an end."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.net.counters import Counters
from node.net.errors import PeerTimeoutError
from node.net.limits import MAX_MESSAGE_BYTES, Limits
from node.net.streams import (
    MessageStream,
    Reply,
    RequestDesk,
    ask,
    decode_answer,
    encode_answer,
    encode_refusal,
)
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import PeerId

ALICE = PeerId("alice")


class Pipe:
    """One end of a stream whose far end is given: pieces to read, then silence or the end."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.peer, self.protocol = ALICE, "/test/1"
        self.pieces = list(pieces)
        self.ends = ends
        self.written = bytearray()
        self.finished = False

    async def read(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.pieces:
            piece = self.pieces.pop(0)
            if len(piece) > limit:
                self.pieces.insert(0, piece[limit:])
            return piece[:limit]
        if not self.ends:
            await trio.sleep_forever()
        raise RemoteProtocolError("truncated", peer=self.peer)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def close_write(self) -> None:
        self.finished = True

    async def close(self) -> None: ...
    async def reset(self) -> None: ...


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 7))
def test_messages_come_out_whole_however_they_are_cut(messages: list[bytes], size: int) -> None:
    wire = b"".join(map(framed, messages))
    pipe = Pipe(*(wire[at : at + size] for at in range(0, len(wire), size)))

    async def read_all() -> list[bytes]:
        stream = MessageStream(pipe)
        return [await stream.receive(deadline_s=1) for _ in messages]

    assert trio.run(read_all) == messages


@pytest.mark.parametrize("wire", [b"", b"\0\0", b"\0\0\0\5abcd"])
async def test_an_early_end_is_never_a_completion(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="truncated"):
        await MessageStream(Pipe(*([wire] if wire else []))).receive(deadline_s=1)


@pytest.mark.parametrize("wire", [[], [b"\0\0"], [b"\0\0\0\5abcd"]])
async def test_silence_ends_at_the_deadline(wire: list[bytes], autojump_clock: MockClock) -> None:
    stream = MessageStream(Pipe(*wire, ends=False))
    with pytest.raises(PeerTimeoutError) as caught:
        await stream.receive(deadline_s=30)
    assert (caught.value.reason, caught.value.peer) == ("timeout", ALICE)
    assert trio.current_time() == pytest.approx(30)


async def test_a_length_past_the_limit_is_refused_before_its_bytes() -> None:
    with pytest.raises(RemoteProtocolError, match="oversize"):
        await MessageStream(Pipe(b"\xff\xff\xff\xff", ends=False)).receive(deadline_s=1)


async def test_a_message_past_256_kib_is_not_sent() -> None:
    pipe = Pipe()
    with pytest.raises(LocalProtocolError):
        await MessageStream(pipe).send(bytes(MAX_MESSAGE_BYTES + 2), deadline_s=1)
    assert not pipe.written


async def test_raw_bytes_after_a_message_are_not_lost() -> None:
    stream = MessageStream(Pipe(framed(b"head") + b"tail", b"more"))
    assert await stream.receive(deadline_s=1) == b"head"
    assert await stream.receive_some(3, deadline_s=1) == b"tai"
    assert await stream.receive_some(9, deadline_s=1) == b"l"
    assert await stream.receive_some(9, deadline_s=1) == b"more"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_named_error(message: bytes) -> None:
    try:
        assert encode_answer(decode_answer(message, ALICE)) == message
    except RemoteProtocolError as error:
        assert error.peer == ALICE  # noqa: PT017
        assert error.reason  # noqa: PT017


@given(st.from_regex(r"[a-z]{1,20}(-[a-z0-9]{1,20}){0,2}", fullmatch=True), st.text(max_size=700))
def test_a_refusal_arrives_as_the_error_it_was(reason: str, detail: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_answer(encode_refusal(reason, detail), ALICE)
    assert caught.value.reason == reason
    assert detail.startswith(caught.value.detail)


async def test_a_question_ends_the_askers_half() -> None:
    pipe = Pipe(framed(encode_answer(b"pong")))
    assert await ask(MessageStream(pipe), b"ping", deadline_s=1) == b"pong"
    assert (bytes(pipe.written), pipe.finished) == (framed(b"ping"), True)


async def test_a_question_is_sent_before_its_answer_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    pipe = Pipe(ends=False)
    left: list[bytes] = []
    with pytest.raises(PeerTimeoutError):
        await ask(
            MessageStream(pipe),
            b"ping",
            deadline_s=1,
            sent=lambda: left.append(bytes(pipe.written)),
        )
    assert left == [framed(b"ping")]


async def serve(desk: RequestDesk, *pieces: bytes, ends: bool = True) -> bytes:
    pipe = Pipe(*pieces, ends=ends)
    await desk.serve(ALICE, MessageStream(pipe))
    return decode_answer(bytes(pipe.written[4:]), ALICE)


def unexpected(where: str, peer: PeerId | None, error: Exception) -> None:
    raise AssertionError(where) from error


async def test_a_handler_answers() -> None:
    async def double(peer: PeerId, payload: bytes) -> bytes:
        return payload * 2

    counters = Counters()
    desk = RequestDesk(double, Limits(), counters, unexpected)
    assert await serve(desk, framed(b"ab")) == b"abab"
    assert counters.requests_served == {"/test/1": 1}


async def test_a_handler_hears_when_its_answer_has_left() -> None:
    pipe = Pipe(framed(b"ab"))
    left: list[bytes] = []

    async def double(peer: PeerId, payload: bytes) -> Reply:
        return Reply(payload * 2, sent=lambda: left.append(bytes(pipe.written)))

    desk = RequestDesk(double, Limits(), Counters(), unexpected)
    await desk.serve(ALICE, MessageStream(pipe))
    assert left == [framed(encode_answer(b"abab"))]


async def test_an_answer_that_nobody_takes_was_not_sent() -> None:
    class Broken(Pipe):
        async def write(self, data: bytes) -> None:
            raise RemoteProtocolError("stream-reset", "by the peer", peer=ALICE)

    async def reply(peer: PeerId, payload: bytes) -> Reply:
        return Reply(payload, sent=lambda: pytest.fail("it did not leave"))

    desk = RequestDesk(reply, Limits(), Counters(), unexpected)
    with pytest.raises(RemoteProtocolError, match="stream-reset"):
        await desk.serve(ALICE, MessageStream(Broken(framed(b"ab"))))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RemoteProtocolError("no-such-offer", "beef"), "no-such-offer"),
        (LocalProtocolError("we may not"), "refused"),
    ],
)
async def test_a_market_error_of_the_handler_is_what_the_peer_reads(
    error: Exception, reason: str
) -> None:
    async def refuse(peer: PeerId, payload: bytes) -> bytes:
        raise error

    counters = Counters()
    with pytest.raises(RemoteProtocolError) as caught:
        await serve(RequestDesk(refuse, Limits(), counters, unexpected), framed(b""))
    assert caught.value.reason == reason
    assert counters.requests_failed == {reason: 1}


async def test_a_bug_of_the_handler_is_reported_here_and_hidden_there() -> None:
    async def explode(peer: PeerId, payload: bytes) -> bytes:
        raise KeyError("secret")

    reported: list[tuple[str, PeerId | None, Exception]] = []
    desk = RequestDesk(explode, Limits(), Counters(), lambda *fault: reported.append(fault))
    with pytest.raises(RemoteProtocolError) as caught:
        await serve(desk, framed(b""))
    assert (caught.value.reason, caught.value.detail) == ("internal-error", "")
    ((where, peer, error),) = reported
    assert (where, peer) == ("request /test/1", ALICE)
    assert isinstance(error, KeyError)


async def test_a_handler_that_takes_too_long_is_answered_for(autojump_clock: MockClock) -> None:
    async def dawdle(peer: PeerId, payload: bytes) -> bytes:
        await trio.sleep(3600)
        return b""

    with pytest.raises(RemoteProtocolError, match="too-slow"):
        await serve(RequestDesk(dawdle, Limits(), Counters(), unexpected), framed(b""))
    assert trio.current_time() == pytest.approx(Limits().request_work_s)


async def test_a_peer_that_sends_no_request_is_not_waited_for(autojump_clock: MockClock) -> None:
    async def never(peer: PeerId, payload: bytes) -> bytes:
        raise AssertionError("there was no request")

    with pytest.raises(PeerTimeoutError):
        await serve(RequestDesk(never, Limits(), Counters(), unexpected), b"\0\0", ends=False)


@pytest.mark.parametrize(
    "limits", [Limits(requests_per_peer=2), Limits(requests_per_peer=9, requests_total=2)]
)
async def test_more_requests_than_allowed_are_told_so(limits: Limits) -> None:
    release = trio.Event()

    async def hold(peer: PeerId, payload: bytes) -> bytes:
        await release.wait()
        return b"done"

    desk = RequestDesk(hold, limits, Counters(), unexpected)
    answers: list[bytes] = []

    async def one() -> None:
        answers.append(await serve(desk, framed(b"")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RemoteProtocolError, match="busy"):
            await serve(desk, framed(b""))
        release.set()
    assert answers == [b"done", b"done"]
    assert await serve(desk, framed(b"")) == b"done"
