from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.data import datasets
from node.data.datasets import Dataset, Rows, load
from node.data.idx import DataError, read_checked, read_idx
from node.data.split import endowment, scarce_classes, split_test

FOLDER = Path(__file__).resolve().parents[2] / ".data"


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def toy(rows: int, classes: int = 10) -> Dataset:
    """Return a data set whose one feature is the number of the row."""
    part = Rows(
        inputs_RF=np.arange(rows, dtype=np.float32).reshape(-1, 1),
        labels_R=(np.arange(rows) % classes).astype(np.int64),
    )
    return Dataset(name="toy", train=part, test=part, classes=classes)


def numbers(rows: Rows) -> set[int]:
    return {int(number) for number in rows.inputs_RF[:, 0]}


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


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images"):
        load("mnist", tmp_path)
    with pytest.raises(DataError, match="no data set 'cifar'"):
        load("cifar", tmp_path)


def test_mnist_is_read_and_normalised_from_four_checked_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {
        "train-images-idx3-ubyte": np.full((2, 28, 28), 255),
        "train-labels-idx1-ubyte": np.array([3, 4]),
        "t10k-images-idx3-ubyte": np.zeros((1, 28, 28)),
        "t10k-labels-idx1-ubyte": np.array([9]),
    }
    (tmp_path / "mnist").mkdir()
    hashes = {}
    for name, array in arrays.items():
        (tmp_path / "mnist" / name).write_bytes(idx(array))
        hashes[name] = hashlib.sha256(idx(array)).hexdigest()
    monkeypatch.setattr(datasets, "MNIST_FILES", hashes)
    mnist = load("mnist", tmp_path)
    assert mnist.features == 784
    assert mnist.train.labels_R.tolist() == [3, 4]
    assert mnist.train.inputs_RF[0, 0] == pytest.approx((1 - 0.1307) / 0.3081)
    assert mnist.test.inputs_RF[0, 0] == pytest.approx(-0.1307 / 0.3081)


@pytest.mark.skipif(not (FOLDER / "mnist").is_dir(), reason="run scripts/fetch_data.py first")
def test_the_real_mnist_has_the_published_size_and_mean() -> None:
    mnist = load("mnist", FOLDER)
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert abs(float(mnist.train.inputs_RF.mean())) < 1e-3
    assert abs(float(mnist.train.inputs_RF.std()) - 1) < 1e-3


def test_digits_need_no_file_and_are_normalised() -> None:
    digits = load("digits", Path("/nowhere"))
    assert (len(digits.train), len(digits.test), digits.features) == (1197, 600, 64)
    whole = np.concatenate([digits.train.inputs_RF, digits.test.inputs_RF])
    assert abs(float(whole.mean())) < 1e-3
    assert abs(float(whole.std()) - 1) < 1e-3


def test_rows_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        toy(10).train.labels_R[0] = 1


def test_rows_without_as_many_labels_are_refused() -> None:
    with pytest.raises(DataError):
        Rows(inputs_RF=np.zeros((2, 1), dtype=np.float32), labels_R=np.zeros(3, dtype=np.int64))


def test_brokers_rows_and_reported_rows_share_none() -> None:
    halves = split_test(toy(101))
    broker, report = numbers(halves.validation), numbers(halves.report)
    assert len(broker) == 50
    assert broker | report == set(range(101))
    assert not broker & report
    assert numbers(split_test(toy(101)).validation) == broker


def test_two_agents_lack_the_two_halves_of_the_classes() -> None:
    assert scarce_classes(0, 2, 10) == (0, 1, 2, 3, 4)
    assert scarce_classes(1, 2, 10) == (5, 6, 7, 8, 9)


@given(agents=st.integers(1, 40), classes=st.integers(2, 12))
def test_every_agent_lacks_something_and_holds_something(agents: int, classes: int) -> None:
    scarce = [set(scarce_classes(agent, agents, classes)) for agent in range(agents)]
    assert all(0 < len(lacking) < classes for lacking in scarce)
    if agents >= 2:
        assert set.union(*scarce) == set(range(classes))


def test_an_agent_holds_a_tenth_of_its_scarce_classes_and_all_of_the_others() -> None:
    counts = np.bincount(endowment(toy(1000), 0, 2, seed=3).labels_R)
    assert counts.tolist() == [10] * 5 + [100] * 5
    counts = np.bincount(endowment(toy(1000), 1, 2, seed=3, scarce_percent=25).labels_R)
    assert counts.tolist() == [100] * 5 + [25] * 5


def test_the_endowment_depends_on_the_seed_alone() -> None:
    first, again, other = (numbers(endowment(toy(1000), 0, 2, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_agents_that_lack_the_same_classes_hold_different_rows_of_them() -> None:
    first, second = (numbers(endowment(toy(1000), agent, 12, seed=1)) for agent in (0, 10))
    assert first != second
