"""Serving blobs: ranges of parts, to those who may have them, within a quota.

What is served has a name and parts: ``data``, ``hashes`` and whatever else belongs to it (the
leaf hashes of a plaintext, say). A stream carries one request after the other:

    request   u16 length ‖ name ‖ u8 length ‖ part ‖ u64 offset ‖ u64 length      (a message)
    answer    0 ‖ u64 length of the whole part, or a refusal                      (a message)
              then exactly the bytes that were asked for
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from node.net.limits import MIB, STREAM_WRITE_BYTES
from node.net.streams import encode_answer, encode_refusal
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.types import UINT64_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.net.streams import MessageStream
    from node.protocol.types import PeerId

DATA: Final = "data"
HASHES: Final = "hashes"
REQUEST_BYTES: Final = 4 * MIB
"""Ranges of this size kept two workers busy; a failure costs as much again."""
IDLE_S: Final = 20.0
_READ_AHEAD: Final = 16 * STREAM_WRITE_BYTES
_MAX_NAME: Final = 256
_MAX_PART: Final = 64
_RANGE: Final = struct.Struct(">QQ")
_TOTAL: Final = struct.Struct(">Q")
_MAX_REQUEST: Final = 2 + _MAX_NAME + 1 + _MAX_PART + _RANGE.size
_MAX_LEDGER: Final = 4_096


def encode_total(byte_length: int) -> bytes:
    """What precedes a range: the length of the whole part, so that a liar is found at once."""
    return _TOTAL.pack(byte_length)


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """Which bytes of which part of what."""

    name: bytes
    part: str
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= _MAX_NAME or not 0 < len(self.part.encode()) <= _MAX_PART:
            raise LocalProtocolError(f"a name has 1 to {_MAX_NAME} bytes, a part 1 to {_MAX_PART}")
        if not 0 < self.length <= REQUEST_BYTES or not 0 <= self.offset <= UINT64_MAX:
            raise LocalProtocolError(f"no range of {self.length} bytes at {self.offset}")

    def encode(self) -> bytes:
        part = self.part.encode()
        return b"".join(
            (
                len(self.name).to_bytes(2, "big"),
                self.name,
                bytes([len(part)]),
                part,
                _RANGE.pack(self.offset, self.length),
            )
        )


def decode_request(message: bytes) -> RangeRequest:
    """Read a request. Total: anything else raises `RemoteProtocolError("malformed-request")`."""
    name_end = 2 + int.from_bytes(message[:2], "big")
    name = message[2:name_end]
    part_end = name_end + 1 + int.from_bytes(message[name_end : name_end + 1], "big")
    if len(message) != part_end + _RANGE.size:
        raise RemoteProtocolError("malformed-request", f"{len(message)} bytes")
    offset, length = _RANGE.unpack_from(message, part_end)
    try:
        part = message[name_end + 1 : part_end].decode()
        return RangeRequest(name, part, offset, length)
    except (UnicodeDecodeError, LocalProtocolError) as error:
        raise RemoteProtocolError("malformed-request", str(error)) from error


class ServedPart(Protocol):
    """Bytes that a peer may have. `read` is called in a thread."""

    @property
    def byte_length(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...


class ByteQuota:
    """How much may be taken for nothing: so many bytes an hour, by each peer and by all.

    Peer ids cost nothing, so that the sum is bounded as well.
    """

    def __init__(self, per_peer: int, total: int, *, window_s: float = 3600.0) -> None:
        self._per_peer = per_peer
        self._total = total
        self._window_s = window_s
        self._taken: OrderedDict[PeerId | None, tuple[float, float]] = OrderedDict()

    def charge(self, peer: PeerId, length: int, now: float) -> None:
        """Take `length` bytes off what is left; raises ``quota-exceeded``, and then takes none."""
        levels = ((peer, self._per_peer), (None, self._total))
        for who, limit in levels:
            if self._level(who, limit, now) + length > limit:
                raise RemoteProtocolError(
                    "quota-exceeded", f"{limit} bytes in {self._window_s:.0f} s", peer=peer
                )
        for who, limit in levels:
            self._taken[who] = (self._level(who, limit, now) + length, now)
            self._taken.move_to_end(who)
        while len(self._taken) > _MAX_LEDGER:
            self._taken.popitem(last=False)

    def refund(self, peer: PeerId, length: int, now: float) -> None:
        """Give back what was charged and not sent."""
        for who, limit in ((peer, self._per_peer), (None, self._total)):
            self._taken[who] = (max(0.0, self._level(who, limit, now) - length), now)

    def _level(self, who: PeerId | None, limit: int, now: float) -> float:
        """What `who` has taken, less what has leaked out since."""
        taken, at = self._taken.get(who, (0.0, now))
        return max(0.0, taken - (now - at) * limit / self._window_s)


class BlobServer:
    """Serves the parts that `authorise(peer, name, part)` allows; it is a stream handler.

    `authorise` is synchronous, and raises `RemoteProtocolError` for what this peer may not
    have; the peer reads its reason.
    """

    def __init__(
        self,
        authorise: Callable[[PeerId, bytes, str], ServedPart],
        *,
        quota: ByteQuota | None = None,
        idle_s: float = IDLE_S,
        streams_per_peer: int = 4,
        streams_total: int = 32,
    ) -> None:
        self._authorise = authorise
        self._quota = quota
        self._idle_s = idle_s
        self._streams_per_peer = streams_per_peer
        self._streams_total = streams_total
        self._open: Counter[PeerId] = Counter()

    async def serve(self, peer: PeerId, stream: MessageStream) -> None:
        """Answer one range after the other until the peer has had enough."""
        if self._open[peer] >= self._streams_per_peer or self._open.total() >= self._streams_total:
            await stream.send(encode_refusal("busy", ""), deadline_s=self._idle_s)
            await stream.finish_sending(deadline_s=self._idle_s)
            return
        self._open[peer] += 1
        try:
            served = 0
            while True:
                try:
                    message = await stream.receive(deadline_s=self._idle_s, limit=_MAX_REQUEST)
                except RemoteProtocolError as error:
                    if served and error.reason == "truncated":
                        break  # between two requests it is the end
                    raise
                await self._answer(peer, stream, message)
                served += 1
            await stream.finish_sending(deadline_s=self._idle_s)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _answer(self, peer: PeerId, stream: MessageStream, message: bytes) -> None:
        try:
            request = decode_request(message)
            part = self._authorise(peer, request.name, request.part)
            total = part.byte_length
            if request.offset + request.length > total:
                raise RemoteProtocolError("bad-range", f"{request.part} has {total} bytes")
            if self._quota is not None:
                self._quota.charge(peer, request.length, trio.current_time())
        except MarketError as error:
            reason = error.reason if isinstance(error, RemoteProtocolError) else "refused"
            refusal = encode_refusal(reason, getattr(error, "detail", ""))
            await stream.send(refusal, deadline_s=self._idle_s)
            return
        left = request.length
        try:
            answer = encode_answer(encode_total(total))
            await stream.send(answer, deadline_s=self._idle_s)
            while left > 0:
                at = request.offset + request.length - left
                block = await trio.to_thread.run_sync(part.read, at, min(left, _READ_AHEAD))
                if not block:
                    raise LocalProtocolError(f"{request.part} has no byte at {at} of {total}")
                for begin in range(0, len(block), STREAM_WRITE_BYTES):
                    piece = block[begin : begin + STREAM_WRITE_BYTES]
                    await stream.send_bytes(piece, deadline_s=self._idle_s)
                    left -= len(piece)
        finally:
            if left and self._quota is not None:
                self._quota.refund(peer, left, trio.current_time())
