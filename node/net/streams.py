"""Messages over a stream, and one question with one answer.

A message is a u32be length and that many bytes, at most 256 KiB. A request is one message
and the end of the asker's half; an answer is one message, whose first byte says whether the
rest is what was asked for (0) or why not (1: reason, a zero byte, detail).

Nothing waits for ever, and an end that comes early is an error, never a completion.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from node.net.errors import PeerTimeoutError
from node.net.limits import MAX_MESSAGE_BYTES, STREAM_READ_BYTES, STREAM_WRITE_BYTES, Limits
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from node.net.counters import Counters
    from node.protocol.types import PeerId

    Report = Callable[[str, PeerId | None, Exception], None]
    RequestHandler = Callable[[PeerId, bytes], Awaitable["bytes | Reply"]]

_LENGTH_BYTES: Final = 4
_GOOD: Final = b"\x00"
_BAD: Final = b"\x01"
_REASON: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_MAX_REASON: Final = 64
_MAX_DETAIL: Final = 512


class ByteStream(Protocol):
    """What a message stream is made of; `adapter.WireStream` is one."""

    peer: PeerId
    protocol: str

    async def read(self, limit: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close_write(self) -> None: ...
    async def close(self) -> None: ...
    async def reset(self) -> None: ...


class MessageStream:
    """A stream to one peer that reads and writes whole messages, or raw bytes, by a deadline."""

    def __init__(self, stream: ByteStream) -> None:
        self.peer = stream.peer
        self.protocol = stream.protocol
        self._stream = stream
        self._buffer = bytearray()

    async def send(self, message: bytes, *, deadline_s: float) -> None:
        """Send one message within `deadline_s`; returns once its last byte has left.

        Yamux, Noise and TCP write in the caller's own task, down to a socket that took all.
        Raises `LocalProtocolError` past 256 KiB, `PeerTimeoutError`, `RemoteProtocolError`.
        """
        if len(message) > MAX_MESSAGE_BYTES + 1:
            raise LocalProtocolError(f"a message has up to 256 KiB, not {len(message)} bytes")
        framed = len(message).to_bytes(_LENGTH_BYTES, "big") + message
        await self.send_bytes(framed, deadline_s=deadline_s)

    async def send_bytes(self, data: bytes | memoryview, *, deadline_s: float) -> None:
        """Send raw bytes, in writes that fill a Noise message each."""
        view = memoryview(data)
        with trio.move_on_after(deadline_s) as scope:
            for offset in range(0, len(view), STREAM_WRITE_BYTES):
                await self._stream.write(bytes(view[offset : offset + STREAM_WRITE_BYTES]))
        if scope.cancelled_caught:
            raise PeerTimeoutError(f"took no {len(data)} bytes in {deadline_s} s", peer=self.peer)

    async def receive(self, *, deadline_s: float, limit: int = MAX_MESSAGE_BYTES + 1) -> bytes:
        """Receive one message within `deadline_s`.

        Raises `RemoteProtocolError`: ``oversize``, ``truncated``, ``timeout`` …
        """
        with trio.move_on_after(deadline_s) as scope:
            await self._fill(_LENGTH_BYTES)
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > limit:
                raise RemoteProtocolError(
                    "oversize", f"a message of {length} bytes, past {limit}", peer=self.peer
                )
            await self._fill(_LENGTH_BYTES + length)
            message = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
            del self._buffer[: _LENGTH_BYTES + length]
        if scope.cancelled_caught:
            raise PeerTimeoutError(f"no message in {deadline_s} s", peer=self.peer)
        return message

    async def receive_some(self, limit: int, *, deadline_s: float) -> bytes:
        """Receive between 1 and `limit` raw bytes within `deadline_s`."""
        if self._buffer:
            data = bytes(self._buffer[:limit])
            del self._buffer[:limit]
            return data
        data = b""
        with trio.move_on_after(deadline_s):
            data = await self._stream.read(min(limit, STREAM_READ_BYTES))
        if not data:
            raise PeerTimeoutError(f"not a byte in {deadline_s} s", peer=self.peer)
        return data

    async def finish_sending(self, *, deadline_s: float) -> None:
        """Close our half, so that the peer knows that no more comes."""
        with trio.move_on_after(deadline_s) as scope:
            await self._stream.close_write()
        if scope.cancelled_caught:
            raise PeerTimeoutError(f"could not finish in {deadline_s} s", peer=self.peer)

    async def close(self) -> None:
        """Close in order; never raises."""
        await self._stream.close()

    async def reset(self) -> None:
        """Give up at once; never raises."""
        await self._stream.reset()

    async def _fill(self, length: int) -> None:
        while len(self._buffer) < length:
            self._buffer += await self._stream.read(STREAM_READ_BYTES)


def encode_answer(payload: bytes) -> bytes:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise LocalProtocolError(f"an answer has up to 256 KiB, not {len(payload)} bytes")
    return _GOOD + payload


def encode_refusal(reason: str, detail: str) -> bytes:
    return _BAD + reason.encode()[:_MAX_REASON] + b"\x00" + detail[:_MAX_DETAIL].encode()


def decode_answer(message: bytes, peer: PeerId) -> bytes:
    """What the peer answered. Raises the `RemoteProtocolError` that it answered instead.

    Total: an answer that is neither raises ``malformed-answer``.
    """
    kind, body = message[:1], message[1:]
    if kind == _GOOD:
        return body
    if kind == _BAD:
        reason, zero, detail = body.partition(b"\x00")
        try:
            word, text = reason.decode("ascii"), detail.decode()
        except UnicodeDecodeError:
            word, text = "", ""
        if zero and len(word) <= _MAX_REASON and _REASON.fullmatch(word):
            raise RemoteProtocolError(word, text[:_MAX_DETAIL], peer=peer)
    raise RemoteProtocolError("malformed-answer", repr(message[:32]), peer=peer)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what to call once its bytes have left; not called if they could not."""

    payload: bytes
    sent: Callable[[], None] | None = None


async def ask(
    stream: MessageStream,
    payload: bytes,
    *,
    deadline_s: float,
    sent: Callable[[], None] | None = None,
) -> bytes:
    """Send a request, call `sent`, and receive the answer; the caller bounds the whole."""
    await stream.send(payload, deadline_s=deadline_s)
    if sent is not None:
        sent()
    await stream.finish_sending(deadline_s=deadline_s)
    return decode_answer(await stream.receive(deadline_s=deadline_s), stream.peer)


class RequestDesk:
    """Answers requests of one protocol: so many at a time, each for so long.

    What the handler raises as a `MarketError` is answered with its reason. Anything else is
    a bug of ours: the peer reads ``internal-error``, `report` gets the exception, and the
    host lives on.
    """

    def __init__(
        self, handler: RequestHandler, limits: Limits, counters: Counters, report: Report
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._counters = counters
        self._report = report
        self._busy: Counter[PeerId] = Counter()

    async def serve(self, peer: PeerId, stream: MessageStream) -> None:
        """Serve one request; raises `RemoteProtocolError` if the peer did not wait for it."""
        limits = self._limits
        sent: Callable[[], None] | None = None
        if self._busy[peer] >= limits.requests_per_peer:
            answer = self._refuse("busy", f"{limits.requests_per_peer} of yours are open")
        elif self._busy.total() >= limits.requests_total:
            answer = self._refuse("busy", f"{limits.requests_total} are open")
        else:
            self._busy[peer] += 1
            try:
                request = await stream.receive(
                    deadline_s=limits.request_read_s, limit=MAX_MESSAGE_BYTES
                )
                answer, sent = await self._answer(peer, stream.protocol, request)
            finally:
                self._busy[peer] -= 1
                if not self._busy[peer]:
                    del self._busy[peer]
        await stream.send(answer, deadline_s=limits.request_write_s)
        if sent is not None:
            sent()
        await stream.finish_sending(deadline_s=limits.request_write_s)

    async def _answer(
        self, peer: PeerId, protocol: str, request: bytes
    ) -> tuple[bytes, Callable[[], None] | None]:
        answer, sent = b"", None
        try:
            with trio.move_on_after(self._limits.request_work_s) as scope:
                given = await self._handler(peer, request)
                reply = given if isinstance(given, Reply) else Reply(given)
                answer, sent = encode_answer(reply.payload), reply.sent
        except RemoteProtocolError as error:
            return self._refuse(error.reason, error.detail), None
        except MarketError as error:
            return self._refuse("refused", str(error)), None
        except Exception as error:  # noqa: BLE001 (the boundary of a peer's request)
            self._report(f"request {protocol}", peer, error)
            return self._refuse("internal-error", ""), None
        if scope.cancelled_caught:
            detail = f"no answer in {self._limits.request_work_s} s"
            return self._refuse("too-slow", detail), None
        self._counters.requests_served[protocol] += 1
        return answer, sent

    def _refuse(self, reason: str, detail: str) -> bytes:
        self._counters.requests_failed[reason] += 1
        return encode_refusal(reason, detail)
