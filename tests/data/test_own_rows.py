"""Rows that somebody brings are read for what they are, or refused by their place."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.data.files import DataError
from node.data.own_rows import MAX_NPZ_BYTES, OwnRows, read_rows

NOWHERE = Path("/nowhere")


def rows_of(source: Path | str, **options: str) -> OwnRows:
    return read_rows(str(source), data_folder=NOWHERE, **options)  # type: ignore[arg-type]


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def put(folder: Path, prefix: str, rows: int, *, packed: bool = False) -> np.ndarray[Any, Any]:
    """Write a pair of IDX files; returns the images."""
    images = np.arange(rows * 6, dtype=np.uint8).reshape(rows, 2, 3)
    for name, array in (("images-idx3", images), ("labels-idx1", np.arange(rows) % 3)):
        data = idx(array)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
    return images


def test_a_csv_file_has_its_label_last_first_or_where_its_heading_says(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("1.5,2,0\n3,4,1\n")
    found = rows_of(path)
    assert found.inputs_RF.tolist() == [[1.5, 2], [3, 4]]
    assert found.inputs_RF.dtype == np.float32
    assert found.targets_R.tolist() == [0, 1]
    assert rows_of(path, label="first").targets_R.tolist() == [1.5, 3]
    path.write_text('\ufeffwide;"class";tall\n1;2;3\n4;0;"6"\n\n')
    found = rows_of(path, label="class")
    assert found.inputs_RF.tolist() == [[1, 3], [4, 6]]
    assert found.targets_R.tolist() == [2, 0]
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"1\t2\n3\t4\n"))
    assert rows_of(tmp_path / "rows.csv.gz").targets_R.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
        ("a,b\n", "no rows under its heading"),
        ("1\n2\n", "one column"),
        ("1,2\n3,x\n", "line 2: 'x' is no number"),
        ("h,k\n1,2\n3,4,5\n", "line 3: 3 columns, not 2"),
        ("1,2\n3,nan\n", "row 2 has a number that is none"),
        ("1,2\n1e99,4\n", "row 2 has a number that is none"),
        ("1,2\n3,\n", "line 2: '' is no number"),
    ],
)
def test_a_csv_file_is_refused_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        rows_of(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_label_that_is_no_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("wide,tall\n1,2\n")
    with pytest.raises(
        DataError, match="neither first nor last nor a column; its columns are wide"
    ):
        rows_of(path, label="class")
    path.write_bytes(b"1,2\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8"):
        rows_of(path)


def test_an_npz_file_of_images_is_flattened_and_its_bytes_divided(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    x = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    for names in (("x", "y"), ("X_test", "y_test"), ("images", "labels")):
        arrays: Any = {names[0]: x, names[1]: np.array([[0], [1], [2], [0]])}
        np.savez_compressed(path, **arrays)
        found = rows_of(path)
        assert np.allclose(found.inputs_RF, x.reshape(4, 6) / 255)
        assert found.targets_R.tolist() == [0, 1, 2, 0]
    assert rows_of(path, normalise="none").inputs_RF.max() == 23
    shifted = rows_of(path, normalise="0.5,0.25").inputs_RF
    assert np.allclose(shifted, (x.reshape(4, 6) / 255 - 0.5) / 0.25)
    assert np.array_equal(
        rows_of(path, normalise="mnist").inputs_RF,
        rows_of(path, normalise="0.1307,0.3081").inputs_RF,
    )
    np.savez(path, x=np.asfortranarray(np.ones((3, 2)) * [[1, 2]]), y=np.zeros(3))
    assert rows_of(path).inputs_RF.tolist() == [[1, 2]] * 3


def test_a_hostile_npz_file_is_refused_and_nothing_in_it_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    good = np.zeros((4, 2))
    for arrays, said in (
        ({"x": good}, "no arrays x and y; it has x"),
        ({"x": np.array([object()] * 4), "y": np.zeros(4)}, "no numbers"),
        ({"x": np.array(["a"] * 4), "y": np.zeros(4)}, "no numbers"),
        ({"x": good, "y": np.zeros(3)}, "4 rows with 3 labels"),
        ({"x": good, "y": np.zeros((4, 2))}, "labels are"),
        ({"x": np.zeros(4), "y": np.zeros(4)}, "features are"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "holds no rows"),
        ({"x": good + np.inf, "y": np.zeros(4)}, "row 1 has a number that is none"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=said):
            rows_of(path)
    for data in (b"", b"PK\x03\x04junk", path.read_bytes()[:200]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"no whole .npz file"):
            rows_of(path)


def test_an_array_that_claims_more_than_it_has_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 8)}
    )
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x.npy", "y.npy"):
            archive.writestr(name, header.getvalue() + b"\0" * 64)
    with pytest.raises(DataError, match="has 64 bytes"):
        rows_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x05\x00junk!")
        archive.writestr("y.npy", b"")
    with pytest.raises(DataError, match="is no array"):
        rows_of(path)


def test_what_unpacks_to_more_than_the_cap_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.data.own_rows.MAX_NPZ_BYTES", 10_000)
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, x=np.zeros((100, 100)), y=np.zeros(100))
    assert path.stat().st_size < 10_000 < MAX_NPZ_BYTES
    with pytest.raises(DataError, match="unpacks to 80128 bytes"):
        rows_of(path)


def test_a_folder_of_idx_files_gives_the_rows_to_test_with(tmp_path: Path) -> None:
    put(tmp_path, "train", 5)
    images = put(tmp_path, "t10k", 4, packed=True)
    found = rows_of(tmp_path)
    assert np.allclose(found.inputs_RF, images.reshape(4, 6) / 255)
    assert found.targets_R.tolist() == [0, 1, 2, 0]
    assert len(rows_of(tmp_path / "train-images-idx3-ubyte")) == 5
    assert len(rows_of(tmp_path / "t10k-images-idx3-ubyte.gz")) == 4


def test_a_folder_that_leaves_open_which_rows_are_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .*images-idx3-ubyte .* none"):
        rows_of(tmp_path)
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    assert len(rows_of(tmp_path)) == 2
    (tmp_path / "more.csv").write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match=r"several: more.csv, rows.csv"):
        rows_of(tmp_path)
    put(tmp_path, "one", 4)
    assert len(rows_of(tmp_path)) == 4
    put(tmp_path, "two", 4)
    with pytest.raises(DataError, match="several sets: one-images"):
        rows_of(tmp_path)
    (tmp_path / "one-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03junk")
    with pytest.raises(DataError, match=r"one-images-idx3-ubyte.*IDX"):
        rows_of(tmp_path / "one-images-idx3-ubyte")


def test_a_built_in_set_is_its_rows_to_test_with(tmp_path: Path) -> None:
    found = rows_of("digits")
    assert found.inputs_RF.shape == (600, 64)
    with pytest.raises(DataError, match="leave out --normalise"):
        rows_of("digits", normalise="none")
    for strange in (tmp_path / "absent", "a\0b", "x" * 5_000):
        with pytest.raises(DataError):
            rows_of(strange)
    (tmp_path / "rows.bin").write_bytes(b"")
    with pytest.raises(DataError, match="none of CSV"):
        rows_of(tmp_path / "rows.bin")


@pytest.mark.parametrize("normalise", ["", "1", "1,0", "1,-1", "nan,1", "1,inf", "a,b", "imagenet"])
def test_a_normalisation_that_is_none_is_refused(tmp_path: Path, normalise: str) -> None:
    (tmp_path / "rows.csv").write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match="--normalise"):
        rows_of(tmp_path / "rows.csv", normalise=normalise)


def test_a_model_takes_rows_of_its_width_and_of_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("1,2,0\n3,4,2\n")
    found = rows_of(path)
    assert found.for_model(2, 3).labels_R.tolist() == [0, 2]
    assert found.for_model(2, 1).values_R.tolist() == [0, 2]
    with pytest.raises(DataError, match="rows have 2 features, the model takes 64"):
        found.for_model(64, 3)
    with pytest.raises(DataError, match="label of row 2 is 2; the model's 2 classes are 0 … 1"):
        found.for_model(2, 2)
    path.write_text("1,2,-1\n3,4,0.5\n")
    with pytest.raises(DataError, match="label of row 1 is -1"):
        rows_of(path).for_model(2, 2)
