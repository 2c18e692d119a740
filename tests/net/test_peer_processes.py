"""A peer in a process of its own: killed half-way, started again, frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.net.limits import KIB, MIB, Limits
from node.net.transfer import MemorySink, Source, fetch_data, fetch_part
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import PeerId

ROOT = Path(__file__).parents[2]
BLOB_BYTES = 24 * MIB
PATTERN = bytes(range(256)) * 4

PEER = f"""
import sys, trio
from node.net.host import open_host
from node.net.serving import BlobServer
from node.protocol.verdict import accept

class Blob:
    byte_length = {BLOB_BYTES}
    def read(self, offset, length):
        return (bytes(range(256)) * (length // 256 + 2))[offset % 256:][:length]

async def echo(peer, payload):
    return payload

async def main(port):
    listen = "/ip4/127.0.0.1/tcp/" + port
    async with open_host(b"p" * 32, listen) as network, trio.open_nursery() as nursery:
        network.set_gossip_validator(lambda peer, data: accept())
        network.handle_requests("/test/echo/1", echo)
        network.handle("/test/blob/1", BlobServer(lambda *_: Blob()).serve)
        print(network.addresses()[0], flush=True)
        async for heard in network.gossip():
            await network.publish(b"heard " + heard.data)

trio.run(main, sys.argv[1])
"""

FREEZER = """
import os, signal, trio
from node.net.host import open_host
from node.net.streams import Reply
from node.protocol.verdict import accept

def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)

async def main():
    async with open_host(b"f" * 32, "/ip4/127.0.0.1/tcp/0") as network:
        async def answer(peer, payload):
            return Reply(payload, sent=freeze)

        async def ask(peer, payload):
            return await network.request(peer, "/test/told/1", payload, deadline_s=9, sent=freeze)

        async def publish(peer, payload):
            while not network.gossiping_with():
                await trio.sleep(0.01)
            await network.publish(payload)
            await network.flush()
            freeze()
            return payload

        network.set_gossip_validator(lambda peer, data: accept())
        for deed in (answer, ask, publish):
            network.handle_requests("/test/" + deed.__name__ + "/1", deed)
        print(network.addresses()[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def peer_process(
    port: str = "0", program: str = PEER
) -> AsyncIterator[tuple[trio.Process, str]]:
    command = [sys.executable, "-c", program, port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    try:
        with trio.fail_after(60):
            assert process.stdout is not None
            address = (await process.stdout.receive_some(1024)).decode().strip()
        assert address, "the peer did not start"
        yield process, address
    finally:
        process.kill()
        with trio.CancelScope() as scope:
            scope.shield = True
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


async def hears_an_answer(network: Any, text: bytes) -> None:
    with trio.fail_after(8):
        while (await network.gossip().receive()).data != b"heard " + text:
            pass


async def test_a_killed_peer_ends_a_transfer_by_name_and_after_a_restart_all_goes_on(
    open_hosts: Any, eventually: Any
) -> None:
    data = PATTERN * (BLOB_BYTES // KIB)
    sink = MemorySink(BLOB_BYTES, merkle.leaf_hashes(data))
    async with open_hosts("b") as (b,), trio.open_nursery() as nursery:
        async with peer_process() as (process, address):
            nursery.start_soon(b.keep_connected, address)
            await eventually(b.gossiping_with)
            await b.publish(b"before")
            await hears_an_answer(b, b"before")
            peer = next(iter(b.connected()))
            source = Source(peer=peer, protocol="/test/blob/1", name=b"x", idle_s=5)
            begun = trio.Event()

            def kill(_: int) -> None:
                if not begun.is_set():
                    process.send_signal(signal.SIGKILL)
                    begun.set()

            with trio.fail_after(15), pytest.raises(RemoteProtocolError) as caught:
                await fetch_data(b, source, sink, byte_length=BLOB_BYTES, progress=kill)
            assert caught.value.peer == peer
            assert caught.value.reason in {"unreachable", "truncated", "stream-reset"}
            left = sum(length for _, length in sink.missing())
            assert 0 < left < BLOB_BYTES
            await eventually(lambda: not b.connected())
            with trio.fail_after(5), pytest.raises((PeerUnreachableError, PeerTimeoutError)):
                await b.request(peer, "/test/echo/1", b"?", deadline_s=2)
            await b.publish(b"to nobody")
        async with peer_process(address.split("/")[4]) as (_, again):
            assert again == address
            with trio.fail_after(5):
                while not b.gossiping_with():
                    await trio.sleep(0.02)
            await b.publish(b"after")
            await hears_an_answer(b, b"after")
            await fetch_data(b, source, sink, byte_length=BLOB_BYTES)
            assert sink.finish() == data
        nursery.cancel_scope.cancel()


async def test_a_frozen_peer_ends_everything_at_its_deadline_and_is_dropped(
    open_hosts: Any, eventually: Any
) -> None:
    limits = Limits(ping_every_s=0.5, silence_s=3.0)
    async with peer_process() as (process, address), open_hosts("b", limits=limits) as (b,):
        peer = await b.connect(address)
        assert await b.request(peer, "/test/echo/1", b"x", deadline_s=10) == b"x"
        process.send_signal(signal.SIGSTOP)
        try:
            before = trio.current_time()
            source = Source(peer=peer, protocol="/test/blob/1", name=b"x", idle_s=0.5)
            with pytest.raises(PeerTimeoutError):
                await b.request(peer, "/test/echo/1", b"x", deadline_s=0.5)
            with pytest.raises(PeerTimeoutError):
                await fetch_part(b, source, "data", BLOB_BYTES)
            await b.publish(b"into the ice")
            assert trio.current_time() - before < 3
            await eventually(lambda: not b.connected())
            assert b.counters.refused["silent"] == 1
        finally:
            process.send_signal(signal.SIGCONT)
        with trio.fail_after(10):
            await b.connect(address)
            assert await b.request(peer, "/test/echo/1", b"x", deadline_s=10) == b"x"


async def test_a_deadline_holds_even_when_the_way_to_a_frozen_peer_is_full(
    open_hosts: Any, eventually: Any
) -> None:
    """TCP's buffers fill, and the deadline strikes in the middle of a frame."""
    async with peer_process() as (process, address), open_hosts("b") as (b,):
        peer = await b.connect(address)
        late: list[float] = []

        async def ask() -> None:
            before = trio.current_time()
            with pytest.raises((PeerTimeoutError, PeerUnreachableError)):
                await b.request(peer, "/test/echo/1", bytes(256 * KIB), deadline_s=1)
            late.append(trio.current_time() - before - 1)

        try:
            with pytest.raises(PeerTimeoutError):
                async with b.stream(peer, "/test/echo/1", deadline_s=10) as stream:
                    cast("Any", stream)._stream._stream.muxed_stream.send_window = 10**9
                    process.send_signal(signal.SIGSTOP)
                    async with trio.open_nursery() as nursery:
                        for _ in range(4):
                            nursery.start_soon(ask)
                        before = trio.current_time()
                        with suppress(PeerTimeoutError):
                            await stream.send_bytes(bytes(64 * MIB), deadline_s=1.5)
                        late.append(trio.current_time() - before - 1.5)
                    raise PeerTimeoutError
            assert max(late) < 1
            assert b.counters.refused["frame-cut"] == 1
            await eventually(lambda: not b.connected())
        finally:
            process.send_signal(signal.SIGCONT)
        await b.connect(address)
        assert await b.request(peer, "/test/echo/1", b"x", deadline_s=10) == b"x"


async def test_what_was_sent_arrives_although_its_process_stopped_right_then(
    open_hosts: Any, eventually: Any
) -> None:
    """Of an answer, a question and a gossiped message no task has to write the rest later."""
    told: list[bytes] = []

    async def hear(_: PeerId, payload: bytes) -> bytes:
        told.append(payload)
        return payload

    frozen = peer_process(program=FREEZER)
    async with frozen as (process, address), open_hosts("b") as (b,), trio.open_nursery() as tasks:
        b.handle_requests("/test/told/1", hear)
        peer = await b.connect(address)

        async def have(deed: str) -> None:
            said = deed.encode()
            assert await b.request(peer, f"/test/{deed}/1", said, deadline_s=9) == said
            told.append(b"answer to " + said)

        async def stops_and_goes_on(*expected: bytes) -> None:
            stat = Path(f"/proc/{process.pid}/stat")
            await eventually(lambda: stat.read_text().rsplit(")")[1].split()[0] == "T")
            await eventually(lambda: told == list(expected))
            process.send_signal(signal.SIGCONT)

        tasks.start_soon(have, "answer")
        await stops_and_goes_on(b"answer to answer")
        tasks.start_soon(have, "ask")
        await stops_and_goes_on(b"answer to answer", b"ask")
        await eventually(lambda: told[-1] == b"answer to ask")
        told.clear()
        tasks.start_soon(have, "publish")
        told.append((await b.gossip().receive()).data)
        await stops_and_goes_on(b"publish")
        await eventually(lambda: told[-1] == b"answer to publish")
