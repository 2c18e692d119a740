"""Fetching blobs: pulled in ranges, checked leaf by leaf, resumed where they were cut.

Nothing is believed: the list of leaf hashes is checked against the signed root before a byte
of data is asked for, and each leaf against the list before it is kept. An end that comes early
is ``truncated``, whatever libp2p calls it. What has arrived stays in the sink; whoever calls
again, with this peer or another, goes on from there. `node.net.serving` is the other end.

Speed is a matter of how long the interpreter's lock is held, for libp2p and the hashing of
1 KiB leaves take turns at it: a second thread hides the disk, and not the hashing. So bytes
are gathered in one buffer for each stream, where they stay until they are on the disk (fresh
memory for each MiB cost as much as hashing it), and a list of hashes is folded once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from node.net.limits import KIB, MIB, STREAM_READ_BYTES
from node.net.serving import DATA, HASHES, IDLE_S, REQUEST_BYTES, RangeRequest, encode_total
from node.net.streams import decode_answer
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, MarketError, RemoteProtocolError
from node.protocol.merkle import LEAF_BYTES
from node.protocol.types import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from node.net.host import Network
    from node.net.streams import MessageStream
    from node.protocol.types import PeerId

WORKERS: Final = 2
WRITE_BYTES: Final = MIB
"""What is checked and written at a time, off the event loop; a multiple of a leaf."""


class BlobSink(Protocol):
    """Where a blob is put together; ``BlobStore.writer`` of `node.params.store` makes one.

    `write` and `finish` are called in a thread, never two at a time.
    """

    @property
    def root(self) -> Digest:
        """The root of the blob, which its list of leaf hashes was checked against."""

    def missing(self) -> Iterable[tuple[int, int]]:
        """Offset and length of what has not arrived; each begins at a leaf."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Check whole leaves against the list and keep them; `data` is only lent.

        Raises `RemoteProtocolError("wrong-chunk")`, with nothing kept, if one is wrong.
        """

    def finish(self) -> object: ...

    def close(self) -> None:
        """Let go; what has arrived stays for the next one. Safe to repeat."""


class MemorySink:
    """A sink for what fits in memory, with the root that its list of leaf hashes has."""

    def __init__(self, byte_length: int, hashes: bytes) -> None:
        self.root = merkle.root_of_hashes(hashes, byte_length)
        self.data = bytearray(byte_length)
        self._hashes = hashes
        self._todo = bytearray(b"\1" * merkle.leaf_count(byte_length))
        """A byte for each leaf, 1 until it has arrived."""

    def missing(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        leaf = self._todo.find(1)
        while leaf >= 0:
            end = self._todo.find(0, leaf)
            end = len(self._todo) if end < 0 else end
            at = leaf * LEAF_BYTES
            runs.append((at, min(end * LEAF_BYTES, len(self.data)) - at))
            leaf = self._todo.find(1, end)
        return runs

    def write(self, offset: int, data: bytes | memoryview) -> None:
        first = offset // LEAF_BYTES
        bad = merkle.verify_leaves(self._hashes, first, data, len(self.data))
        if bad is not None:
            raise RemoteProtocolError("wrong-chunk", f"leaf {bad}")
        self.data[offset : offset + len(data)] = data
        count = -(-len(data) // LEAF_BYTES)
        self._todo[first : first + count] = bytes(count)

    def finish(self) -> bytearray:
        return self.data

    def close(self) -> None:
        """There is nothing to let go of."""


class CheckingSink:
    """A sink that checks every leaf and keeps none: for whoever is to show that it has a blob."""

    def __init__(self, byte_length: int, hashes: bytes) -> None:
        self.root = merkle.root_of_hashes(hashes, byte_length)
        self._byte_length = byte_length
        self._hashes = hashes

    def missing(self) -> list[tuple[int, int]]:
        return [(0, self._byte_length)]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        bad = merkle.verify_leaves(self._hashes, offset // LEAF_BYTES, data, self._byte_length)
        if bad is not None:
            raise RemoteProtocolError("wrong-chunk", f"leaf {bad}")

    def finish(self) -> None:
        """There is nothing to keep."""

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who serves a blob, over which protocol and under which name."""

    peer: PeerId
    protocol: str
    name: bytes
    addresses: tuple[str, ...] = ()
    idle_s: float = IDLE_S
    """How long not a byte may come."""
    asked: Callable[[str], None] | None = None
    """Called with the part each time that a request for a range of it has left."""


async def fetch_hashes(
    network: Network, source: Source, *, root: Digest, byte_length: int, part: str = HASHES
) -> bytes:
    """Fetch the leaf hashes of a blob of `byte_length` bytes and check them against its root.

    They are held in memory: 32 bytes for each KiB, so the caller bounds `byte_length`. Raises
    `RemoteProtocolError("wrong-leaf-hashes")` and what `fetch_part` raises.
    """
    length = merkle.leaf_count(byte_length) * DIGEST_BYTES
    hashes = await fetch_part(network, source, part, length)
    found = await trio.to_thread.run_sync(merkle.root_of_hashes, hashes, byte_length)
    if found != root:
        raise _wrong_hashes(source, part, found, root)
    return hashes


