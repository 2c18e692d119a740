"""How fast verified parameters cross the network, next to the plainest stream of libp2p.

    python scripts/bench_transfer.py [--mib 128] [--rounds 5] [--json]

Seller and buyer are two processes over TCP on loopback, as they are in a market. The cases
take turns, several rounds of them: `rows` gives the median of each, and of its ratio to the
plain stream of the same round, which a busy machine changes less than the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from node.net.host import Network, open_host
from node.net.limits import MIB, STREAM_READ_BYTES
from node.net.serving import DATA, BlobServer, ServedPart
from node.net.streams import MessageStream
from node.net.transfer import BlobSink, MemorySink, Source, fetch_blob
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.types import Digest, PeerId

PLAIN = "/bench/plain/1"
BLOBS = "/bench/blobs/1"
ECHO = "/bench/echo/1"
DEADLINE_S = 60.0
CASES = ("plain stream", "leaf hashing alone", "verified into memory", "verified onto disk")


@dataclass(frozen=True)
class Bytes:
    data: bytes

    @property
    def byte_length(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


async def plain_stream(network: Network, peer: PeerId, length: int) -> float:
    """Read `length` unchecked bytes off one stream; return MB/s."""
    began = time.perf_counter()
    async with network.stream(peer, PLAIN, deadline_s=DEADLINE_S) as stream:
        await stream.send(length.to_bytes(8, "big"), deadline_s=DEADLINE_S)
        left = length
        while left:
            left -= len(await stream.receive_some(STREAM_READ_BYTES, deadline_s=DEADLINE_S))
    return length / (time.perf_counter() - began) / 1e6


async def verified(
    network: Network,
    peer: PeerId,
    root: Digest,
    length: int,
    open_sink: Callable[[bytes], BlobSink],
) -> float:
    """Fetch a blob under its root into a sink; return MB/s."""
    began = time.perf_counter()
    source = Source(peer=peer, protocol=BLOBS, name=root)
    await fetch_blob(network, source, open_sink, root=root, byte_length=length)
    return length / (time.perf_counter() - began) / 1e6


def hashing(data: bytes) -> float:
    """Hash the leaves of `data`; return MB/s."""
    began = time.perf_counter()
    merkle.leaf_hashes(data)
    return len(data) / (time.perf_counter() - began) / 1e6


def goods(mib: int) -> bytes:
    """The same bytes in both processes."""
    return hashlib.shake_256(b"parameters").digest(MIB) * mib


async def serve(mib: int) -> None:
    """The seller's process: serves until its standard input ends; says where it listens."""
    data = goods(mib)
    hashes = merkle.leaf_hashes(data)

    async def serve_plain(_: PeerId, stream: MessageStream) -> None:
        length = int.from_bytes(await stream.receive(deadline_s=DEADLINE_S), "big")
        await stream.send_bytes(memoryview(data)[:length], deadline_s=DEADLINE_S)
        await stream.finish_sending(deadline_s=DEADLINE_S)

    async def echo(_: PeerId, request: bytes) -> bytes:
        return request

    def authorise(_: PeerId, __: bytes, part: str) -> ServedPart:
        return Bytes(data if part == DATA else hashes)

    async with open_host(b"s" * 32, "/ip4/127.0.0.1/tcp/0") as seller:
        seller.handle(PLAIN, serve_plain)
        seller.handle(BLOBS, BlobServer(authorise).serve)
        seller.handle_requests(ECHO, echo)
        print(seller.addresses()[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


async def measure(address: str, mib: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Every case once a round, over one connection to the seller's process."""
    data = goods(mib)
    hashes = merkle.leaf_hashes(data)
    root = merkle.root_of_hashes(hashes, len(data))
    rates: dict[str, list[float]] = {case: [] for case in CASES}
    async with open_host(b"b" * 32) as buyer:
        peer = await buyer.connect(address)
        await plain_stream(buyer, peer, min(len(data), 16 * MIB))  # the window opens
        for _ in range(rounds):
            store = BlobStore(folder)
            onto_disk = partial(store.writer, root, len(data))
            into_memory = partial(MemorySink, len(data))
            rates["plain stream"].append(await plain_stream(buyer, peer, len(data)))
            rates["leaf hashing alone"].append(hashing(data))
            rates["verified into memory"].append(
                await verified(buyer, peer, root, len(data), into_memory)
            )
            rates["verified onto disk"].append(
                await verified(buyer, peer, root, len(data), onto_disk)
            )
            store.delete(root)
        began = time.perf_counter()
        for _ in range(200):
            await buyer.request(peer, ECHO, bytes(1024), deadline_s=DEADLINE_S)
        requests = 200 / (time.perf_counter() - began)
    against = rates["plain stream"], "plain stream"
    return [
        *(row(f"{case}, {mib} MiB", "MB/s", rates[case], *against) for case in CASES),
        row("requests of 1 KiB, one at a time", "1/s", [requests], [requests], "itself"),
    ]


def row(
    case: str, unit: str, values: list[float], against: list[float], what: str
) -> dict[str, Any]:
    ratios = [value / other for value, other in zip(values, against, strict=True)]
    return {
        "case": case,
        "value": round(statistics.median(values), 1),
        "unit": unit,
        "against": f"{what}: {statistics.median(against):.1f} {unit}",
        "ratio": round(statistics.median(ratios), 3),
    }


def rows(mib: int = 128, rounds: int = 5) -> list[dict[str, Any]]:
    """The table of this benchmark."""
    command = [sys.executable, __file__, "--serve", "--mib", str(mib)]
    with (
        TemporaryDirectory() as directory,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far,
    ):
        if far.stdin is None or far.stdout is None:
            raise RuntimeError("the seller's process has no pipes")
        try:
            return trio.run(measure, far.stdout.readline().strip(), mib, rounds, Path(directory))
        finally:
            far.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve, arguments.mib)
        return
    table = rows(arguments.mib, arguments.rounds)
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    for line in table:
        print(f"{line['case']:<36} {line['value']:>9} {line['unit']:<5} ×{line['ratio']}")


if __name__ == "__main__":
    main()
