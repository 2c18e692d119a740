"""Rows of a user's own, in the formats that data lies about in: CSV, .npz, a folder of IDX files.

| source                | rows                                                                  |
|-----------------------|-----------------------------------------------------------------------|
| a built-in name       | the rows to test with of that data set, normalised as it is           |
| ``FILE.csv[.gz]``     | numbers between commas, semicolons or tabs; the label in one column   |
| ``FILE.npz``          | arrays ``x`` and ``y``                                                |
| a folder              | ``*images-idx3-ubyte`` and ``*labels-idx1-ubyte``, plain or gzipped   |

A file is hostile: sizes are bounded before anything is unpacked, arrays are never unpickled, and
what is not a finite number is refused by its place.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.data.datasets import DATASETS, load
from node.data.files import GZIPPED, MAX_FILE_BYTES, DataError, find, read_bounded
from node.data.idx import read_idx
from node.data.mnist import FASHION, MNIST
from node.data.rows import Rows

MAX_VALUES: Final = 1 << 27
"""Of all rows together: half a gibibyte of float32."""
MAX_NPZ_BYTES: Final = 1 << 30
"""Of one unpacked array."""
MAX_FOLDER: Final = 10_000
LABELS: Final = ("last", "first")
AUTO: Final = "auto"
AS_IS: Final = "none"
_ARRAYS: Final = (
    ("x", "y"), ("x_val", "y_val"), ("x_test", "y_test"), ("inputs", "targets"),
    ("inputs", "labels"), ("features", "labels"), ("images", "labels"), ("data", "labels"),
)  # fmt: skip
_FOR_TESTS: Final = re.compile(r"^(val|valid|validation|test|t10k)(\b|_)")
_IMAGES: Final = re.compile(r"^(?P<before>.*)images?(?P<between>[-._])idx3(?P<after>.*)$")
_SCALES: Final = {"mnist": (MNIST.mean, MNIST.std), "fashion": (FASHION.mean, FASHION.std)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnRows:
    """Rows as they were read: targets are numbers, whose kind a model decides."""

    name: str
    inputs_RF: NDArray[np.float32] = field(repr=False)
    targets_R: NDArray[np.float64] = field(repr=False)
    label: str
    normalise: str
    """How the features came about, in the words of the option."""

    def __len__(self) -> int:
        return len(self.targets_R)

    def for_model(self, features: int, outputs: int) -> Rows:
        """Return the rows for a model of so many features and outputs: classes, or values of one.

        Raises `DataError` that names what does not fit.
        """
        if self.inputs_RF.shape[1] != features:
            raise DataError(
                f"{self.name}: rows have {self.inputs_RF.shape[1]} features, the model takes "
                f"{features}"
            )
        if outputs == 1:
            return Rows(inputs_RF=self.inputs_RF, targets_R=self.targets_R.astype(np.float32))
        strange_R = np.flatnonzero(
            (self.targets_R != np.round(self.targets_R))
            | (self.targets_R < 0)
            | (self.targets_R >= outputs)
        )
        if len(strange_R):
            row = int(strange_R[0])
            raise DataError(
                f"{self.name}: the label of row {row + 1} is {self.targets_R[row]:g}; the model's "
                f"{outputs} classes are 0 … {outputs - 1} (is the label elsewhere? see --label)"
            )
        return Rows(inputs_RF=self.inputs_RF, targets_R=self.targets_R.astype(np.int64))


def read_rows(
    source: str,
    *,
    label: str = "last",
    normalise: str = AUTO,
    data_folder: Path,
    seed: int = 0,
) -> OwnRows:
    """Return the rows of a source. Raises `DataError` naming the file and what is wrong in it.

    `normalise`: ``auto`` (bytes are divided by 255, other numbers stay), ``none``, ``MEAN,STD``
    (after that division), or ``mnist`` or ``fashion`` for those of that data set.
    """
    if source in DATASETS:
        if normalise != AUTO:
            raise DataError(f"{source} is normalised as it is: leave out --normalise")
        test = load(source, data_folder, seed=seed).test
        inputs_RF, targets = test.inputs_RF, test.targets_R.astype(np.float64)
    else:
        scale = _scale(normalise)
        path = Path(source)
        raw, targets = _read(path, label)
        inputs_RF = _features(raw, source, as_is=normalise == AS_IS, scale=scale)
        if targets.shape != (len(inputs_RF),):
            raise DataError(f"{source}: {len(inputs_RF)} rows with {len(targets)} labels")
    _require_rows(source, inputs_RF, targets)
    return OwnRows(
        name=source, inputs_RF=inputs_RF, targets_R=targets, label=label, normalise=normalise
    )


def _read(path: Path, label: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r:.120}: {error}") from error
    if is_folder:
        return _folder(path, label)
    if not is_file:
        known = ", ".join(DATASETS)
        raise DataError(f"there is no file or folder {path}, and no data set of that name: {known}")
    name = path.name.removesuffix(GZIPPED).lower()
    if name.endswith(".npz"):
        return _npz(path)
    if name.endswith((".csv", ".tsv", ".txt")):
        return _csv(path, label)
    if "idx3" in name and (pair := _label_file(path.parent, path.name.removesuffix(GZIPPED))):
        return _idx(path, pair)
    raise DataError(f"{path} is none of CSV, .npz, or a folder of IDX files")


def _require_rows(
    source: str, inputs_RF: NDArray[np.float32], targets: NDArray[np.float64]
) -> None:
    if not len(targets) or not inputs_RF.shape[1]:
        raise DataError(f"{source} holds no rows")
    bad = ~np.isfinite(inputs_RF).all(axis=1) | ~np.isfinite(targets)
    if bad.any():
        raise DataError(
            f"{source}: row {int(np.flatnonzero(bad)[0]) + 1} has a number that is none"
        )


# ── features ──


def _scale(normalise: str) -> tuple[float, float] | None:
    """Return mean and deviation, None where features are not shifted. Raises `DataError`."""
    if normalise in {AUTO, AS_IS}:
        return None
    if normalise in _SCALES:
        return _SCALES[normalise]
    mean, comma, deviation = normalise.partition(",")
    try:
        found = float(mean), float(deviation)
    except ValueError:
        found = math.nan, math.nan
    if not comma or not all(map(math.isfinite, found)) or found[1] <= 0:
        raise DataError(
            f"--normalise {normalise!r:.40}: write auto, none, {', '.join(_SCALES)}, or MEAN,STD "
            "with STD over 0, such as 0.1307,0.3081"
        )
    return found


def _features(
    raw: NDArray[Any], source: str, *, as_is: bool, scale: tuple[float, float] | None
) -> NDArray[np.float32]:
    """Return float32 features R x F; bytes are divided by 255 unless they are taken as they are."""
    if raw.ndim < 2 or raw.dtype.kind not in "biuf":
        raise DataError(f"{source}: features are {raw.dtype} of shape {list(raw.shape)[:8]}")
    of_bytes = raw.dtype == np.uint8
    with np.errstate(over="ignore"):
        flat_RF = raw.reshape(len(raw), math.prod(raw.shape[1:])).astype(np.float32)
    if of_bytes and not as_is:
        flat_RF /= np.float32(255)
    if scale is not None:
        flat_RF = (flat_RF - np.float32(scale[0])) / np.float32(scale[1])
    return np.ascontiguousarray(flat_RF)


# ── CSV ──


def _csv(path: Path, label: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        text = read_bounded(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start}") from error
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path} holds no rows")
    delimiter = max(",;\t", key=lines[0].count)
    heading = _cells(path, lines[0], delimiter)
    named = not all(map(_is_number, heading))
    rows = lines[1:] if named else lines
    if len(heading) < 2:
        raise DataError(f"{path}: the first line has one column; a row has features and a label")
    if not rows:
        raise DataError(f"{path} holds no rows under its heading")
    if len(heading) * len(rows) > MAX_VALUES:
        raise DataError(f"{path}: {len(rows)} rows of {len(heading)}, over {MAX_VALUES} numbers")
    column = _label_column(path, label, heading if named else [], len(heading))
    table_RC = _numbers(path, rows, delimiter, first=2 if named else 1)
    if table_RC.shape[1] != len(heading):
        raise DataError(f"{path}: rows have {table_RC.shape[1]} columns, the first {len(heading)}")
    return np.delete(table_RC, column, axis=1), table_RC[:, column]


def _cells(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{path}: the first line is no CSV: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label_column(path: Path, label: str, heading: Sequence[str], columns: int) -> int:
    if label in LABELS:
        return columns - 1 if label == "last" else 0
    if label in heading:
        return list(heading).index(label)
    names = f"; its columns are {', '.join(heading[:8])[:120]}" if heading else ""
    raise DataError(f"{path}: --label {label!r:.40} is neither first nor last nor a column{names}")


def _numbers(path: Path, rows: list[str], delimiter: str, *, first: int) -> NDArray[np.float64]:
    try:
        table_RC = np.loadtxt(
            rows, dtype=np.float64, delimiter=delimiter, comments=None, quotechar='"', ndmin=2
        )
    except (ValueError, OverflowError) as error:
        place = _first_bad(rows, delimiter)
        if place is None:
            raise DataError(
                f"{path} is no table of numbers: {str(error).partition(';')[0]}"
            ) from error
        raise DataError(f"{path}, line {first + place[0]}: {place[1]}") from error
    return table_RC


def _first_bad(rows: list[str], delimiter: str) -> tuple[int, str] | None:
    """Return the first row that is not of numbers, or not as long as the first, and why."""
    columns = 0
    for at, row in enumerate(rows):
        cells = next(csv.reader([row], delimiter=delimiter), [])
        columns = columns or len(cells)
        if len(cells) != columns:
            return at, f"{len(cells)} columns, not {columns}"
        for cell in cells:
            if not _is_number(cell):
                return at, f"{cell!r:.40} is no number"
    return None


# ── npz ──


def _npz(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        if path.stat().st_size > MAX_NPZ_BYTES:
            raise DataError(f"{path} holds more than {MAX_NPZ_BYTES} bytes")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            names = {name.removesuffix(".npy").lower(): name for name in members}
            pair = next((pair for pair in _ARRAYS if set(pair) <= names.keys()), None)
            if pair is None:
                shown = ", ".join(sorted(names))[:120]
                raise DataError(f"{path} has no arrays x and y; it has {shown or 'none'}")
            raw, labels = (_npy(path, archive, members[names[key]]) for key in pair)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: an encrypted member, or (as NotImplementedError) an odd compression
        raise DataError(f"{path} is no whole .npz file: {error!s:.120}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise DataError(f"{path}: labels are {labels.dtype} of shape {list(labels.shape)[:8]}")
    return raw, labels.astype(np.float64)


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return one array. Its size is held to the member's before anything is allocated for it."""
    if member.file_size > MAX_NPZ_BYTES:
        raise DataError(f"{path}: {member.filename!r:.60} unpacks to {member.file_size} bytes")
    with archive.open(member) as packed:
        data = packed.read(MAX_NPZ_BYTES + 1)
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise DataError(f"{path}: {member.filename!r:.60} is of npy version {version}")
        shape, fortran, dtype = read(file)
    except (ValueError, SyntaxError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {member.filename!r:.60} is no array: {error!s:.80}") from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise DataError(f"{path}: {member.filename!r:.60} holds {dtype}, no numbers")
    count, start = math.prod(shape), file.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - start:
        raise DataError(
            f"{path}: {member.filename!r:.60} of shape {list(shape)[:8]} has "
            f"{len(data) - start} bytes"
        )
    if count > MAX_VALUES:
        raise DataError(f"{path}: {member.filename!r:.60} has over {MAX_VALUES} numbers")
    flat = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


# ── IDX ──


def _folder(path: Path, label: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        names = sorted(
            entry.name for entry, _ in zip(path.iterdir(), range(MAX_FOLDER), strict=False)
        )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    plain = dict.fromkeys(name.removesuffix(GZIPPED) for name in names)
    pairs = {name: pair for name in plain if (pair := _label_file(path, name)) is not None}
    chosen = [name for name in pairs if _FOR_TESTS.search(name.lower())] or list(pairs)
    if len(chosen) == 1:
        images = find(path, chosen[0])
        assert images is not None
        return _idx(images, pairs[chosen[0]])
    if chosen:
        raise DataError(
            f"{path} has several sets: {', '.join(chosen)[:160]}; name one of the files"
        )
    tables = [name for name in names if name.lower().endswith((".npz", ".csv", ".csv.gz"))]
    if len(tables) == 1:
        return _read(path / tables[0], label)
    shown = f"several: {', '.join(tables)[:120]}" if tables else "none"
    raise DataError(
        f"{path} has no *images-idx3-ubyte with its *labels-idx1-ubyte, and of .npz and CSV {shown}"
    )


def _label_file(folder: Path, images: str) -> Path | None:
    """Return the labels that belong to a file of images, by its name."""
    match = _IMAGES.match(images)
    if match is None:
        return None
    before, between, after = match["before"], match["between"], match["after"]
    return find(folder, f"{before}labels{between}idx1{after}")


def _idx(images: Path, labels: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    found = []
    for path, axes in ((images, 3), (labels, 1)):
        try:
            found.append(read_idx(read_bounded(path, MAX_FILE_BYTES), axes=axes))
        except DataError as error:
            named = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise DataError(named) from error
    return found[0], found[1].astype(np.float64)
