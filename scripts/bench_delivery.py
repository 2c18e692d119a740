"""How fast goods are made of a blob, next to plain SHA-256 of the same file.

    python scripts/bench_delivery.py [--mib 1024] [--rounds 3] [--json]
    python scripts/bench_delivery.py --units [--rounds 200] [--json]    what a KiB takes

Making goods is `node.params.goods.make_goods`, as a seller's node does it: the root of what it
offered once more, the ciphertext, its leaf hashes and their root. The cases take turns, each in
a process of its own, whose peak resident memory is a row too. *Kept* is what `BlobStore.encrypt`
does, which also writes the goods onto the disk and waits for it; the others throw them away.
*By hashlib* is how leaves are hashed on a machine without `node.protocol._tree_hashing`; a row
says whether this is one.

*Units* are what goods are made of: leaves, nodes and the cipher, over 256 KiB at a time, by hashlib
and in C in turns, the best of all rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from node.params.goods import make_goods  # noqa: E402  (the path above comes first)
from node.params.store import BlobStore  # noqa: E402
from node.protocol import merkle, plain_tree_hashing, tree_hashing  # noqa: E402
from node.protocol.delivery import Keystream  # noqa: E402
from node.protocol.types import DIGEST_BYTES, Digest  # noqa: E402

MIB: Final = 1 << 20
CHUNK: Final = 256 * 1024
KEY: Final = hashlib.sha256(b"one delivery").digest()
PLAIN: Final = "sha256 of the file"
WHAT: Final = "root, encrypt, ciphertext root"


def plain(path: Path, _: BlobStore) -> str:
    """SHA-256 of the file, read in chunks."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            hasher.update(buffer[:length])
    return hasher.hexdigest()


def made(processes: int) -> Callable[[Path, BlobStore], str]:
    """Goods that are thrown away."""

    def case(path: Path, _: BlobStore) -> str:
        nowhere = Path(os.devnull)
        length = path.stat().st_size
        goods = make_goods(path, nowhere, nowhere, length, KEY, processes=processes)
        if goods.offered.hex() != path.name:
            raise RuntimeError(f"{path.name} hashes to {goods.offered.hex()}")
        return goods.goods.hex()

    return case


def by_hashlib(path: Path, store: BlobStore) -> str:
    """Goods that are thrown away, made without the module in C."""
    vars(merkle)["tree_hashing"] = plain_tree_hashing
    try:
        return made(1)(path, store)
    finally:
        vars(merkle)["tree_hashing"] = tree_hashing


def kept(processes: int) -> Callable[[Path, BlobStore], str]:
    """Goods that are on the disk in the end."""

    def case(path: Path, store: BlobStore) -> str:
        goods = store.encrypt(Digest(bytes.fromhex(path.name)), KEY, processes)
        return goods.root.hex()

    return case


CASES: Final[Mapping[str, Callable[[Path, BlobStore], str]]] = {
    PLAIN: plain,
    f"{WHAT}: one process": made(1),
    f"{WHAT}: two processes": made(2),
    f"{WHAT}: one process, by hashlib": by_hashlib,
    "the same, kept: one process": kept(1),
    "the same, kept: two processes": kept(2),
}


def play(case: str, path: Path) -> dict[str, Any]:
    """Run one case here; return its seconds, its result, and peaks of memory in MiB."""
    store = BlobStore(path.parent)
    began = time.perf_counter()
    result = CASES[case](path, store)
    seconds = time.perf_counter() - began
    second = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "result": result, "mine": _own_peak(), "second": second}


def _own_peak() -> float:
    """Return the most memory that this program has held, in MiB.

    Not by `getrusage`, whose figure is at least that of whatever started this process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def rows(mib: int = 1024, rounds: int = 3) -> list[dict[str, Any]]:
    """The table of this benchmark: the median of each case, and of its ratio within a round."""
    played: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    with TemporaryDirectory() as folder:
        store = BlobStore(Path(folder))
        block = os.urandom(MIB)
        ref = store.put_chunks(block for _ in range(mib))
        for _ in range(rounds):
            for case, times in played.items():
                times.append(elsewhere(case, store.path(ref.root)))
                for root in store.roots() - {ref.root}:
                    store.delete(root)
    if (
        len({turn["result"] for case, turns in played.items() for turn in turns if case != PLAIN})
        > 1
    ):
        raise RuntimeError("one process and two made goods of different roots")
    rates = {
        case: [ref.byte_length / 1e6 / turn["seconds"] for turn in turns]
        for case, turns in played.items()
    }
    against = f"{PLAIN}: {statistics.median(rates[PLAIN]):.0f} MB/s"
    table = [
        {
            "case": f"{case}, {mib} MiB",
            "value": round(statistics.median(values), 1),
            "unit": "MB/s",
            "against": against,
            "ratio": round(
                statistics.median(a / b for a, b in zip(values, rates[PLAIN], strict=True)), 3
            ),
        }
        for case, values in rates.items()
    ]
    how = {
        "case": "leaves are hashed by",
        "value": "SHA extensions" if tree_hashing.IN_C else "hashlib",
        "unit": "",
        "against": None,
        "ratio": None,
    }
    return [*table, *memory(played, ref.byte_length / MIB), how]


def unit_rows(rounds: int = 200) -> list[dict[str, Any]]:
    """What a leaf, a node, and a KiB of a stream take, in µs, the best of all rounds."""
    one, other = memoryview(os.urandom(CHUNK)), memoryview(os.urandom(CHUNK))
    leaves = CHUNK // plain_tree_hashing.LEAF_BYTES
    nodes = CHUNK // (2 * DIGEST_BYTES)
    target = bytearray(CHUNK)
    cipher = Keystream(KEY)
    ways = {"by hashlib": plain_tree_hashing}
    if tree_hashing.IN_C:
        ways["in C"] = tree_hashing
    parts: dict[tuple[str, str], tuple[Callable[[], object], int]] = {}
    for way, module in ways.items():
        parts["a leaf", way] = (partial(module.leaf_hashes, one, 0), leaves)
        parts["a leaf of each of two blobs", way] = (
            partial(module.leaf_hashes_of_two, one, other, 0),
            leaves,
        )
        parts["a node", way] = (partial(module.parents, one), nodes)
    parts["ChaCha20", "for both"] = (partial(cipher.apply_into, one, target), leaves)
    parts["plain SHA-256", "for both"] = (partial(hashlib.sha256, one), leaves)
    best = dict.fromkeys(parts, math.inf)
    for _ in range(rounds):
        for part, (run, count) in parts.items():
            began = time.perf_counter()
            run()
            best[part] = min(best[part], (time.perf_counter() - began) / count * 1e6)
    table = []
    for (what, way), value in best.items():
        slow = best.get((what, "by hashlib"))
        table.append(
            {
                "case": f"{what}, {way}",
                "value": round(value, 3),
                "unit": "µs",
                "against": None if slow is None else f"by hashlib: {slow:.3f} µs",
                "ratio": None if slow is None else round(slow / value, 1),
            }
        )
    return table


def memory(played: Mapping[str, list[dict[str, Any]]], mib: float) -> list[dict[str, Any]]:
    """Peak resident memory of whoever made goods, the interpreter included."""
    peaks = {
        "one process": max(turn["mine"] for turn in played[f"{WHAT}: one process"]),
        "one process, kept": max(turn["mine"] for turn in played["the same, kept: one process"]),
        "second process": max(turn["second"] for turn in played[f"{WHAT}: two processes"]),
    }
    return [
        {
            "case": f"peak resident memory: {who}",
            "value": round(peak, 1),
            "unit": "MiB",
            "against": f"the file: {mib:.0f} MiB",
            "ratio": round(peak / mib, 3),
        }
        for who, peak in peaks.items()
    ]


def elsewhere(case: str, path: Path) -> dict[str, Any]:
    """Play one case in a fresh process, whose peak of memory is that of the case alone."""
    command = [sys.executable, __file__, "--case", case, "--path", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, help="3, of units 200")
    parser.add_argument("--units", action="store_true", help="what a KiB takes, part by part")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(play(arguments.case, arguments.path)))
        return
    if arguments.units:
        table = unit_rows(arguments.rounds or 200)
    else:
        table = rows(arguments.mib, arguments.rounds or 3)
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    for row in table:
        ratio = "" if row["ratio"] is None else f"×{row['ratio']}"
        print(f"{row['case']:<56} {row['value']:>8} {row['unit']:<5} {ratio}".rstrip())


if __name__ == "__main__":
    main()
