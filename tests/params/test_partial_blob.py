"""A blob on its way in: checked before it is written, and not lost when we are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.params.disk import CHUNK_BYTES
from node.params.errors import StoreError
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import Digest

BLOCK = b"".join(sha256(i.to_bytes(4)).digest() for i in range(5 * 32))
LENGTH = 2 * CHUNK_BYTES + 70_001
DATA = (BLOCK * (LENGTH // len(BLOCK) + 1))[:LENGTH]
HASHES = merkle.leaf_hashes(DATA)
ROOT = merkle.root_of_hashes(HASHES, LENGTH)
CHUNKS = [(0, CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES), (2 * CHUNK_BYTES, 70_001)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def piece(span: tuple[int, int]) -> bytes:
    return DATA[span[0] : span[0] + span[1]]


def test_a_transfer_fills_what_is_missing_and_then_it_is_a_blob(store: BlobStore) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        assert writer.missing() == CHUNKS
        assert not store.has(ROOT)
        for span in reversed(CHUNKS):
            writer.write(span[0], piece(span))
            assert span not in writer.missing()
        ref = writer.finish()
    assert ref == store.ref(ROOT)
    assert store.path(ROOT).read_bytes() == DATA
    assert store.hashes(ROOT) == HASHES
    assert len(list(store.path(ROOT).parent.iterdir())) == 2
    store.verify(ROOT)


def test_pieces_of_whole_leaves_may_come_in_any_size_and_twice(store: BlobStore) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        writer.write(1024, DATA[1024:3072])
        writer.write(1024, memoryview(DATA)[1024:3072])
        assert writer.missing()[:2] == [(0, 1024), (3072, CHUNK_BYTES - 3072)]
        writer.write(CHUNK_BYTES - 1024, DATA[CHUNK_BYTES - 1024 : CHUNK_BYTES + 1024])
        assert writer.missing()[1:3] == [
            (3072, CHUNK_BYTES - 4096),
            (CHUNK_BYTES + 1024, CHUNK_BYTES - 1024),
        ]
        writer.write(LENGTH - 369, DATA[-369:])
        assert writer.missing()[-1] == (2 * CHUNK_BYTES, 70_001 - 369)
        writer.write(0, DATA[: 2 * CHUNK_BYTES])
        assert writer.missing() == [(2 * CHUNK_BYTES, 70_001 - 369)]
        writer.write(0, DATA)
        assert writer.missing() == []
        writer.finish()
    store.verify(ROOT)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
@given(
    length=st.integers(1, 9000),
    order=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=12),
)
def test_what_is_missing_is_exactly_what_never_came(
    tmp_path: Path, length: int, order: list[tuple[int, int]]
) -> None:
    data, store = DATA[:length], BlobStore(tmp_path)
    root = merkle.root_of(data)
    here: set[int] = set()
    leaves = merkle.leaf_count(length)
    with store.writer(root, length, merkle.leaf_hashes(data)) as writer:
        for first, count in order:
            if first < leaves:
                writer.write(first * 1024, data[first * 1024 : (first + count) * 1024])
                here.update(range(first, min(leaves, first + count)))
        missing = {
            at // 1024 for start, size in writer.missing() for at in range(start, start + size)
        }
        assert missing == set(range(leaves)) - here
        for start, size in writer.missing():
            writer.write(start, data[start : start + size])
        writer.finish()
    assert store.path(root).read_bytes() == data
    store.delete(root)


def test_a_wrong_chunk_is_refused_and_nothing_of_it_is_written(
    store: BlobStore, tmp_path: Path
) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        for at in (0, 5000, CHUNK_BYTES - 1):
            bad = bytearray(piece(CHUNKS[0]))
            bad[at] ^= 1
            with pytest.raises(RemoteProtocolError) as caught:
                writer.write(0, bytes(bad))
            assert caught.value.reason == "wrong-chunk"
            assert f"leaf {at // 1024} " in caught.value.detail
        # right bytes in the wrong place, cut leaves, none at all, and more than there is
        for offset, data in [
            (1024, DATA[:1024]),
            (0, DATA[:1500]),
            (0, b""),
            (2 * CHUNK_BYTES, DATA[2 * CHUNK_BYTES :] + b"\0"),
            (2 * CHUNK_BYTES, DATA[2 * CHUNK_BYTES : -1]),
        ]:
            with pytest.raises(RemoteProtocolError, match="wrong-chunk"):
                writer.write(offset, data)
        for offset in (-1024, 1, LENGTH, 10 * LENGTH, 2**70):
            with pytest.raises(LocalProtocolError):
                writer.write(offset, DATA[:1024])
        assert writer.missing() == CHUNKS
    assert not any((tmp_path / f"{ROOT.hex()}.partial").read_bytes())


def test_it_is_no_blob_before_everything_is_here(store: BlobStore) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        writer.write(0, DATA[: 2 * CHUNK_BYTES])
        with pytest.raises(StoreError) as caught:
            writer.finish()
        assert caught.value.reason == "incomplete"
        assert not store.has(ROOT)


def test_a_transfer_goes_on_where_it_was_closed(store: BlobStore) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        writer.write(*[(start, piece((start, size))) for start, size in CHUNKS][1])
    with store.writer(ROOT, LENGTH) as writer:
        assert writer.missing() == [CHUNKS[0], CHUNKS[2]]
        for span in writer.missing():
            writer.write(span[0], piece(span))
        writer.finish()
    store.verify(ROOT)


KILLED_WHILE_RECEIVING = """
import os, signal, sys
from pathlib import Path
from node.params.store import BlobStore
data = Path(sys.argv[2]).read_bytes()
writer = BlobStore(Path(sys.argv[1])).writer(bytes.fromhex(sys.argv[3]), len(data))
writer.write(0, data[: 5 << 20])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_came_before_a_kill_need_not_come_again(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(DATA)
    store.put_hashes(ROOT, LENGTH, HASHES)
    result = subprocess.run(
        [
            sys.executable, "-c", KILLED_WHILE_RECEIVING,
            str(tmp_path), str(tmp_path / "sent"), ROOT.hex(),
        ],
        cwd=Path(__file__).parents[2],
        check=False,
    )  # fmt: skip
    assert result.returncode == -9
    with store.writer(ROOT, LENGTH) as writer:
        assert writer.missing() == CHUNKS[1:]  # the fifth MiB is of a chunk that was not whole
        for span in writer.missing():
            writer.write(span[0], piece(span))
        writer.finish()
    store.verify(ROOT)


def test_the_ticks_of_a_disk_that_lied_are_not_believed(store: BlobStore, tmp_path: Path) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        writer.write(0, piece(CHUNKS[0]))
        writer.write(*[(start, piece((start, size))) for start, size in CHUNKS][1])
    with (tmp_path / f"{ROOT.hex()}.partial").open("r+b") as partial:
        partial.seek(12345)
        partial.write(b"rot")
    (tmp_path / f"{ROOT.hex()}.received").write_bytes(b"\1\1\1\1\1")
    with store.writer(ROOT, LENGTH) as writer:
        assert writer.missing() == [CHUNKS[0], CHUNKS[2]]


def test_one_writer_at_a_time(store: BlobStore) -> None:
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        with pytest.raises(StoreError) as caught:
            store.writer(ROOT, LENGTH)
        assert caught.value.reason == "busy"
        writer.write(0, DATA)
        writer.finish()


def test_a_blob_that_is_here_already_needs_nothing(store: BlobStore) -> None:
    ref = store.put_bytes(DATA)
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        assert writer.missing() == []
        writer.write(0, piece(CHUNKS[0]))
        with pytest.raises(RemoteProtocolError, match="wrong-chunk"):
            writer.write(0, b"short")
        assert writer.finish() == ref
    store.verify(ROOT)


def test_a_transfer_needs_the_right_list_first(store: BlobStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.writer(ROOT, LENGTH)
    assert caught.value.reason == "missing-hashes"
    with pytest.raises(RemoteProtocolError, match="wrong-hash-list"):
        store.writer(Digest(bytes(32)), LENGTH, HASHES)
    store.put_hashes(ROOT, LENGTH, HASHES)
    with pytest.raises(StoreError) as caught:
        store.writer(ROOT, LENGTH - 1)
    assert caught.value.reason == "corrupt-hashes"


def test_a_closed_writer_writes_into_no_other_file(store: BlobStore, tmp_path: Path) -> None:
    writer = store.writer(ROOT, LENGTH, HASHES)
    writer.close()
    writer.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)  # takes the number that is free
    try:
        with pytest.raises(StoreError):
            writer.write(0, DATA[:1024])
    finally:
        os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
