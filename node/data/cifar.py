"""CIFAR-10 in its binary version: six files of records, one byte of label and 3,072 of pixels.

    data_batch_1.bin … data_batch_5.bin, test_batch.bin:  label ‖ 1024 red ‖ 1024 green ‖ 1024 blue

Full batches have 10,000 records; shorter ones are read too. The Python version of the data
set is pickled, and what is pickled is never opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError, find, locate, read_bounded
from node.data.images import channel_levels, with_levels
from node.data.rows import Dataset, Rows

CLASSES: Final = 10
CHANNELS: Final = 3
PIXELS: Final = 32 * 32
RECORD: Final = 1 + CHANNELS * PIXELS
MAX_RECORDS: Final = 10_000
"""In one file."""
UNPACKED: Final = "cifar-10-batches-bin"
TRAIN_FILES: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE: Final = "test_batch.bin"
PICKLED: Final = "data_batch_1"
_GET: Final = (
    "unpack the *binary* version of CIFAR-10 (cifar-10-binary.tar.gz, from its authors' page "
    "www.cs.toronto.edu/~kriz/cifar.html) and name the folder with --data-folder"
)


def places(folder: Path) -> tuple[Path, ...]:
    """Return the folders that may hold the batches, likeliest first."""
    return (folder / "cifar10", folder / UNPACKED, folder / "cifar10" / UNPACKED, folder)


def locate_cifar10(folder: Path) -> Path:
    """Return where the batches are; `DataError` if they are nowhere, or only pickled."""
    names = (*TRAIN_FILES, TEST_FILE)
    try:
        return locate("CIFAR-10 (binary version)", names, places(folder), _GET)
    except DataError:
        for place in (*places(folder), folder / "cifar-10-batches-py"):
            if find(place, PICKLED) is not None:
                raise DataError(
                    f"{place} holds the pickled Python version of CIFAR-10, which is never "
                    f"opened: {_GET}"
                ) from None
        raise


def load_cifar10(folder: Path) -> Dataset:
    """Return CIFAR-10 (50,000 and 10,000 rows of 3,072), each channel normalised by itself.

    Features run channel by channel. Raises `DataError` if a file is missing or damaged.
    """
    files = locate_cifar10(folder)
    batches = [_batch(files / name) for name in TRAIN_FILES]
    train_RCP = np.concatenate([images_RCP for images_RCP, _ in batches])
    test_RCP, test_labels_R = _batch(files / TEST_FILE)
    levels_CV = channel_levels(train_RCP)
    return Dataset(
        name="cifar10",
        train=Rows(
            inputs_RF=with_levels(train_RCP, levels_CV),
            targets_R=np.concatenate([labels_R for _, labels_R in batches]),
        ),
        test=Rows(inputs_RF=with_levels(test_RCP, levels_CV), targets_R=test_labels_R),
        classes=CLASSES,
    )


def _batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images_RCP and labels_R of one file."""
    data = read_bounded(path, MAX_RECORDS * RECORD)
    if not data or len(data) % RECORD:
        raise DataError(f"{path} has {len(data)} bytes, not a whole number of {RECORD} a record")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    labels_R = records[:, 0].astype(np.int64)
    if int(labels_R.max()) >= CLASSES:
        row = int(np.argmax(labels_R >= CLASSES))
        raise DataError(f"{path}: record {row} has the label {labels_R[row]}, of 0 … {CLASSES - 1}")
    return records[:, 1:].reshape(-1, CHANNELS, PIXELS), labels_R
