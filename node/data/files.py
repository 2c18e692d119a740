"""Files of a data set: found where a user may have put them, read within bounds, checked.

Nothing here trusts a file: sizes are bounded before and while it is read, and a compressed
file is unpacked no further than what it may hold.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from node.protocol.errors import LocalProtocolError

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
GZIPPED: Final = ".gz"


class DataError(LocalProtocolError):
    """A data file on this machine that is missing, damaged or not what its name says."""


def locate(what: str, names: Iterable[str], places: Sequence[Path], get: str) -> Path:
    """Return the first of `places` that holds every file of `names`, plain or gzipped.

    Raises `DataError` that says what is missing where, and `get`: how to come by it.
    """
    wanted = tuple(names)
    told = []
    for place in places:
        missing = [name for name in wanted if find(place, name) is None]
        if not missing:
            return place
        told.append(f"{place} ({'lacks' if is_folder(place) else 'no such folder, lacks'} ")
        told[-1] += f"{missing[0]})" if len(missing) == 1 else f"{missing[0]} and others)"
    raise DataError(f"there is no {what}; looked in {', '.join(told)}. To get it: {get}")


def find(folder: Path, name: str) -> Path | None:
    """Return the path of the file `name` in `folder`, plain or gzipped, if it is there."""
    for path in (folder / name, folder / (name + GZIPPED)):
        with contextlib.suppress(OSError):  # a folder that may not be read, a name too long
            if path.is_file():
                return path
    return None


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder, and it may be looked for."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_bounded(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain or gzipped (``.gz``) file.

    Raises `DataError` if it cannot be read, is damaged, or holds more than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if path.suffix == GZIPPED and len(data) <= limit:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(limit + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise DataError(f"{path} holds more than {limit} bytes")
    return data


def read_checked(path: Path, sha256: str) -> bytes:
    """Return the bytes of `path`; `DataError` unless their SHA-256 is `sha256` (hex).

    Of a gzipped file that is the hash of what it holds, whoever compressed it.
    """
    data = read_bounded(path)
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise DataError(f"{path} has SHA-256 {got}, expected {sha256}")
    return data