def _wrong_hashes(source: Source, part: str, found: Digest, root: Digest) -> RemoteProtocolError:
    detail = f"{part} have the root {found.hex()}, not {root.hex()}"
    return RemoteProtocolError("wrong-leaf-hashes", detail, peer=source.peer)


async def fetch_part(network: Network, source: Source, part: str, length: int) -> bytes:
    """Fetch a whole part of exactly `length` bytes into memory, unchecked."""
    collected = bytearray()

    async def collect(_: int, data: memoryview) -> None:
        collected.extend(data)

    await _run_worker(network, source, part, length, deque(_ranges([(0, length)])), collect)
    return bytes(collected)


async def fetch_data(
    network: Network,
    source: Source,
    sink: BlobSink,
    *,
    byte_length: int,
    part: str = DATA,
    workers: int = WORKERS,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Fetch all that `sink` misses, which checks every leaf before it keeps it.

    `progress` is called with the number of bytes just kept. Raises `PeerUnreachableError`,
    `PeerTimeoutError` and `RemoteProtocolError` with ``wrong-chunk``, ``wrong-length``,
    ``truncated`` or the server's own reason, all naming the peer, and whatever `MarketError`
    the sink raises of its own, which is no peer's fault. Never a group; what was kept stays.
    """
    todo = deque(_ranges(sink.missing()))
    writing = trio.Lock()
    failures: list[MarketError] = []

    async def keep(offset: int, data: memoryview) -> None:
        async with writing:
            await trio.to_thread.run_sync(sink.write, offset, data)
        if progress is not None:
            progress(len(data))

    async def work(scope: trio.CancelScope) -> None:
        try:
            await _run_worker(network, source, part, byte_length, todo, keep)
        except MarketError as error:
            if isinstance(error, RemoteProtocolError):
                error.peer = error.peer or source.peer
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(workers, len(todo))):
            nursery.start_soon(work, nursery.cancel_scope)
    if failures:
        raise failures[0]


async def fetch_blob(
    network: Network,
    source: Source,
    open_sink: Callable[[bytes], BlobSink],
    *,
    root: Digest,
    byte_length: int,
    progress: Callable[[int], None] | None = None,
) -> object:
    """Fetch a blob under its root: the hash list, then the data into ``open_sink(hash list)``.

    The sink checks the list, in a thread, and says which root it has; a `RemoteProtocolError`
    of its opening is about the list. Returns what the sink's `finish` returns; raises as
    `fetch_hashes` and `fetch_data` do.
    """
    length = merkle.leaf_count(byte_length) * DIGEST_BYTES
    hashes = await fetch_part(network, source, HASHES, length)
    try:
        sink = await trio.to_thread.run_sync(open_sink, hashes)
    except RemoteProtocolError as error:
        raise RemoteProtocolError("wrong-leaf-hashes", str(error), peer=source.peer) from error
    try:
        if sink.root != root:
            raise _wrong_hashes(source, HASHES, sink.root, root)
        await fetch_data(network, source, sink, byte_length=byte_length, progress=progress)
        return await trio.to_thread.run_sync(sink.finish)
    finally:
        sink.close()


async def _run_worker(
    network: Network,
    source: Source,
    part: str,
    total: int,
    todo: deque[tuple[int, int]],
    keep: Callable[[int, memoryview], Awaitable[None]],
) -> None:
    """Take ranges off `todo` over one stream until there are none.

    What `keep` gets is lent to it for as long as it runs.
    """
    if not todo:
        return
    room = memoryview(bytearray(min(WRITE_BYTES, total)))
    opened = network.stream(
        source.peer, source.protocol, deadline_s=source.idle_s, addresses=source.addresses
    )
    async with opened as stream:
        while todo:
            offset, length = todo.popleft()
            request = RangeRequest(source.name, part, offset, length).encode()
            await stream.send(request, deadline_s=source.idle_s)
            if source.asked is not None:
                source.asked(part)
            answer = decode_answer(
                await stream.receive(deadline_s=source.idle_s, limit=KIB), source.peer
            )
            if answer != encode_total(total):
                detail = f"{part} should have {total} bytes, and has {answer.hex()}"
                raise RemoteProtocolError("wrong-length", detail, peer=source.peer)
            while length > 0:
                data = room[:length]
                await _receive_into(stream, data, source.idle_s)
                await keep(offset, data)
                offset, length = offset + len(data), length - len(data)


async def _receive_into(stream: MessageStream, room: memoryview, idle_s: float) -> None:
    """Fill `room`; the stream's own buffer holds what comes while it is being kept."""
    at = 0
    while at < len(room):
        limit = min(len(room) - at, STREAM_READ_BYTES)
        data = await stream.receive_some(limit, deadline_s=idle_s)
        room[at : at + len(data)] = data
        at += len(data)


def _ranges(missing: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Cut what is missing into requests."""
    for offset, length in missing:
        if offset % LEAF_BYTES or length <= 0:
            raise LocalProtocolError(f"a sink misses whole leaves, not {length} bytes at {offset}")
        for at in range(offset, offset + length, REQUEST_BYTES):
            yield at, min(REQUEST_BYTES, offset + length - at)
