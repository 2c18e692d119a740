"""What an abandoned download leaves on the disk: found, spared while it is needed, and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from node.journal import Journal
from node.observe import Observer
from node.params import disk
from node.params.errors import StoreError
from node.params.partial import PartialBlob
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.eip712 import Domain
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Address, Digest, UnixTime
from node.station.station import Keys, Station

LENGTH = 9_000
DATA = bytes(range(250)) * 36
HASHES = merkle.leaf_hashes(DATA)
ROOT = merkle.root_of_hashes(HASHES, LENGTH)
OTHER = Digest(bytes(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(folder: Path) -> BlobStore:
    return BlobStore(folder)


def abandon(store: BlobStore) -> None:
    """Begin a download, and stop after its first leaf."""
    with store.writer(ROOT, LENGTH, HASHES) as writer:
        writer.write(0, DATA[:1024])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_abandoned_download_is_found_and_deleted(store: BlobStore, folder: Path) -> None:
    whole = store.put_bytes(b"a whole blob").root
    abandon(store)
    assert store.roots() == {whole}
    assert store.leftovers() == {ROOT}
    assert store.delete_leftovers(kept=()) == {ROOT}
    assert names(folder) == [whole.hex(), f"{whole.hex()}.hashes"]
    assert store.leftovers() == store.delete_leftovers(kept=()) == frozenset()


def test_a_hash_list_that_no_blob_followed_is_a_leftover(store: BlobStore, folder: Path) -> None:
    store.put_hashes(ROOT, LENGTH, HASHES)
    assert store.delete_leftovers(kept=()) == {ROOT}
    assert names(folder) == []


@pytest.mark.parametrize("suffix", ["", ".partial", ".received"])
def test_any_file_without_the_others_is_a_leftover(
    store: BlobStore, folder: Path, suffix: str
) -> None:
    (folder / f"{ROOT.hex()}{suffix}").write_bytes(DATA)
    assert store.leftovers() == {ROOT}
    store.delete_leftovers(kept=())
    assert names(folder) == []


def test_files_that_are_no_blobs_stay(store: BlobStore, folder: Path) -> None:
    strangers = [f"{ROOT.hex()}.txt", f"{ROOT.hex()[:-1]}.hashes", "draft-1", "notes"]
    for name in strangers:
        (folder / name).write_bytes(b"")
    assert store.delete_leftovers(kept=()) == frozenset()
    assert names(folder) == sorted(strangers)


def test_a_download_that_a_trade_still_needs_goes_on_where_it_was_cut(store: BlobStore) -> None:
    abandon(store)
    assert store.delete_leftovers(kept=[ROOT]) == frozenset()
    with store.writer(ROOT, LENGTH) as writer:
        writer.write(0, DATA)
        writer.finish()
    store.verify(ROOT)


def test_an_open_download_is_no_leftover_until_it_is_closed(store: BlobStore) -> None:
    writer = store.writer(ROOT, LENGTH, HASHES)
    with pytest.raises(StoreError, match="busy"):
        store.writer(ROOT, LENGTH)
    assert store.leftovers() == store.delete_leftovers(kept=()) == frozenset()
    writer.close()
    writer.close()
    assert store.leftovers() == {ROOT}
    with store.writer(ROOT, LENGTH) as again:
        writer.close()
        assert store.delete_leftovers(kept=()) == frozenset()
        again.write(0, DATA)
        again.finish()
    store.verify(ROOT)


def test_a_download_is_open_from_its_first_file_on(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*given: Any) -> PartialBlob:
        assert store.delete_leftovers(kept=()) == frozenset()
        return PartialBlob(*given)

    monkeypatch.setattr("node.params.store.PartialBlob", opened)
    store.writer(ROOT, LENGTH, HASHES).close()
    assert store.leftovers() == {ROOT}


def test_a_download_that_could_not_begin_holds_on_to_nothing(store: BlobStore) -> None:
    store.put_hashes(ROOT, LENGTH, HASHES)
    with pytest.raises(StoreError, match="corrupt-hashes"):
        store.writer(ROOT, LENGTH + 1)
    with pytest.raises(RemoteProtocolError, match="wrong-hash-list"):
        store.writer(ROOT, LENGTH, bytes(len(HASHES)))
    assert store.delete_leftovers(kept=()) == {ROOT}


def test_a_blob_that_is_being_put_in_its_place_is_no_leftover(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, found = disk.Draft.keep, []

    def look(draft: disk.Draft, path: Path) -> None:
        keep(draft, path)
        found.append(store.delete_leftovers(kept=()))

    monkeypatch.setattr(disk.Draft, "keep", look)
    plain = store.put_bytes(DATA).root
    goods = store.encrypt(plain, bytes(32)).root
    store.path(plain).unlink()
    assert store.decrypt_to(goods, bytes(32), plain).root == plain
    assert found == 6 * [frozenset()]
    assert store.roots() == {plain, goods}
    for root in (plain, goods):
        store.path(root).unlink()
    assert store.leftovers() == {plain, goods}


@pytest.fixture
def station(store: BlobStore, tmp_path: Path) -> Iterator[Station]:
    journal = Journal(tmp_path / "journal.db")
    yield Station(
        keys=Keys(account=b"\1" * 32, peer=b"\2" * 32),
        domain=Domain(chain_id=1, escrow=Address("0x" + "11" * 20)),
        network=cast("Any", None),
        journal=journal,
        blobs=store,
        observer=Observer(),
        clock=lambda: UnixTime(1_000_000),
        trusted_brokers=frozenset(),
        task="a task",
    )
    journal.close()


def test_a_node_that_forgets_its_blobs_forgets_its_leftovers(
    station: Station, store: BlobStore, folder: Path
) -> None:
    blob = store.put_bytes(b"of a trade that is over").root
    abandon(store)
    station.forget_blobs({blob, ROOT})
    assert store.roots() == {blob}
    assert store.leftovers() == {ROOT}
    with station.making_blobs():
        station.forget_blobs(set())
    assert store.roots() == {blob}
    assert store.leftovers() == {ROOT}
    station.forget_blobs(set())
    assert names(folder) == []
