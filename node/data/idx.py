"""The IDX format of MNIST and its kin: a magic number, big-endian sizes, raw bytes.

    00 00 08 d ‖ d sizes, u32be each ‖ one unsigned byte for every element

08 is the type `unsigned byte`, the only one these data sets use.
"""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.protocol.errors import LocalProtocolError

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_AXES: Final = 3
_UNSIGNED_BYTE: Final = 0x08


class DataError(LocalProtocolError):
    """A data file on this machine that is missing, damaged or not what its name says."""


def read_idx(data: bytes, *, axes: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of exactly `axes` axes (1 … `MAX_AXES`).

    Raises `DataError` for another magic number or type, and for any byte short or over.
    """
    if not 1 <= axes <= MAX_AXES:
        raise DataError(f"IDX of 1 … {MAX_AXES} axes, asked for {axes}")
    header = 4 + 4 * axes
    if len(data) < header:
        raise DataError(f"IDX header of {header} bytes, got {len(data)}")
    zero, kind, got_axes = struct.unpack_from(">HBB", data)
    if zero != 0 or kind != _UNSIGNED_BYTE or got_axes != axes:
        raise DataError(f"IDX magic {data[:4].hex()}, expected 000008{axes:02x}")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    if math.prod(shape) != len(data) - header:
        raise DataError(f"IDX of shape {shape} with {len(data) - header} bytes of elements")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def read_checked(path: Path, sha256: str) -> bytes:
    """Return the bytes of `path`; `DataError` unless their SHA-256 is `sha256` (hex)."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{path} has {size} bytes, of at most {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise DataError(f"{path} has SHA-256 {got}, expected {sha256}")
    return data
