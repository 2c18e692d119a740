"""The blob store: whole files under their roots, private, and never believed unhashed."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from node.params.errors import BadGoodsError, StoreError
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.delivery import Keystream, apply_to_leaf
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import Digest

KEY = sha256(b"one delivery").digest()
MIB = 1 << 20


def blob(length: int, seed: bytes = b"") -> bytes:
    block = b"".join(sha256(seed + i.to_bytes(4)).digest() for i in range(-(-length // 32) % 8192))
    return (block * (length // max(1, len(block)) + 1))[:length] or bytes(length)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def folder(store: BlobStore, tmp_path: Path) -> Path:
    return tmp_path / "blobs"


def reason_of(caught: pytest.ExceptionInfo[StoreError]) -> str:
    return caught.value.reason


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 256 * 1024, 256 * 1024 + 1, 5 * MIB + 77])
def test_a_blob_is_kept_under_its_root(store: BlobStore, length: int) -> None:
    data = blob(length)
    ref = store.put_bytes(data)
    assert ref.root == merkle.root_of(data)
    assert (ref.byte_length, ref.leaf_count) == (length, -(-length // 1024))
    assert store.has(ref.root)
    assert store.ref(ref.root) == ref
    assert store.roots() == {ref.root}
    assert store.path(ref.root).read_bytes() == data
    assert store.hashes(ref.root) == merkle.leaf_hashes(data)
    assert store.read(ref.root, length // 3, length // 2) == data[length // 3 :][: length // 2]
    store.verify(ref.root)


def test_pieces_of_any_size_make_the_same_blob(store: BlobStore) -> None:
    data = blob(10_000)
    assert store.put_chunks([data[:1], data[1:5000], b"", data[5000:]]) == store.put_bytes(data)


def test_leaves_come_with_their_proofs(store: BlobStore) -> None:
    data = blob(5 * 1024 + 100)
    ref = store.put_bytes(data)
    for index in range(ref.leaf_count):
        leaf = store.leaf(ref.root, index)
        assert leaf == data[index * 1024 : index * 1024 + 1024]
        assert store.hashes(ref.root, index, 1) == merkle.leaf_hash(index, leaf)
        path = store.proof(ref.root, index)
        assert merkle.verify_proof(
            ref.root, merkle.leaf_hash(index, leaf), index, path, ref.leaf_count, ref.byte_length
        )


def test_a_range_that_is_not_there_is_refused(store: BlobStore) -> None:
    root = store.put_bytes(blob(3000)).root
    for offset, length in [(0, 3001), (3000, 1), (-1, 5), (5, -1), (0, 2**62), (2**62, 2**62)]:
        with pytest.raises(StoreError) as caught:
            store.read(root, offset, length)
        assert reason_of(caught) == "bad-range"
    for first, count in [(0, 4), (4, None), (-1, 1), (3, 1)]:
        with pytest.raises(StoreError) as caught:
            store.hashes(root, first, count)
        assert reason_of(caught) == "bad-range"
    assert store.read(root, 3000, 0) == b""


def test_what_is_not_there_is_missing(store: BlobStore) -> None:
    root = Digest(bytes(32))
    assert not store.has(root)
    for call in (store.ref, store.verify, lambda r: store.read(r, 0, 1)):
        with pytest.raises(StoreError) as caught:
            call(root)
        assert reason_of(caught) == "missing-blob"
    with pytest.raises(StoreError) as caught:
        store.hashes(root)
    assert reason_of(caught) == "missing-hashes"
    store.delete(root)
    with pytest.raises(LocalProtocolError):
        store.has(Digest(b"../../etc/passwd"))
    with pytest.raises(LocalProtocolError):
        store.put_bytes(b"")


def test_everything_is_private_to_its_owner(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o755)
    previous = os.umask(0)
    try:
        store = BlobStore(wide)
        ref = store.put_bytes(blob(3000))
        store.encrypt(ref.root, KEY)
        other = blob(2000, b"other")
        writer = store.writer(merkle.root_of(other), len(other), merkle.leaf_hashes(other))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(wide.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in wide.iterdir()}
    assert modes == {0o600}
    assert len(list(wide.iterdir())) == 7
    writer.close()


def test_a_link_in_the_store_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"the owner's own")
    root = Digest(bytes(32))
    store.path(root).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError) as caught:
        store.read(root, 0, 3)
    assert reason_of(caught) == "disk"


def test_deleting_leaves_nothing(store: BlobStore, folder: Path) -> None:
    root = store.put_bytes(blob(3000)).root
    store.delete(root)
    store.delete(root)
    assert not store.has(root)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_a_byte_that_the_disk_changed_is_found(store: BlobStore, at: int) -> None:
    root = store.put_bytes(blob(3000)).root
    spoil(store.path(root), at)
    with pytest.raises(StoreError) as caught:
        store.verify(root)
    assert reason_of(caught) == "corrupt-blob"
    with pytest.raises(StoreError) as caught:
        store.encrypt(root, KEY)
    assert reason_of(caught) == "corrupt-blob"


def test_a_file_that_grew_or_shrank_is_found(store: BlobStore) -> None:
    for change in (-1, 1, -3000):
        root = store.put_bytes(blob(3000)).root
        os.truncate(store.path(root), 3000 + change)
        with pytest.raises(StoreError, match="corrupt"):
            store.verify(root)


def test_a_hash_list_that_the_disk_changed_is_found(store: BlobStore) -> None:
    for length in (96, 64):
        root = store.put_bytes(blob(3000)).root
        path = store.path(root).with_suffix(".hashes")
        spoil(path, 40 if length == 96 else 0)
        os.truncate(path, length)
        with pytest.raises(StoreError) as caught:
            store.verify(root)
        assert reason_of(caught) == "corrupt-hashes"


def spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# -- goods -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 1024, 3000, 256 * 1024 + 5, 2 * MIB])
def test_goods_open_with_their_key_into_what_was_offered(tmp_path: Path, length: int) -> None:
    seller, buyer = BlobStore(tmp_path / "seller"), BlobStore(tmp_path / "buyer")
    data = blob(length)
    offered = seller.put_bytes(data)
    goods = seller.encrypt(offered.root, KEY)
    ciphertext = seller.path(goods.root).read_bytes()
    assert ciphertext == Keystream(KEY).apply(data)
    assert goods.byte_length == length
    assert buyer.put_bytes(ciphertext).root == goods.root
    buyer.put_hashes(offered.root, length, seller.hashes(offered.root))
    assert not buyer.has(offered.root)
    assert buyer.decrypt_to(goods.root, KEY, offered.root) == offered
    assert buyer.path(offered.root).read_bytes() == data


@pytest.mark.parametrize("bad", [0, 1, 299, 600])
def test_the_first_bad_leaf_of_bad_goods_is_the_evidence(tmp_path: Path, bad: int) -> None:
    buyer = BlobStore(tmp_path)
    data = blob(600 * 1024 + 9)
    offered = merkle.root_of(data)
    cheat = bytearray(Keystream(KEY).apply(data))
    cheat[bad * 1024 + 3] ^= 1
    cheat[-1] ^= 1
    goods = buyer.put_bytes(bytes(cheat))
    buyer.put_hashes(offered, len(data), merkle.leaf_hashes(data))
    with pytest.raises(BadGoodsError) as caught:
        buyer.decrypt_to(goods.root, KEY, offered)
    assert caught.value.index == bad
    assert caught.value.reason == "bad-goods"
    # what a court checks: the leaf is of the goods, and does not open to what was offered
    leaf, index = buyer.leaf(goods.root, bad), bad
    path = buyer.proof(goods.root, index)
    opened = merkle.leaf_hash(index, apply_to_leaf(KEY, index, leaf))
    assert merkle.verify_proof(
        goods.root, merkle.leaf_hash(index, leaf), index, path, goods.leaf_count, goods.byte_length
    )
    promised = buyer.hashes(offered, index, 1)
    path = buyer.proof(offered, index)
    assert merkle.verify_proof(offered, promised, index, path, goods.leaf_count, len(data))
    assert opened != promised
    assert not buyer.has(offered)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_wrong_key_shows_in_the_first_leaf(store: BlobStore) -> None:
    offered = store.put_bytes(blob(5000))
    goods = store.encrypt(offered.root, KEY)
    with pytest.raises(BadGoodsError) as caught:
        store.decrypt_to(goods.root, bytes(32), offered.root)
    assert caught.value.index == 0


def test_no_encryptor_is_accused_for_our_own_disk(store: BlobStore) -> None:
    data = blob(5000)
    offered = store.put_bytes(data)
    goods = store.encrypt(offered.root, KEY)
    spoil(store.path(goods.root), 2000)
    with pytest.raises(StoreError) as caught:
        store.decrypt_to(goods.root, KEY, offered.root)
    assert reason_of(caught) == "corrupt-blob"
    assert store.encrypt(offered.root, KEY) == goods
    spoil(store.path(offered.root).with_suffix(".hashes"), 70)
    with pytest.raises(StoreError) as caught:
        store.decrypt_to(goods.root, KEY, offered.root)
    assert reason_of(caught) == "corrupt-hashes"


def test_no_encryptor_is_accused_by_files_that_agree_with_each_other_only(
    store: BlobStore,
) -> None:
    offered = store.put_bytes(blob(5000))
    goods = store.encrypt(offered.root, KEY)
    spoil(store.path(goods.root), 2000)
    forged = merkle.leaf_hashes(store.path(goods.root).read_bytes())
    store.path(goods.root).with_suffix(".hashes").write_bytes(forged)
    with pytest.raises(StoreError) as caught:
        store.decrypt_to(goods.root, KEY, offered.root)
    assert reason_of(caught) == "corrupt-hashes"


def test_other_goods_are_not_taken_for_those_under_the_root(store: BlobStore) -> None:
    offered, other = merkle.root_of(blob(5000)), blob(5000, b"other")
    goods = store.encrypt(store.put_bytes(other).root, KEY)
    store.path(offered).with_suffix(".hashes").write_bytes(merkle.leaf_hashes(other))
    with pytest.raises(StoreError) as caught:
        store.decrypt_to(goods.root, KEY, offered)
    assert reason_of(caught) == "corrupt-hashes"
    assert not store.has(offered)


def test_goods_cannot_be_opened_before_the_hash_list_is_here(store: BlobStore) -> None:
    goods = store.put_bytes(blob(3000))
    with pytest.raises(StoreError) as caught:
        store.decrypt_to(goods.root, KEY, Digest(bytes(32)))
    assert reason_of(caught) == "missing-hashes"


def test_only_the_list_under_the_root_is_kept(store: BlobStore, folder: Path) -> None:
    data = blob(3000)
    root, hashes = merkle.root_of(data), merkle.leaf_hashes(data)
    for length, other in [
        (3001, hashes),
        (2048, hashes[:64]),
        (3000, hashes[:-1]),
        (3000, hashes[:-1] + bytes([hashes[-1] ^ 1])),
        (3000, b""),
        (0, b""),
        (-1, hashes),
        (2**64, hashes),
    ]:
        with pytest.raises(RemoteProtocolError) as caught:
            store.put_hashes(root, length, other)
        assert caught.value.reason == "wrong-hash-list"
    assert list(folder.iterdir()) == []
    assert store.put_hashes(root, 3000, hashes).leaf_count == 3


# -- disks that are full, and processes that are killed ------------------------------------


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: the disk says no as a full one does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_has_a_name_and_leaves_nothing(
    store: BlobStore, folder: Path, small_files: None
) -> None:
    kept = store.put_bytes(blob(60_000))
    before = sorted(folder.iterdir())
    with pytest.raises(StoreError) as caught:
        store.put_bytes(blob(70_000))
    assert reason_of(caught) == "disk-full"
    data = blob(3 * MIB)
    with pytest.raises(StoreError) as caught:
        store.put_hashes(merkle.root_of(data), len(data), merkle.leaf_hashes(data))
    assert reason_of(caught) == "disk-full"
    with pytest.raises(StoreError) as caught:
        store.writer(merkle.root_of(blob(70_000)), 70_000, merkle.leaf_hashes(blob(70_000)))
    assert reason_of(caught) == "disk-full"
    store.delete(merkle.root_of(blob(70_000)))
    assert sorted(folder.iterdir()) == before
    store.verify(kept.root)


def test_a_folder_that_cannot_be_one_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError) as caught:
        BlobStore(tmp_path / "file")
    assert reason_of(caught) == "disk"


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from node.params.store import BlobStore
def chunks():
    yield bytes(300_000)
    os.kill(os.getpid(), signal.SIGKILL)
BlobStore(Path(sys.argv[1])).put_chunks(chunks())
"""


def test_a_killed_process_leaves_no_half_blob_and_its_draft_can_be_swept(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == -9
    store = BlobStore(tmp_path)
    assert store.roots() == frozenset()
    ref = store.put_bytes(b"kept")
    assert store.sweep() == 2
    assert store.sweep() == 0
    assert store.roots() == {ref.root}
    assert len(list(tmp_path.iterdir())) == 2


MEASURED = """
import resource, sys
from pathlib import Path
from node.params.store import BlobStore
from node.protocol.merkle import StreamingRoot
store, size = BlobStore(Path(sys.argv[1])), int(sys.argv[2]) << 20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.encrypt(store.put_bytes(bytes(1 << 20)).root, bytes(32))
before = peak()
ref = store.put_chunks(bytes(1 << 20) for _ in range(size >> 20))
goods = store.encrypt(ref.root, bytes(32))
store.decrypt_to(goods.root, bytes(32), ref.root)
store.verify(ref.root)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_blob(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), "64"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(result.stdout) < 12 * 1024  # KiB, for a blob of 64 MiB
