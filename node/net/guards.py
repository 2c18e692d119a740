"""py-libp2p 0.8.1 as it must be used: every workaround, one small function or class each.

With stock defaults one malformed packet kills the process, a peer can fill the memory, and
a node stops accepting connections after its fiftieth. Each guard here says which trap it
closes, and has a test in ``tests/net/test_guards.py``, so that an upgrade of libp2p shows
which of them can go. Those around a host are in `host_guards`, those of pubsub in
`gossip_guards`; no other module works around libp2p.

`install` changes libp2p's modules, for the whole process; everything else is per host.
"""

from __future__ import annotations

import logging  # noqa: TID251 (only to silence a library)
import struct
from typing import TYPE_CHECKING, Any, Final, cast

import libp2p.host.ping as ping_module
import libp2p.io.msgio as msgio_module
import libp2p.network.connection.swarm_connection as swarm_connection_module
import libp2p.protocol_muxer.multiselect_communicator as communicator_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import libp2p.utils.varint as varint_module
import trio
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from node.net.limits import KIB, Limits

if TYPE_CHECKING:
    from collections import Counter

    from libp2p.abc import IRawConnection, ISecureConn
    from libp2p.io.abc import Reader
    from libp2p.peer.id import ID

    from node.net.counters import Counters

_EMPTY_READS: Final = 100
_NEGOTIATION_BYTES: Final = 64 * KIB


# ------------------------------------------------------------- changes to libp2p's modules


def install(window_bytes: int) -> None:
    """Apply the changes that can only be made to libp2p's modules; the last window counts."""
    for module in (msgio_module, yamux_module, varint_module, ping_module):
        cast("Any", module).read_exactly = read_exactly
    cast("Any", communicator_module).read_delim = read_delim
    cast("Any", yamux_module).MAX_WINDOW_SIZE = window_bytes
    cast("Any", yamux_module).YamuxStream = PatientStream
    silence()


async def read_exactly(reader: Reader, n: int, _: int = 0) -> bytes:
    """Read `n` bytes however small the pieces.

    Trap: the stock one counts pieces and gives up after 101, so small TCP segments break it.
    An empty piece is an empty Noise message or the end; many in a row are the end.
    """
    buffer = bytearray()
    empty = 0
    while len(buffer) < n:
        piece = await reader.read(n - len(buffer))
        buffer += piece
        empty = 0 if piece else empty + 1
        if empty > _EMPTY_READS:
            raise IncompleteReadError(
                f"the connection ended {n - len(buffer)} bytes early",
                expected_bytes=n,
                received_bytes=len(buffer),
            )
    return bytes(buffer)


async def read_delim(reader: Reader) -> bytes:
    """Read one line of protocol negotiation, at most 64 KiB of it.

    Trap: the stock one believes any length up to 2**64, before the peer is even known.
    """
    line = await varint_module.read_varint_prefixed_bytes_limited(reader, _NEGOTIATION_BYTES)
    if not line.endswith(b"\n"):
        raise ParseError("a line of negotiation ends in a newline")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise ParseError("a line of negotiation is UTF-8") from error
    return line[:-1]


def silence() -> None:
    """Keep libp2p's log off standard error.

    Traps: one module logs through the root logger, which then installs a handler of its own;
    another sets its own level.
    """
    logger = logging.getLogger("libp2p")
    logger.setLevel(logging.CRITICAL)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.CRITICAL)
    cast("Any", swarm_connection_module).logging = logger


# ------------------------------------------------------------------------ one connection


class ReceiveBufferExceededError(trio.TooSlowError):
    """A peer sent more than it was allowed. Yamux ends the connection on a `TooSlowError`."""


class _Buffer(bytearray):
    """What arrived on one stream and nobody has read."""

    def __init__(self, buffers: Buffers) -> None:
        super().__init__()
        self._buffers = buffers

    def extend(self, data: Any) -> None:
        self._buffers.admit(len(data))
        super().extend(data)


class Buffers(dict[int, bytearray]):
    """The receive buffers of one connection, which together hold at most `limit` bytes.

    Trap: the receive window is not enforced; one sender put 300 MB into a receiver's memory.
    """

    def __init__(self, limit: int, refused: Counter[str]) -> None:
        super().__init__()
        self.limit = limit
        self._refused = refused
        self.received = 0
        """Bytes so far: a sign of life."""

    def __setitem__(self, stream_id: int, _: bytearray) -> None:
        super().__setitem__(stream_id, _Buffer(self))

    @property
    def held(self) -> int:
        return sum(map(len, self.values()))

    def admit(self, length: int) -> None:
        self.received += length
        if self.held + length > self.limit:
            self._refused["buffer-exceeded"] += 1
            raise ReceiveBufferExceededError(f"more than {self.limit} bytes unread")


