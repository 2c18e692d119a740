"""The IDX format of MNIST and its kin: a magic number, big-endian sizes, raw bytes.

    00 00 08 d ‖ d sizes, u32be each ‖ one unsigned byte for every element

08 is the type `unsigned byte`, the only one these data sets use.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.data.files import DataError

MAX_AXES: Final = 3
_UNSIGNED_BYTE: Final = 0x08


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
