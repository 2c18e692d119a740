from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.data import cifar, tiny_imagenet
from node.data.datasets import load
from node.data.files import DataError
from node.data.images import channel_levels, with_levels
from tests.data.small import jpeg, write_cifar, write_tiny_imagenet


def test_channels_are_normalised_by_the_rows_to_train_on() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    pixels_RCP = generator.integers(0, 256, (50, 3, 16), dtype=np.uint8)
    pixels_RCP[:, 1] //= 4
    features_RCP = with_levels(pixels_RCP, channel_levels(pixels_RCP)).reshape(50, 3, 16)
    for channel in range(3):
        values = pixels_RCP[:, channel].astype(np.float64)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(features_RCP[:, channel], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="channel 2"):
        channel_levels(pixels_RCP * np.array([[[1], [1], [0]]], dtype=np.uint8))


@pytest.mark.parametrize("below", ["cifar10", "cifar-10-batches-bin", "."])
def test_cifars_binary_batches_are_read_in_their_order(tmp_path: Path, below: str) -> None:
    folder = write_cifar(tmp_path / "data" / below if below != "." else tmp_path / "data")
    found = load("cifar10", tmp_path / "data")
    assert (len(found.train), len(found.test), found.features) == (20, 10, 3072)
    assert found.train.labels_R[:8].tolist() == [1, 2, 3, 4, 2, 3, 4, 5]
    assert found.test.labels_R.tolist() == list(range(10))
    whole = found.train.inputs_RF.reshape(20, 3, 1024)
    np.testing.assert_allclose(whole.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std(axis=(0, 2)), 1, atol=1e-5)
    # the second record of the second file, its first blue pixel
    data = (folder / "data_batch_2.bin").read_bytes()
    files = [(folder / f"data_batch_{number}.bin").read_bytes() for number in range(1, 6)]
    blue = [file[3073 * record :][2049:3073] for file in files for record in range(4)]
    values = np.frombuffer(b"".join(blue), dtype=np.uint8)
    expected = (data[3073 + 2049] - values.mean()) / values.std()
    assert found.train.inputs_RF[5, 2048] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "not a whole number"),
        (lambda data: b"", "0 bytes"),
        (lambda data: data[:3073] + b"\x0a" + data[3074:], "record 1 has the label 10"),
        (lambda data: data + bytes(3073 * 10_000), "more than 30730000 bytes"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, damage: object, told: str) -> None:
    folder = write_cifar(tmp_path / "cifar10")
    path = folder / "data_batch_3.bin"
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=told) as caught:
        load("cifar10", tmp_path)
    assert "data_batch_3.bin" in str(caught.value)


def test_what_is_pickled_is_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"pickled Python version.*never opened.*binary"):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match="pickled Python version"):
        load("cifar10", folder)


@given(data=st.binary(max_size=8000))
def test_any_bytes_are_a_batch_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "batch.bin"
    path.write_bytes(data)
    try:
        images_RCP, labels_R = cifar._batch(path)
    except DataError:
        return
    assert len(images_RCP) * cifar.RECORD == len(data)
    assert len(labels_R) == len(images_RCP)


@pytest.mark.parametrize("below", ["tiny-imagenet", "tiny-imagenet-200", "."])
def test_tiny_imagenets_layout_is_read(tmp_path: Path, below: str) -> None:
    write_tiny_imagenet(tmp_path / "data" / below if below != "." else tmp_path / "data")
    found = load("tiny-imagenet", tmp_path / "data")
    assert (len(found.train), len(found.test)) == (6, 2)
    assert (found.features, found.classes) == (3 * 64 * 64, 2)
    # classes are numbered by their ids, whatever the order of the list
    assert found.train.labels_R.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels_R.tolist() == [1, 0]
    whole = found.train.inputs_RF.reshape(6, 3, 64, 64)
    np.testing.assert_allclose(whole.mean(axis=(0, 2, 3)), 0, atol=1e-4)
    assert (whole[:, :, :, 63] > whole[:, :, :, 0]).all()
    # the images of n01 are lighter
    assert whole[:3].mean() > whole[3:].mean()


@pytest.mark.parametrize(
    ("file", "data", "told"),
    [
        ("wnids.txt", b"n02\n../../etc\n", "no WordNet id"),
        ("wnids.txt", b"n02\nn02\n", "different"),
        ("wnids.txt", b"n02\n", "1 ids"),
        ("wnids.txt", b"n02\nn03\n", "no image of n03"),
        ("wnids.txt", b"n\xff2\nn01\n", "not ASCII"),
        ("val/val_annotations.txt", b"../wnids.txt\tn02\t0\n", "line 1"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn09\t0\n", "no image of a known class"),
        ("val/val_annotations.txt", b"val_0.JPEG\n", "line 1"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2.*twice"),
        ("val/val_annotations.txt", b"val_7.JPEG\tn01\n", "cannot read .*val_7.JPEG"),
        ("val/val_annotations.txt", b"\n", "0 images"),
        ("val/images/val_0.JPEG", b"no image", "no whole JPEG"),
        ("val/images/val_0.JPEG", jpeg(100)[:300], "no whole JPEG"),
        ("val/images/val_0.JPEG", jpeg(100, (64, 65)), "not 64 x 64"),
        ("val/images/val_0.JPEG", b"\x89PNG\r\n\x1a\n" + bytes(50), "no whole JPEG"),
        ("val/images/val_0.JPEG", bytes(2**20 + 1), "more than"),
    ],
)
def test_a_hostile_layout_is_named(tmp_path: Path, file: str, data: bytes, told: str) -> None:
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet")
    (folder / file).write_bytes(data)
    with pytest.raises(DataError, match=told):
        load("tiny-imagenet", tmp_path)


def test_an_image_that_claims_a_huge_size_is_refused_by_its_header(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path / "tiny-imagenet")
    data = bytearray(jpeg(100))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    (folder / "val" / "images" / "val_0.JPEG").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"val_0\.JPEG"):
        load("tiny-imagenet", tmp_path)


def test_without_pillow_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_imagenet(tmp_path / "tiny-imagenet")
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install pillow"):
        tiny_imagenet.load_tiny_imagenet(tmp_path)
