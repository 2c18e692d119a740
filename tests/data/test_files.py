from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.data.files import DataError, locate, read_bounded, read_checked
from node.data.idx import read_idx
from node.data.rows import Dataset, Rows
from tests.data.small import idx, toy


def test_an_idx_file_is_read_as_it_was_written() -> None:
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_idx(idx(images), axes=3), images)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x08\x01",
        idx(np.zeros((2, 3)))[:-1],
        idx(np.zeros((2, 3))) + b"\x00",
        b"\x00\x00\x0d\x02" + idx(np.zeros((2, 3)))[4:],
        b"\x01\x00\x08\x02" + idx(np.zeros((2, 3)))[4:],
        idx(np.zeros(6)),
        b"\x00\x00\x08\x02" + b"\xff" * 8,
    ],
)
def test_a_damaged_idx_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        read_idx(data, axes=2)


@given(data=st.binary(max_size=64), axes=st.integers(0, 4))
def test_any_bytes_are_an_array_or_a_data_error(data: bytes, axes: int) -> None:
    try:
        array = read_idx(data, axes=axes)
    except DataError:
        return
    assert array.ndim == axes
    assert array.size == len(data) - 4 - 4 * axes


def test_a_file_with_another_hash_is_refused_and_both_hashes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(b"seven")
    wanted = hashlib.sha256(b"seven").hexdigest()
    assert read_checked(path, wanted) == b"seven"
    path.write_bytes(b"eight")
    with pytest.raises(DataError, match=wanted):
        read_checked(path, wanted)


def test_the_hash_of_a_gzipped_file_is_that_of_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    for level in (1, 9):
        path.write_bytes(gzip.compress(b"seven" * 100, level))
        wanted = hashlib.sha256(b"seven" * 100).hexdigest()
        assert read_checked(path, wanted) == b"seven" * 100


ZIPPED = gzip.compress(b"seven", mtime=0)


@pytest.mark.parametrize(
    "data",
    [ZIPPED[:-3], b"seven", ZIPPED[:-8] + b"\x00" * 8],
    ids=["cut off", "not zipped", "wrong checksum"],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_bounded(path)


def test_a_file_is_unpacked_no_further_than_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(10_000_000)))
    assert len(read_bounded(path, 10_000_000)) == 10_000_000
    with pytest.raises(DataError, match="more than 9999999 bytes"):
        read_bounded(path, 9_999_999)
    plain = tmp_path / "plain"
    plain.write_bytes(b"12345")
    with pytest.raises(DataError, match="more than 4 bytes"):
        read_bounded(plain, 4)
    with pytest.raises(DataError, match="cannot read"):
        read_bounded(tmp_path)


def test_what_is_missing_is_named_for_every_place_that_was_looked_at(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "one").write_bytes(b"")
    places = (tmp_path / "half", tmp_path / "none")
    with pytest.raises(DataError) as caught:
        locate("Toys", ("one", "two"), places, "ask for them")
    told = str(caught.value)
    assert f"{tmp_path / 'half'} (lacks two)" in told
    assert f"{tmp_path / 'none'} (no such folder" in told
    assert told.endswith("To get it: ask for them")
    (tmp_path / "half" / "two.gz").write_bytes(b"")
    assert locate("Toys", ("one", "two"), places, "") == tmp_path / "half"


def test_rows_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        toy(10).train.labels_R[0] = 1


def test_rows_have_classes_or_values_and_say_which() -> None:
    inputs_RF = np.zeros((2, 1), dtype=np.float32)
    classes = Rows(inputs_RF=inputs_RF, targets_R=np.array([1, 0], dtype=np.int64))
    values = Rows(inputs_RF=inputs_RF, targets_R=np.array([1.5, 0], dtype=np.float32))
    assert classes.labels_R.tolist() == [1, 0]
    assert values.values_R.tolist() == [1.5, 0]
    with pytest.raises(DataError):
        _ = classes.values_R
    with pytest.raises(DataError):
        _ = values.labels_R


@pytest.mark.parametrize(
    "targets_R",
    [np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.float64), np.zeros((2, 1), dtype=np.int64)],
)
def test_rows_whose_targets_do_not_fit_are_refused(targets_R: np.ndarray) -> None:
    with pytest.raises(DataError):
        Rows(inputs_RF=np.zeros((2, 1), dtype=np.float32), targets_R=targets_R)


def test_a_label_that_is_no_class_is_refused() -> None:
    rows = toy(20).train
    with pytest.raises(DataError, match=r"labels 0 … 9, expected 0 … 8"):
        Dataset(name="toy", train=rows, test=rows, classes=9)
    values = Rows(inputs_RF=rows.inputs_RF, targets_R=np.zeros(20, dtype=np.float32))
    with pytest.raises(DataError, match="10 classes of a regression"):
        Dataset(name="toy", train=values, test=values)
    with pytest.raises(DataError, match="do not match"):
        Dataset(name="toy", train=rows, test=values)
