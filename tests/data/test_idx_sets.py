from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.data import mnist
from node.data.datasets import DATASETS, load, locate
from node.data.files import DataError
from node.data.mnist import FASHION, MNIST, IdxSet
from tests.data.small import FOLDER, IDX_ARRAYS, NOWHERE, idx

HASHES = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in IDX_ARRAYS.items()}


def write(folder: Path, *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in IDX_ARRAYS.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


@pytest.mark.parametrize(
    ("known", "mean", "std"), [(MNIST, 0.1307, 0.3081), (FASHION, 0.2860, 0.3530)]
)
def test_four_checked_files_are_read_and_normalised(
    tmp_path: Path, known: IdxSet, mean: float, std: float
) -> None:
    write(tmp_path / known.name)
    found = replace(known, files=HASHES).load(tmp_path)
    assert (found.name, found.features, found.classes) == (known.name, 784, 10)
    assert found.train.labels_R.tolist() == [3, 4]
    assert found.train.inputs_RF[0, 0] == pytest.approx((1 - mean) / std)
    assert found.test.inputs_RF[0, 0] == pytest.approx(-mean / std)


@pytest.mark.parametrize(
    ("known", "below"), [(MNIST, ["mnist"]), (FASHION, ["fashion", "fashion-mnist"])]
)
def test_files_are_read_from_the_users_own_folder_gzipped_or_not(
    tmp_path: Path, known: IdxSet, below: list[str]
) -> None:
    known = replace(known, files=HASHES)
    for folder in (*(tmp_path / name / name for name in below), tmp_path / "c"):
        for packed in (True, False):
            write(folder, packed=packed)
            above = folder if folder.name == "c" else folder.parent
            assert known.locate(above) == folder
            assert known.load(above).train.labels_R.tolist() == [3, 4]


def test_fashion_is_found_where_debian_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "datasets" / "fashion-mnist", packed=True)
    monkeypatch.setattr(mnist, "SYSTEM_DATASETS", tmp_path / "datasets")
    known = replace(FASHION, files=HASHES)
    assert known.locate(NOWHERE) == tmp_path / "datasets" / "fashion-mnist"


def test_files_that_are_not_fashion_are_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path / "fashion")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte has SHA-256 .* expected c59f"):
        load("fashion", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "way"),
    [
        ("mnist", "train-images", "scripts/fetch_data.py"),
        ("fashion", "train-images", "apt-get install dataset-fashion-mnist"),
        ("cifar10", "data_batch_1.bin", "--data-folder"),
        ("tiny-imagenet", "wnids.txt", "--data-folder"),
    ],
)
def test_missing_data_is_named_with_the_place_and_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, way: str
) -> None:
    monkeypatch.setattr(mnist, "SYSTEM_DATASETS", tmp_path / "none")
    for ask in (load, locate):
        with pytest.raises(DataError) as caught:
            ask(name, tmp_path)
        told = str(caught.value)
        assert file in told
        assert str(tmp_path / name) in told
        assert way in told


def test_an_unknown_data_set_is_named_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"no data set 'cifar'.*'cifar10'"):
        load("cifar", NOWHERE)


def test_what_needs_no_file_is_nowhere() -> None:
    assert [name for name in DATASETS if name in {"digits", "linear"}] == ["digits", "linear"]
    assert locate("digits", NOWHERE) is None
    assert locate("linear", NOWHERE) is None


def _there(name: str) -> bool:
    try:
        locate(name, FOLDER)
    except DataError:
        return False
    return True


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(not _there(name), reason=f"no {name} here"))
        for name in ("mnist", "fashion")
    ],
)
def test_the_real_files_have_the_published_size_and_mean(name: str) -> None:
    found = load(name, FOLDER)
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert np.bincount(found.train.labels_R).min() > 5_000
    assert abs(float(found.train.inputs_RF.mean())) < 1e-3
    assert abs(float(found.train.inputs_RF.std()) - 1) < 1e-3


def test_digits_need_no_file_and_are_normalised() -> None:
    digits = load("digits", NOWHERE)
    assert (len(digits.train), len(digits.test), digits.features) == (1197, 600, 64)
    whole = np.concatenate([digits.train.inputs_RF, digits.test.inputs_RF])
    assert abs(float(whole.mean())) < 1e-3
    assert abs(float(whole.std()) - 1) < 1e-3