class PatientStream(YamuxStream):
    """A stream that grants its window anew when half of it is used up.

    Trap: every read, be it of one byte, is answered with a frame, which doubles the frames of
    a transfer and more than doubles those of a request; and the books of the window do not
    balance. It grows, up to `window_bytes`, while its reader uses up half of it in a second.
    """

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        held = self.recv_window + len(self.conn.stream_buffers.get(self.stream_id, b""))
        if self.target_recv_window - held < self.target_recv_window // 2:
            return
        now = trio.current_time()
        if now - self.epoch_start < 1.0:
            doubled = 2 * self.target_recv_window
            self.target_recv_window = min(doubled, yamux_module.MAX_WINDOW_SIZE)
        self.epoch_start = now
        granted = self.target_recv_window - held
        self.recv_window += granted
        await self.send_window_update(granted)


def shielded(seconds: float) -> trio.CancelScope:
    """A scope to clean up in: cancelled by nothing but the end of `seconds`."""
    scope = trio.CancelScope()
    scope.deadline = trio.current_time() + seconds
    scope.shield = True
    return scope


class GuardedYamux(Yamux):
    """A connection that ends instead of hanging, overflowing or corrupting itself."""

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        raw: IRawConnection,
        limits: Limits,
        counters: Counters,
    ) -> None:
        super().__init__(conn, peer_id, is_initiator=conn.is_initiator)
        self.stream_buffers: dict[int, bytearray] = Buffers(
            limits.connection_buffer_bytes, counters.refused
        )
        self._raw = raw
        self._limits = limits
        self._refused = counters.refused

    @property
    def buffers(self) -> Buffers:
        return cast("Buffers", self.stream_buffers)

    def abandon(self, reason: str) -> None:
        """Close the socket now; the reading task notices and cleans up."""
        if not self.is_closed:
            self._refused[reason] += 1
        stream = cast("Any", self._raw).stream.stream
        stream.socket.close()

    async def _write_frame(self, data: bytes) -> None:
        """Write a frame whole or end the connection.

        Trap: a deadline that strikes half-way through a frame leaves the other streams with
        garbage, or the cipher with a gap. It strikes there only if TCP's buffer is full.
        """
        async with self._write_lock:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                await self.secured_conn.write(data)
            except trio.Cancelled:
                self.abandon("frame-cut")
                raise
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> YamuxStream:
        """Open a stream or refuse. Trap: the 257th at a time waits for ever, silently."""
        if self.stream_backlog_semaphore.value == 0:
            raise MuxedStreamError("256 streams of ours are open on this connection")
        return await super().open_stream()

    async def close(self, error_code: int = yamux_module.GO_AWAY_NORMAL) -> None:
        """Close within `close_s`. Trap: it waits for a peer that does not read, locks held."""
        with shielded(self._limits.close_s):
            await super().close(error_code)
        if not self.is_closed:
            self.abandon("close-cut")
            with shielded(self._limits.close_s):
                await self._cleanup_on_error()

    async def _measure_rtt_loop(self) -> None:
        """Ping, and drop a connection that stays silent.

        Trap: the stock loop pings and does not care; a frozen peer stays connected for ever,
        and nobody redials it.
        """
        while not self.event_shutting_down.is_set():
            self._ping_id = (self._ping_id + 1) % 2**32
            self._ping_event = trio.Event()
            received = self.buffers.received
            header = struct.pack(
                yamux_module.YAMUX_HEADER_FORMAT,
                0,
                yamux_module.TYPE_PING,
                yamux_module.FLAG_SYN,
                0,
                self._ping_id,
            )
            with trio.move_on_after(self._limits.silence_s) as patience:
                self._ping_sent_time = trio.current_time()
                try:
                    await self._write_frame(header)
                except Exception:  # noqa: BLE001 (escaping, it would end the host)
                    self.abandon("broken")
                    return
                await self._ping_event.wait()
            if patience.cancelled_caught and self.buffers.received == received:
                self.abandon("silent")
                return
            with trio.move_on_after(self._limits.ping_every_s):
                await self.event_shutting_down.wait()
