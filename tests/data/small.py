"""Small data sets, and files of the formats that large ones come in."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np

from node.data.rows import Dataset, Rows

FOLDER = Path(__file__).resolve().parents[2] / ".data"
NOWHERE = Path("/nowhere")

IDX_ARRAYS = {
    "train-images-idx3-ubyte": np.full((2, 28, 28), 255),
    "train-labels-idx1-ubyte": np.array([3, 4]),
    "t10k-images-idx3-ubyte": np.zeros((1, 28, 28)),
    "t10k-labels-idx1-ubyte": np.array([9]),
}


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def toy(rows: int, classes: int = 10) -> Dataset:
    """Return a data set whose one feature is the number of the row."""
    part = Rows(
        inputs_RF=np.arange(rows, dtype=np.float32).reshape(-1, 1),
        targets_R=(np.arange(rows) % classes).astype(np.int64),
    )
    return Dataset(name="toy", train=part, test=part, classes=classes)


def numbers(rows: Rows) -> set[int]:
    return {int(number) for number in rows.inputs_RF[:, 0]}


def cifar_batch(labels: list[int], seed: int) -> bytes:
    """Return records of noise with these labels."""
    generator = np.random.Generator(np.random.Philox(seed))
    return b"".join(
        bytes([label]) + generator.integers(0, 256, 3072, dtype=np.uint8).tobytes()
        for label in labels
    )


def write_cifar(folder: Path, records: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, 6):
        labels = [(number + record) % 10 for record in range(records)]
        (folder / f"data_batch_{number}.bin").write_bytes(cifar_batch(labels, number))
    (folder / "test_batch.bin").write_bytes(cifar_batch(list(range(10)), 6))
    return folder


def jpeg(shade: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """Return an image that gets lighter from left to right."""
    from PIL import Image

    ramp = np.linspace(0, shade, size[0]).astype(np.uint8)
    pixels = np.broadcast_to(ramp, (size[1], size[0]))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tiny_imagenet(
    folder: Path, wnids: tuple[str, ...] = ("n02", "n01"), images_each: int = 3
) -> Path:
    """Write some images to train on and one to test with of each class."""
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number, wnid in enumerate(wnids):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for image in range(images_each):
            mode = "L" if image == 0 else "RGB"
            (images / f"{wnid}_{image}.JPEG").write_bytes(jpeg(100 * (number + 1), mode=mode))
        (folder / "val" / "images" / f"val_{number}.JPEG").write_bytes(jpeg(100 * (number + 1) + 8))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder
