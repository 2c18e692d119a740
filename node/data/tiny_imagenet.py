"""TinyImageNet in its own layout: 64 x 64 colour JPEGs, a folder for each class.

    wnids.txt                          one WordNet id a line: the classes
    train/<wnid>/images/*.JPEG         500 of each class
    val/images/*.JPEG                  what is tested with
    val/val_annotations.txt            file ⇥ wnid ⇥ box, a line for each of them

Classes are numbered in the order of their ids. Images are decoded by Pillow, which is only
needed here, and only as JPEG of the right size: the header is looked at before any pixel.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError, locate, read_bounded
from node.data.images import channel_levels, with_levels
from node.data.rows import Dataset, Rows

SIDE: Final = 64
CHANNELS: Final = 3
MAX_CLASSES: Final = 1_000
MAX_IMAGES: Final = 200_000
"""In one part; the data set itself has 100,000."""
MAX_IMAGE_BYTES: Final = 1024 * 1024
MAX_TEXT_BYTES: Final = 16 * 1024 * 1024
UNPACKED: Final = "tiny-imagenet-200"
CLASS_LIST: Final = "wnids.txt"
ANNOTATIONS: Final = "val/val_annotations.txt"
_WNID: Final = re.compile(r"n[0-9]{1,10}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9_]{1,64}\.JPEG")
_GET: Final = (
    "unpack tiny-imagenet-200.zip (cs231n.stanford.edu/tiny-imagenet-200.zip) and name the "
    "folder with --data-folder"
)

Listed = tuple[Path, int]
"""An image and the number of its class."""


def locate_tiny_imagenet(folder: Path) -> Path:
    """Return the folder of the layout above; `DataError` if it is nowhere."""
    places = (folder / "tiny-imagenet", folder / UNPACKED, folder)
    return locate("TinyImageNet", (CLASS_LIST, ANNOTATIONS), places, _GET)


def load_tiny_imagenet(folder: Path) -> Dataset:
    """Return TinyImageNet (100,000 and 10,000 rows of 12,288), channels normalised apart.

    Features run channel by channel. All of it takes about 7 GB of memory, and minutes to
    decode. Raises `DataError` if a file is missing or damaged, or Pillow is not installed.
    """
    files = locate_tiny_imagenet(folder)
    classes = _classes(files / CLASS_LIST)
    train_RCP, train_labels_R = _decode(_train_images(files, classes))
    test_RCP, test_labels_R = _decode(_test_images(files, classes))
    levels_CV = channel_levels(train_RCP)
    return Dataset(
        name="tiny-imagenet",
        train=Rows(inputs_RF=with_levels(train_RCP, levels_CV), targets_R=train_labels_R),
        test=Rows(inputs_RF=with_levels(test_RCP, levels_CV), targets_R=test_labels_R),
        classes=len(classes),
    )


def _lines(path: Path) -> list[str]:
    try:
        text = read_bounded(path, MAX_TEXT_BYTES).decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not ASCII text: {error.reason}") from error
    return [line for line in text.splitlines() if line.strip()]


def _classes(path: Path) -> dict[str, int]:
    """Return the number of each WordNet id."""
    wnids = [line.strip() for line in _lines(path)]
    for wnid in wnids:
        if _WNID.fullmatch(wnid) is None:
            raise DataError(f"{path}: {wnid[:40]!r} is no WordNet id")
    if not 2 <= len(wnids) <= MAX_CLASSES or len(set(wnids)) != len(wnids):
        raise DataError(f"{path}: {len(wnids)} ids, expected 2 … {MAX_CLASSES} different ones")
    return {wnid: number for number, wnid in enumerate(sorted(wnids))}


def _train_images(files: Path, classes: dict[str, int]) -> list[Listed]:
    listed: list[Listed] = []
    for wnid, number in classes.items():
        folder = files / "train" / wnid / "images"
        images = sorted(path for path in folder.glob("*.JPEG") if path.is_file())
        if not images:
            raise DataError(f"there is no image of {wnid} in {folder}")
        listed += [(path, number) for path in images]
    return listed


def _test_images(files: Path, classes: dict[str, int]) -> list[Listed]:
    path = files / ANNOTATIONS
    listed: dict[str, Listed] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, tab, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not tab or _IMAGE.fullmatch(name) is None or wnid not in classes:
            raise DataError(f"{path}, line {number}: {line[:60]!r} is no image of a known class")
        if name in listed:
            raise DataError(f"{path}, line {number}: {name} stands there twice")
        listed[name] = (files / "val" / "images" / name, classes[wnid])
    return list(listed.values())


def _decode(listed: Sequence[Listed]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images_RCP and labels_R."""
    if not 1 <= len(listed) <= MAX_IMAGES:
        raise DataError(f"{len(listed)} images, expected 1 … {MAX_IMAGES}")
    images_RCP = np.empty((len(listed), CHANNELS, SIDE * SIDE), dtype=np.uint8)
    for row, (path, _) in enumerate(listed):
        images_RCP[row] = _image(path)
    return images_RCP, np.array([label for _, label in listed], dtype=np.int64)


def _image(path: Path) -> NDArray[np.uint8]:
    """Return pixels_CP of one JPEG; a grey one has the same three channels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images are decoded by Pillow: pip install pillow") from error
    data = read_bounded(path, MAX_IMAGE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of sizes that are refused below
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                if image.size != (SIDE, SIDE):
                    raise DataError(f"{path} has {image.size} pixels, not {SIDE} x {SIDE}")
                pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no whole JPEG: {error}") from error
    return pixels.transpose(2, 0, 1).reshape(CHANNELS, SIDE * SIDE)
