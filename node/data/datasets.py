"""Data sets by name: rows of normalised float32 features, and what a model should answer.

`mnist`          four IDX files, which `scripts/fetch_data.py` puts into the data folder
`fashion`        four IDX files, Debian's or the user's own
`digits`         comes with scikit-learn: 8 x 8 images, small enough for tests
`cifar10`        the binary version, from a folder of the user's
`tiny-imagenet`  its usual layout, from a folder of the user's
`linear`         generated from a seed: values to predict, no classes

What is read from a file is believed only at its known SHA-256, or, where there is none,
after a check of everything that its format says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from node.data.cifar import load_cifar10, locate_cifar10
from node.data.clean import without
from node.data.files import DataError
from node.data.images import normalised
from node.data.linear import load_linear
from node.data.mnist import FASHION, MNIST, MNIST_FILES
from node.data.rows import Dataset, Rows
from node.data.tiny_imagenet import load_tiny_imagenet, locate_tiny_imagenet

__all__ = [
    "DATASETS",
    "MNIST_FILES",
    "Dataset",
    "Rows",
    "Source",
    "load",
    "load_digits",
    "load_mnist",
    "locate",
]

DIGITS_MEAN: Final = 0.3053
DIGITS_STD: Final = 0.3760
DIGITS_FILE: Final = ("datasets", "data", "digits.csv.gz")
"""In scikit-learn's folder: 1,797 rows of 64 pixels and the digit."""
DIGITS_SHA256: Final = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
"""As scikit-learn 1.9 brings it."""
DIGITS_TRAIN_ROWS: Final = 1_197
"""The first rows train, the other 600 test: the writers of the two parts differ."""


def load_mnist(folder: Path) -> Dataset:
    """Return MNIST (60,000 and 10,000 rows of 784) from `folder`/mnist.

    Raises `DataError` if a file is missing or not the known one.
    """
    return MNIST.load(folder)


def load_digits(_folder: Path) -> Dataset:
    """Return scikit-learn's digits (1,197 and 600 rows of 64), which need no file.

    Raises `DataError` if scikit-learn is not installed.
    """
    table_RF = _bundled_digits()
    inputs_RF = normalised(table_RF[:, :-1], 16.0, DIGITS_MEAN, DIGITS_STD)
    labels_R = table_RF[:, -1].astype(np.int64)
    return Dataset(
        name="digits",
        train=Rows(inputs_RF=inputs_RF[:DIGITS_TRAIN_ROWS], targets_R=labels_R[:DIGITS_TRAIN_ROWS]),
        test=Rows(inputs_RF=inputs_RF[DIGITS_TRAIN_ROWS:], targets_R=labels_R[DIGITS_TRAIN_ROWS:]),
    )


def _bundled_digits() -> NDArray[np.float64]:
    """Return pixels from 0 to 16 and, in the last column, the digit.

    The file is read without scikit-learn, which takes a second to import, if it is the known one.
    """
    try:
        found = importlib.util.find_spec("sklearn")
        for root in (found and found.submodule_search_locations) or ():
            with contextlib.suppress(OSError):
                packed = Path(root).joinpath(*DIGITS_FILE).read_bytes()
                if hashlib.sha256(packed).hexdigest() == DIGITS_SHA256:
                    return np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",")
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise DataError("digits come with scikit-learn: pip install 'pm-node[data]'") from error
    inputs, labels = bundled(return_X_y=True)
    return np.column_stack([inputs, labels])


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a data set comes from."""

    load: Callable[[Path, int], Dataset]
    """Given the data folder and a seed, which only generated rows depend on."""
    locate: Callable[[Path], Path | None]
    """Given the data folder; None where no file is needed."""
    generated: bool = False
    """Whether the rows are drawn by the seed."""
    of_user: bool = False
    """Whether nobody has measured that no row to train on is a row to test with."""


def _nowhere(_folder: Path) -> None:
    return None


DATASETS: Final[dict[str, Source]] = {
    "mnist": Source(load=lambda folder, _: load_mnist(folder), locate=MNIST.locate),
    "fashion": Source(load=lambda folder, _: FASHION.load(folder), locate=FASHION.locate),
    "digits": Source(load=lambda folder, _: load_digits(folder), locate=_nowhere),
    "cifar10": Source(
        load=lambda folder, _: load_cifar10(folder), locate=locate_cifar10, of_user=True
    ),
    "tiny-imagenet": Source(
        load=lambda folder, _: load_tiny_imagenet(folder), locate=locate_tiny_imagenet, of_user=True
    ),
    "linear": Source(load=lambda _, seed: load_linear(seed), locate=_nowhere, generated=True),
}
"""By name."""


_HELD: Final[WeakValueDictionary[tuple[str, Path, int], Dataset]] = WeakValueDictionary()
"""What somebody in this process still holds: agents that share one hold one copy."""
_LOADING: Final = threading.Lock()
"""Of those that ask for the same rows at once, one reads them, and the others wait for it."""


def _source(name: str) -> Source:
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; there are {sorted(DATASETS)}")
    return DATASETS[name]


def load(name: str, folder: Path, *, seed: int = 0) -> Dataset:
    """Return the data set `name`, its files being under `folder`.

    `seed` says which rows, where they are generated, and nothing elsewhere. Rows that anybody
    in this process still holds are not read again. Raises `DataError` if there is no such
    data set, or its files are missing or damaged.
    """
    source = _source(name)
    key = name, folder.absolute(), seed if source.generated else 0
    with _LOADING:
        found = _HELD.get(key)
        if found is None:
            found = source.load(folder, seed)
            if source.of_user:
                train, dropped = without(found.train, found.test)
                found = dataclasses.replace(found, train=train, dropped=dropped)
            _HELD[key] = found
        return found


def locate(name: str, folder: Path) -> Path | None:
    """Return where the files of `name` are, unread; None where it needs none.

    Raises `DataError` that says what is missing, where it was looked for, and how to get it.
    """
    return _source(name).locate(folder)
