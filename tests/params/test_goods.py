"""Goods are the same bytes whoever makes them: one process, or two with a half each."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256, shake_256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.params import goods
from node.params.errors import StoreError
from node.params.goods import BATCH_BYTES, Second, Stretch, make_goods, second_process
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.delivery import Keystream
from node.protocol.errors import LocalProtocolError
from node.protocol.merkle import BATCH_LEAVES

KEY = sha256(b"one delivery").digest()
NOWHERE = Path("/dev/null")


def blob(length: int) -> bytes:
    """Return bytes of which no two leaves within a batch are alike."""
    block = shake_256(b"parameters").digest(BATCH_BYTES - 1)
    return (block * (length // len(block) + 1))[:length]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def stretch(source: Path, begin: int, end: int) -> Stretch:
    return Stretch(
        source=str(source), goods=os.devnull, hashes=os.devnull, key=KEY.hex(), begin=begin, end=end
    )


GOLDEN = {
    3_000: (
        "7e096a844c0a744f59680eeaa61466b4f9a1b044a543faf34450338a6906c4be",
        "2c1b0f36acf5ec55b0bb65f88bb8e26a45abd35ee2823ebf2ca777757a5b8f95",
        "ef2b144f7d8bbf4638a3f86ca69607029ff4e30e3e7f86031137b9adbea7d772",
    ),
    2 * BATCH_BYTES + 5_000: (
        "a3f426f7825a0f93452a4bb2e83396f9ce319badecf301eec45dc18d511c221c",
        "cfbc3d02e968fa7ee7045068df3ef0a0c96218ee7314f20570d9c22598724d36",
        "0c61e888582e53ca6ba8ae8d25a86e939227a3175f96a7f20e356fb1e99acab6",
    ),
}
"""Root, SHA-256 and SHA-256 of the leaf hashes of the goods, by hashlib and ChaCha20 alone."""


@pytest.mark.parametrize("processes", [None, 1, 2])
@pytest.mark.parametrize("length", GOLDEN)
def test_goods_are_made_as_they_have_always_been(
    store: BlobStore, length: int, processes: int | None
) -> None:
    made = store.encrypt(store.put_bytes(blob(length)).root, KEY, processes)
    assert (
        made.root.hex(),
        sha256(store.path(made.root).read_bytes()).hexdigest(),
        sha256(store.hashes(made.root)).hexdigest(),
    ) == GOLDEN[length]
    store.verify(made.root)


@pytest.mark.parametrize(
    "length", [BATCH_BYTES, BATCH_BYTES + 1, 2 * BATCH_BYTES, 3 * BATCH_BYTES - 5]
)
def test_two_processes_make_what_one_makes(store: BlobStore, length: int) -> None:
    data = blob(length)
    offered = store.put_bytes(data)
    alone = store.encrypt(offered.root, KEY, 1)
    store.delete(alone.root)
    assert store.encrypt(offered.root, KEY, 2) == alone
    store.verify(alone.root)
    assert store.path(alone.root).read_bytes() == Keystream(KEY).apply(data)
    assert store.decrypt_to(alone.root, KEY, offered.root) == offered


def test_the_second_process_does_its_half(tmp_path: Path) -> None:
    source = tmp_path / "blob"
    source.write_bytes(blob(2 * BATCH_BYTES + 77))
    half = stretch(source, BATCH_BYTES, 2 * BATCH_BYTES + 77)
    with second_process(half) as second:
        assert second.nodes() == half.nodes()


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "import os; os.kill(os.getpid(), 9)",
        "print('done')",
        "import sys; sys.stdout.buffer.write(bytes(64)); raise SystemExit(1)",
    ],
)
def test_a_second_process_that_fails_costs_nothing_but_time(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    offered = store.put_bytes(blob(BATCH_BYTES + 5_000))
    alone = store.encrypt(offered.root, KEY, 1)
    monkeypatch.setattr(goods, "_PROGRAM", ("-c", program))
    assert store.encrypt(offered.root, KEY, 2) == alone
    store.verify(alone.root)


def test_a_machine_without_room_for_a_second_process_makes_goods_all_the_same(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = store.put_bytes(blob(BATCH_BYTES + 5_000))
    alone = store.encrypt(offered.root, KEY, 1)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert store.encrypt(offered.root, KEY, 2) == alone


@pytest.mark.parametrize("at", [17, BATCH_BYTES + 17])
@pytest.mark.parametrize("processes", [1, 2])
def test_goods_of_a_blob_that_the_disk_changed_are_not_sold(
    store: BlobStore, processes: int, at: int
) -> None:
    root = store.put_bytes(blob(2 * BATCH_BYTES)).root
    data = bytearray(store.path(root).read_bytes())
    data[at] ^= 1
    store.path(root).write_bytes(data)
    with pytest.raises(StoreError) as caught:
        store.encrypt(root, KEY, processes)
    assert caught.value.reason == "corrupt-blob"
    assert len(list(store.path(root).parent.iterdir())) == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_a_blob_that_shrank_is_found(tmp_path: Path, processes: int) -> None:
    source = tmp_path / "blob"
    source.write_bytes(blob(2 * BATCH_BYTES))
    with pytest.raises(StoreError) as caught:
        make_goods(source, NOWHERE, NOWHERE, 2 * BATCH_BYTES + 1, KEY, processes=processes)
    assert caught.value.reason == "corrupt-blob"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond one and a half batches: the disk says no as a full one does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_is_full_has_a_name_whoever_met_it(
    store: BlobStore, small_files: None, processes: int
) -> None:
    root = store.put_bytes(blob(2 * BATCH_BYTES)).root
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BATCH_BYTES * 3 // 2, hard))
    with pytest.raises(StoreError) as caught:
        store.encrypt(root, KEY, processes)
    assert caught.value.reason == "disk-full"
    assert len(list(store.path(root).parent.iterdir())) == 2


def test_nobody_reads_the_key_in_a_list_of_processes(tmp_path: Path) -> None:
    source = tmp_path / "blob"
    source.touch()
    os.truncate(source, 1 << 40)  # it will not be through with it
    with second_process(stretch(source, BATCH_BYTES, 1 << 40)) as second:
        process = second._process
        assert process is not None
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert KEY.hex().encode() not in shown
            assert KEY not in shown
    assert process.returncode == -9


def test_a_second_process_ends_with_the_first(tmp_path: Path) -> None:
    source = tmp_path / "blob"
    source.touch()
    os.truncate(source, 1 << 40)
    with second_process(stretch(source, BATCH_BYTES, 1 << 40)) as second:
        process = second._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 1


def test_a_large_blob_is_made_by_two_processes_where_there_are_two_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Stretch] = []

    @contextmanager
    def record(half: Stretch) -> Iterator[Second]:
        asked.append(half)
        yield Second(half, None)

    source = tmp_path / "blob"
    source.write_bytes(blob(2 * BATCH_BYTES))
    monkeypatch.setattr(goods, "second_process", record)
    monkeypatch.setattr(goods, "TWO_PROCESSES_FROM", 2 * BATCH_BYTES)
    for cores, length, halves in [
        (2, 2 * BATCH_BYTES - 1, 0),
        (1, 2 * BATCH_BYTES, 0),
        (2, 2 * BATCH_BYTES, 1),
    ]:
        asked.clear()
        monkeypatch.setattr(goods, "_cores", lambda cores=cores: cores)
        make_goods(source, NOWHERE, NOWHERE, length, KEY)
        assert len(asked) == halves
    assert (asked[0].begin, asked[0].end) == (BATCH_BYTES, 2 * BATCH_BYTES)


@pytest.mark.parametrize("processes", [0, 3, -1])
def test_goods_are_made_by_one_process_or_by_two(tmp_path: Path, processes: int) -> None:
    with pytest.raises(LocalProtocolError):
        make_goods(tmp_path / "blob", NOWHERE, NOWHERE, 1, KEY, processes=processes)


MEASURED = """
import resource, sys
from pathlib import Path
from node.params.store import BlobStore
store, size = BlobStore(Path(sys.argv[1])), int(sys.argv[2]) << 20
peak = lambda who: resource.getrusage(who).ru_maxrss
before = peak(resource.RUSAGE_SELF)
ref = store.put_chunks(bytes(1 << 20) for _ in range(size >> 20))
store.encrypt(ref.root, bytes(32), 2)
print(peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN))
"""


def test_neither_process_holds_the_blob(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), "96"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    more, second = map(int, result.stdout.split())
    assert more < 12 * 1024  # KiB, for a blob of 96 MiB
    assert 0 < second < 64 * 1024  # an interpreter and what it imports


@given(st.binary(max_size=5_000), st.integers(0, 2**40))
def test_leaves_are_hashed_side_by_side_as_they_are_alone(one: bytes, first: int) -> None:
    other = Keystream(KEY).apply(one)
    want = merkle.leaf_hashes(one, first), merkle.leaf_hashes(other, first)
    assert merkle.leaf_hashes_of_two(one, memoryview(other), first) == want


def test_blobs_of_two_lengths_are_not_hashed_side_by_side() -> None:
    with pytest.raises(LocalProtocolError):
        merkle.leaf_hashes_of_two(bytes(1024), bytes(1025))


@pytest.mark.parametrize("more", [1, BATCH_LEAVES, BATCH_LEAVES + 1, 2 * BATCH_LEAVES + 9])
def test_nodes_that_were_made_apart_lead_to_the_root(more: int) -> None:
    leaves = BATCH_LEAVES + more
    hashes = b"".join(sha256(i.to_bytes(4)).digest() for i in range(leaves))
    root = merkle.root_of_hashes(hashes, leaves * 1024)
    nodes = b""
    for part in (hashes[: BATCH_LEAVES * 32], hashes[BATCH_LEAVES * 32 :]):
        top = merkle.TreeTop()
        top.update(part)
        nodes += top.batches()
    assert merkle.root_of_batches(nodes, leaves * 1024) == root
    for other in (nodes[32:], nodes + bytes(32), nodes[:-1]):
        with pytest.raises(LocalProtocolError):
            merkle.root_of_batches(other, leaves * 1024)
    with pytest.raises(LocalProtocolError):
        merkle.root_of_batches(nodes[:32], BATCH_LEAVES * 1024)
