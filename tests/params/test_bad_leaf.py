"""A bad leaf is found without a byte of room, and never where our own disk changed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.params import store as store_module
from node.params.errors import StoreError
from node.params.store import BlobStore
from node.protocol import merkle
from node.protocol.delivery import Keystream
from node.protocol.types import Digest

KEY = b"\x5a" * 32
LEAVES = 600
DATA = b"".join(index.to_bytes(8, "big") * 128 for index in range(LEAVES)) + b"a short leaf"


def delivery(store: BlobStore, *bad: int) -> tuple[Digest, Digest]:
    """Keep goods with these leaves bad, and the list of what was offered; return both roots."""
    offered = merkle.root_of(DATA)
    goods = bytearray(Keystream(KEY).apply(DATA))
    for index in bad:
        goods[index * 1024 + 3] ^= 1
    store.put_hashes(offered, len(DATA), merkle.leaf_hashes(DATA))
    return store.put_bytes(bytes(goods)).root, offered


def spoil(path: Path, at: int) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("bad", [(), (0,), (255, 256), (299, 600), (600,)])
def test_the_first_bad_leaf_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    store = BlobStore(tmp_path)
    goods, offered = delivery(store, *bad)

    def full(*_: object) -> None:
        raise StoreError("disk-full", "no space is left")

    monkeypatch.setattr(store_module, "drafting", full)
    assert store.bad_leaf(goods, KEY, offered) == (bad[0] if bad else None)


def test_a_leaf_that_our_disk_changed_is_passed_over(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    goods, offered = delivery(store, 400)
    for index in (7, 399):
        spoil(store.path(goods), index * 1024 + 5)
    assert store.bad_leaf(goods, KEY, offered) == 400
    spoil(store.path(goods), 400 * 1024 + 5)
    assert store.bad_leaf(goods, KEY, offered) is None


def test_a_list_that_our_disk_changed_accuses_nobody(tmp_path: Path) -> None:
    for spoilt in (0, 1):
        store = BlobStore(tmp_path / str(spoilt))
        roots = delivery(store)
        spoil(store.path(roots[spoilt]).with_suffix(".hashes"), 70)
        with pytest.raises(StoreError) as caught:
            store.bad_leaf(roots[0], KEY, roots[1])
        assert caught.value.reason == "corrupt-hashes"
