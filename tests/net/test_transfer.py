"""Verified transfers between real hosts: whole, resumed, refused, and lied about."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from node.net.errors import PeerTimeoutError
from node.net.host import Network
from node.net.limits import MIB
from node.net.serving import (
    DATA,
    HASHES,
    REQUEST_BYTES,
    BlobServer,
    ByteQuota,
    RangeRequest,
    ServedPart,
    decode_request,
    encode_total,
)
from node.net.streams import MessageStream, encode_answer
from node.net.transfer import (
    BlobSink,
    MemorySink,
    Source,
    fetch_blob,
    fetch_data,
    fetch_hashes,
    fetch_part,
)
from node.params.errors import StoreError
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import Digest, PeerId

GOODS = "/test/goods/1"
ALICE, BOB = PeerId("alice"), PeerId("bob")


@dataclass
class Shelf:
    """Parts in memory; each read is noted, and may be tampered with."""

    parts: dict[tuple[bytes, str], bytes]
    tamper: Callable[[str, int, bytes], bytes] = lambda part, offset, data: data
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def authorise(self, peer: PeerId, name: bytes, part: str) -> ServedPart:
        data = self.parts.get((name, part))
        if data is None:
            raise RemoteProtocolError("unknown-blob", part)
        return Shelved(self, part, data)


@dataclass
class Shelved:
    shelf: Shelf
    part: str
    data: bytes

    @property
    def byte_length(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        self.shelf.reads.append((self.part, offset, length))
        return self.shelf.tamper(self.part, offset, self.data[offset : offset + length])


def blob(length: int) -> tuple[bytes, bytes, Digest]:
    data = (bytes(range(251)) * (length // 251 + 1))[:length]
    hashes = merkle.leaf_hashes(data)
    return data, hashes, merkle.root_of_hashes(hashes, length)


def shelf_of(data: bytes, hashes: bytes, name: bytes = b"trade") -> Shelf:
    return Shelf({(name, DATA): data, (name, HASHES): hashes})


def source(server: Network, **more: Any) -> Source:
    return Source(peer=server.peer_id, protocol=GOODS, name=b"trade", **more)


def sink_for(length: int) -> Callable[[bytes], MemorySink]:
    return lambda hashes: MemorySink(length, hashes)


# -------------------------------------------------------------------------- what goes well


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 5 * MIB + 77])
async def test_a_blob_arrives_whole_whatever_its_size(open_hosts: Any, length: int) -> None:
    data, hashes, root = blob(length)
    kept: list[int] = []
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf_of(data, hashes).authorise).serve)
        got = await fetch_blob(
            b, source(a), sink_for(length), root=root, byte_length=length, progress=kept.append
        )
        assert got == data
        assert sum(kept) == length


async def test_each_request_is_told_before_a_byte_of_its_answer_was_read(open_hosts: Any) -> None:
    length = 5 * MIB + 77
    data, hashes, root = blob(length)
    told: list[tuple[str, int]] = []
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf_of(data, hashes).authorise).serve)

        def asked(part: str) -> None:
            told.append((part, b.counters.bytes_in[GOODS]))

        await fetch_blob(b, source(a, asked=asked), sink_for(length), root=root, byte_length=length)
    assert [part for part, _ in told] == [HASHES, DATA, DATA]
    assert told[0][1] == 0
    assert len(hashes) <= told[1][1] < len(hashes) + 100


async def test_a_blob_arrives_on_disk_through_the_store(open_hosts: Any, tmp_path: Path) -> None:
    length = 5 * MIB + 77
    data, hashes, root = blob(length)
    store = BlobStore(tmp_path)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf_of(data, hashes).authorise).serve)
        await fetch_blob(
            b,
            source(a),
            lambda hashes: store.writer(root, length, hashes),
            root=root,
            byte_length=length,
        )
    assert store.has(root)
    assert store.read(root, 0, length) == data


async def test_what_is_lent_to_a_sink_does_not_change_while_the_sink_has_it(
    open_hosts: Any,
) -> None:
    class SlowSink(MemorySink):
        def write(self, offset: int, data: bytes | memoryview) -> None:
            before = bytes(data)
            time.sleep(0.05)
            assert data == before
            super().write(offset, data)

    length = 9 * MIB + 77
    data, hashes, _ = blob(length)
    sink = SlowSink(length, hashes)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf_of(data, hashes).authorise).serve)
        await fetch_data(b, source(a), sink, byte_length=length)
    assert sink.finish() == data


async def test_goods_have_as_many_parts_as_they_need(open_hosts: Any) -> None:
    cipher, cipher_hashes, cipher_root = blob(300_000)
    _, plain_hashes, plain_root = blob(299_999)
    shelf = shelf_of(cipher, cipher_hashes)
    shelf.parts[b"trade", "plain-hashes"] = plain_hashes
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf.authorise).serve)
        assert plain_hashes == await fetch_hashes(
            b, source(a), root=plain_root, byte_length=299_999, part="plain-hashes"
        )
        assert cipher == await fetch_blob(
            b, source(a), sink_for(300_000), root=cipher_root, byte_length=300_000
        )


async def test_only_what_is_missing_is_fetched_again(open_hosts: Any) -> None:
    length = 9 * MIB
    data, hashes, _ = blob(length)
    sink = MemorySink(length, hashes)
    sink.write(0, data[: 4 * MIB])
    sink.write(5 * MIB, data[5 * MIB : 8 * MIB])
    shelf = shelf_of(data, hashes)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf.authorise).serve)
        await fetch_data(b, source(a), sink, byte_length=length)
    assert sink.finish() == data
    assert sum(size for _, _, size in shelf.reads) < 2 * MIB + 2 * 16 * 65_507
    assert {offset // MIB for _, offset, _ in shelf.reads} == {4, 8}


async def test_a_transfer_that_was_cut_goes_on_with_another_seller(
    open_hosts: Any, tmp_path: Path
) -> None:
    length = 10 * MIB
    data, hashes, root = blob(length)

    def fail_late(part: str, offset: int, piece: bytes) -> bytes:
        return piece if part == HASHES or offset < 6 * MIB else b""

    store = BlobStore(tmp_path)
    good = shelf_of(data, hashes)
    async with open_hosts("a", "b", "c") as (a, b, c):
        await b.connect(c.addresses()[0])
        a.handle(GOODS, BlobServer(Shelf(good.parts, fail_late).authorise).serve)
        c.handle(GOODS, BlobServer(good.authorise).serve)
        with store.writer(root, length, hashes) as sink:
            with pytest.raises(RemoteProtocolError) as caught:
                await fetch_data(b, source(a), sink, byte_length=length)
            assert caught.value.peer == a.peer_id
            left = sum(size for _, size in sink.missing())
            assert 0 < left < length
        with store.writer(root, length) as sink:
            await fetch_data(b, source(c), sink, byte_length=length)
            sink.finish()
    assert store.read(root, 0, length) == data


async def test_a_disk_that_fails_the_buyer_is_named_as_such_and_the_streams_are_closed(
    open_hosts: Any, eventually: Any
) -> None:
    full = StoreError("disk-full", "no space left on device")

    class FullSink(MemorySink):
        closed = False

        def write(self, offset: int, data: bytes | memoryview) -> None:
            raise full

        def close(self) -> None:
            self.closed = True

    length = 9 * MIB
    data, hashes, root = blob(length)
    sink = FullSink(length, hashes)
    serving = 0
    served: list[str] = []
    async with open_hosts("a", "b") as (a, b):
        server = BlobServer(shelf_of(data, hashes).authorise)

        async def serve(peer: PeerId, stream: MessageStream) -> None:
            nonlocal serving
            serving += 1
            try:
                await server.serve(peer, stream)
            finally:
                serving -= 1
                served.append(peer)

        a.handle(GOODS, serve)
        with pytest.raises(StoreError) as caught:
            await fetch_blob(b, source(a), lambda _: sink, root=root, byte_length=length)
        assert caught.value is full
        assert sink.closed
        await eventually(lambda: len(served) > 1 and serving == 0)


# ------------------------------------------------------------------------ what is lied about


def wrong_byte(part: str, offset: int, data: bytes) -> bytes:
    if part == HASHES or not offset <= 4 * MIB + 5 < offset + len(data):
        return data
    at = 4 * MIB + 5 - offset
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_one_wrong_byte_is_never_kept(open_hosts: Any) -> None:
    length = 5 * MIB
    data, hashes, root = blob(length)
    sinks: list[MemorySink] = []

    def open_sink(list_of_hashes: bytes) -> MemorySink:
        sinks.append(MemorySink(length, list_of_hashes))
        return sinks[0]

    async with open_hosts("a", "b") as (a, b):
        shelf = Shelf(shelf_of(data, hashes).parts, wrong_byte)
        a.handle(GOODS, BlobServer(shelf.authorise).serve)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_blob(b, source(a), open_sink, root=root, byte_length=length)
        assert (caught.value.reason, caught.value.peer) == ("wrong-chunk", a.peer_id)
    leaf = slice(4 * MIB, 4 * MIB + 1024)
    assert bytes(sinks[0].data[leaf]) == bytes(1024)


@pytest.mark.parametrize("into", ["memory", "the store"])
@pytest.mark.parametrize("spoil", ["one hash", "another blob's"])
async def test_a_hash_list_that_is_not_under_the_root_is_refused_before_any_data(
    open_hosts: Any, tmp_path: Path, spoil: str, into: str
) -> None:
    data, hashes, root = blob(500_000)
    store = BlobStore(tmp_path)
    open_sink: Callable[[bytes], BlobSink] = sink_for(500_000)
    if into == "the store":
        open_sink = partial(store.writer, root, 500_000)
    false = hashes[:-1] + bytes([hashes[-1] ^ 1]) if spoil == "one hash" else hashes[::-1]
    shelf = shelf_of(data, false)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf.authorise).serve)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_blob(b, source(a), open_sink, root=root, byte_length=500_000)
        assert (caught.value.reason, caught.value.peer) == ("wrong-leaf-hashes", a.peer_id)
    assert {part for part, _, _ in shelf.reads} == {HASHES}
    assert not store.leftovers()


async def test_a_part_of_another_length_is_refused_before_it_is_read(open_hosts: Any) -> None:
    data, hashes, root = blob(500_000)
    shelf = shelf_of(data + b"more", hashes)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf.authorise).serve)
        with pytest.raises(RemoteProtocolError, match="wrong-length"):
            await fetch_blob(b, source(a), sink_for(500_000), root=root, byte_length=500_000)


async def test_an_end_that_comes_early_is_truncated(open_hosts: Any) -> None:
    async def half(_: PeerId, stream: MessageStream) -> None:
        await stream.receive(deadline_s=5)
        await stream.send(encode_answer(encode_total(10_000)), deadline_s=5)
        await stream.send_bytes(bytes(5_000), deadline_s=5)
        await stream.finish_sending(deadline_s=5)

    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, half)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_part(b, source(a), DATA, 10_000)
        assert (caught.value.reason, caught.value.peer) == ("truncated", a.peer_id)


async def test_a_server_that_stops_is_given_up_after_the_idle_time(open_hosts: Any) -> None:
    async def stop(_: PeerId, stream: MessageStream) -> None:
        await stream.receive(deadline_s=5)
        await stream.send(encode_answer(encode_total(10_000)), deadline_s=5)
        await stream.send_bytes(bytes(5_000), deadline_s=5)
        await trio.sleep(3600)

    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, stop)
        with trio.fail_after(5), pytest.raises(PeerTimeoutError) as caught:
            await fetch_part(b, source(a, idle_s=0.3), DATA, 10_000)
        assert caught.value.peer == a.peer_id


async def test_a_disk_that_fails_the_server_is_its_fault_and_not_the_peers(
    open_hosts: Any, eventually: Any
) -> None:
    def broken(part: str, offset: int, data: bytes) -> bytes:
        raise OSError("the disk is gone")

    data, hashes, _ = blob(10_000)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(Shelf(shelf_of(data, hashes).parts, broken).authorise).serve)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_part(b, source(a), DATA, 10_000)
        assert caught.value.peer == a.peer_id
        await eventually(lambda: a.faults)
        assert isinstance(a.faults[0][2], OSError)


# ---------------------------------------------------------------------- what is not allowed


async def test_what_a_peer_may_not_have_is_refused_by_name(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(Shelf({}).authorise).serve)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_part(b, source(a), DATA, 10_000)
        assert (caught.value.reason, caught.value.peer) == ("unknown-blob", a.peer_id)


async def test_free_downloads_end_at_the_quota(open_hosts: Any) -> None:
    data, hashes, root = blob(9 * MIB)
    shelf = shelf_of(data, hashes)
    server = BlobServer(shelf.authorise, quota=ByteQuota(10 * MIB, 100 * MIB))
    async with open_hosts("a", "b", "c") as (a, b, c):
        a.handle(GOODS, server.serve)
        for peer in (b, c):
            fetched = await fetch_blob(
                peer, source(a), sink_for(9 * MIB), root=root, byte_length=9 * MIB
            )
            assert fetched == data
        read = len(shelf.reads)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_part(b, source(a), DATA, 9 * MIB)
        assert caught.value.reason == "quota-exceeded"
        assert len(shelf.reads) == read


async def test_more_streams_than_allowed_are_told_so(open_hosts: Any) -> None:
    data, hashes, _ = blob(9 * MIB)
    server = BlobServer(shelf_of(data, hashes).authorise, streams_per_peer=1)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, server.serve)
        with pytest.raises(RemoteProtocolError, match="busy"):
            await fetch_data(b, source(a), MemorySink(9 * MIB, hashes), byte_length=9 * MIB)


def test_a_quota_bounds_each_peer_and_all_of_them_and_leaks() -> None:
    quota = ByteQuota(100, 150, window_s=10)
    quota.charge(ALICE, 100, now=0)
    with pytest.raises(RemoteProtocolError, match="quota-exceeded"):
        quota.charge(ALICE, 1, now=0)
    with pytest.raises(RemoteProtocolError, match="quota-exceeded"):
        quota.charge(BOB, 60, now=0)
    quota.charge(BOB, 50, now=0)
    quota.refund(BOB, 50, now=0)
    quota.charge(BOB, 50, now=0)
    quota.charge(ALICE, 50, now=5)
    with pytest.raises(RemoteProtocolError):
        quota.charge(ALICE, 1, now=5)


# ---------------------------------------------------------------------------------- the wire


@given(
    st.binary(min_size=1, max_size=256),
    st.text("abc-", min_size=1, max_size=64),
    st.integers(0, 2**64 - 1),
    st.integers(1, REQUEST_BYTES),
)
def test_a_request_is_read_as_it_was_written(
    name: bytes, part: str, offset: int, length: int
) -> None:
    request = RangeRequest(name, part, offset, length)
    assert decode_request(request.encode()) == request


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_named_error(message: bytes) -> None:
    try:
        assert decode_request(message).encode() == message
    except RemoteProtocolError as error:
        assert error.reason == "malformed-request"  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "part", "offset", "length"),
    [(b"", "p", 0, 1), (b"n", "", 0, 1), (b"n", "p", -1, 1), (b"n", "p", 0, REQUEST_BYTES + 1)],
)
def test_a_request_that_no_server_would_answer_is_not_made(
    name: bytes, part: str, offset: int, length: int
) -> None:
    with pytest.raises(LocalProtocolError):
        RangeRequest(name, part, offset, length)


async def test_a_range_past_the_end_is_refused(open_hosts: Any) -> None:
    data, hashes, _ = blob(10_000)
    async with open_hosts("a", "b") as (a, b):
        a.handle(GOODS, BlobServer(shelf_of(data, hashes).authorise).serve)
        with pytest.raises(RemoteProtocolError, match="bad-range"):
            await fetch_part(b, source(a), DATA, 10_001)
