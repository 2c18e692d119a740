"""The only files that are ever opened: safetensors, under a profile stricter than the format's.

The public parser takes duplicate keys, unknown fields, a hundred thousand empty tensors,
megabytes of metadata, NaN, file paths as tensor names, and tensors that share bytes. Here
the header is checked first, from the bytes, and nothing is mapped until it has passed:

| the file must be                                             | or else the reason is       |
|--------------------------------------------------------------|-----------------------------|
| readable                                                     | ``unreadable``              |
| a regular file                                               | ``not-a-regular-file``      |
| 8 bytes of length, so many of header, then all the tensors   | ``truncated``               |
| and nothing behind them                                      | ``trailing-bytes``          |
| of a header ≤ 100 KB + 200 B a tensor                        | ``header-too-large``        |
| which is an object in UTF-8 JSON, with blanks at most behind | ``malformed-header``        |
| with no key twice, at any depth                              | ``duplicate-key``           |
| of metadata from text to text, ≤ 256 entries, ≤ 64 Ki        | ``bad-metadata``            |
| of tensors of just dtype, shape and data_offsets             | ``malformed-tensor``        |
| named in 1 to 256 bytes of printable text                    | ``bad-tensor-name``         |
| of known dtypes                                              | ``bad-dtype``               |
| of at most 8 dimensions, each at least 1                     | ``bad-shape``               |
| lying end to end from the header to the end of the file      | ``bad-offsets``             |
| at least one of them                                         | ``no-tensors``              |
| and no more than was agreed                                  | ``too-many-tensors``        |
| in number and in size                                        | ``too-many-bytes``          |
| those that are expected, if any are                          | ``missing-tensor``          |
| and no others                                                | ``unexpected-tensor``       |
| of just that dtype                                           | ``wrong-dtype``             |
| and just that shape                                          | ``wrong-shape``             |
| of finite numbers                                            | ``not-finite``              |
| and booleans of 0 and 1                                      | ``bad-bool``                |
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from node.params.errors import ProfileError
from node.protocol import bounded_json
from node.protocol.parameters import (
    MAX_TENSORS,
    MAX_TOTAL_BYTES,
    Layout,
    TensorSpec,
    layout_fault,
    tensor_fault,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"
_FARTHEST: Final = 2**63 - 1
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may cost before it is refused."""

    header_bytes: int = 100_000
    header_bytes_per_tensor: int = 200
    tensors: int = MAX_TENSORS
    total_bytes: int = MAX_TOTAL_BYTES
    metadata_entries: int = 256
    metadata_bytes: int = 64 * 1024


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that has passed: what the file holds, and at which byte each tensor starts."""

    layout: Layout
    offsets: Mapping[str, int]
    """From the start of the file."""
    metadata: Mapping[str, str]


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open `path` for reading and yield its descriptor.

    A link is followed (checkpoint caches are made of them), but what it leads to must be a
    regular file: a pipe or a device could keep us waiting, or never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ProfileError("unreadable", f"{path}: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ProfileError("not-a-regular-file", str(path))
        yield descriptor
    except OSError as error:
        raise ProfileError("unreadable", f"{path}: {error}") from error
    finally:
        os.close(descriptor)


def check_header(
    path: Path, expected: Layout | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Header:
    """Check the header of the safetensors file at `path`, against `expected` if given.

    Reads the header only. Raises `ProfileError`, and nothing else, for any file.
    """
    with open_regular(path) as descriptor:
        return read_header(descriptor, expected, limits=limits)


def read_header(
    descriptor: int, expected: Layout | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Header:
    """`check_header` of a file that is open, so that what is checked is what is then read."""
    size = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, _LENGTH.size, 0)
    if len(prefix) < _LENGTH.size:
        raise ProfileError("truncated", f"{size} bytes hold no header length")
    (length,) = _LENGTH.unpack(prefix)
    most = limits.tensors if expected is None else len(expected)
    _require_header_size(length, most, limits)
    text = os.pread(descriptor, length, _LENGTH.size)
    if len(text) < length:
        raise ProfileError("truncated", f"header of {len(text)}/{length} bytes")
    entries = _parse(text)
    metadata = _metadata(entries.pop(_METADATA, {}), limits)
    if len(entries) > limits.tensors:
        raise ProfileError("too-many-tensors", f"{len(entries)}, allowed {limits.tensors}")
    _require_header_size(length, len(entries), limits)
    tensors = [_tensor(name, entry) for name, entry in entries.items()]
    layout = tuple(sorted((spec for spec, _, _ in tensors), key=lambda spec: spec.name))
    fault = layout_fault(layout, limits.total_bytes)
    if fault is not None:
        raise ProfileError(*fault)
    if expected is not None:
        require_layout(layout, expected)
    data = _LENGTH.size + length
    _require_cover(tensors, size - data)
    offsets = {spec.name: data + begin for spec, begin, _ in tensors}
    return Header(layout=layout, offsets=offsets, metadata=metadata)


def _require_header_size(length: int, tensors: int, limits: Limits) -> None:
    allowed = limits.header_bytes + limits.header_bytes_per_tensor * tensors
    if length > allowed:
        raise ProfileError(
            "header-too-large", f"{length} bytes, allowed {allowed} for {tensors} tensors"
        )


def _parse(text: bytes) -> dict[str, Any]:
    # the format pads with blanks behind the object, and with nothing before it
    if not text.startswith(b"{"):
        raise ProfileError("malformed-header", "does not start with an object")
    try:
        entries = bounded_json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_no_number,
        )
    except UnicodeDecodeError as error:
        raise ProfileError("malformed-header", f"not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise ProfileError("malformed-header", f"not JSON: {error!s:.120}") from error
    if not isinstance(entries, dict):
        raise ProfileError("malformed-header", "not an object")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ProfileError("duplicate-key", repr(key)[:80])
        result[key] = value
    return result


def _no_number(text: str) -> NoReturn:
    raise ProfileError("malformed-header", f"a number that is no integer: {text:.40}")


def _metadata(entries: object, limits: Limits) -> dict[str, str]:
    if not isinstance(entries, dict):
        raise ProfileError("bad-metadata", "not an object")
    if len(entries) > limits.metadata_entries:
        raise ProfileError("bad-metadata", f"{len(entries)} entries")
    if not all(isinstance(value, str) for value in entries.values()):
        raise ProfileError("bad-metadata", "a value that is not text")
    total = sum(len(key) + len(value) for key, value in entries.items())
    if total > limits.metadata_bytes:
        raise ProfileError("bad-metadata", f"{total} characters, allowed {limits.metadata_bytes}")
    return entries


def _tensor(name: str, entry: object) -> tuple[TensorSpec, int, int]:
    """The spec, and where its bytes begin and end, counted from the end of the header."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ProfileError("malformed-tensor", f"{name!r:.80} is {entry!r:.120}")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    fault = tensor_fault(name, dtype, shape)
    if fault is not None:
        raise ProfileError(*fault)
    spec = TensorSpec(name, dtype, tuple(shape))
    if not isinstance(span, list) or [type(at) for at in span] != [int, int]:
        raise ProfileError("malformed-tensor", f"{name}: data_offsets {span!r:.80}")
    begin, end = span
    if not 0 <= begin <= end <= _FARTHEST:
        raise ProfileError("bad-offsets", f"{name}: out of order, negative, or past 63 bits")
    if end - begin != spec.byte_length:
        raise ProfileError(
            "bad-offsets", f"{name}: {begin} to {end} are not {spec.byte_length} bytes"
        )
    return spec, begin, end


def _require_cover(tensors: list[tuple[TensorSpec, int, int]], size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    at = 0
    for spec, begin, end in sorted(tensors, key=lambda tensor: tensor[1]):
        if begin != at:
            raise ProfileError("bad-offsets", f"{spec.name} begins at {begin}, not {at}")
        at = end
    if size < at:
        raise ProfileError("truncated", f"{size} bytes of tensors, the header says {at}")
    if size > at:
        raise ProfileError("trailing-bytes", f"{size - at} bytes behind the last tensor")


def require_layout(layout: Layout, expected: Layout) -> None:
    """Raise `ProfileError` naming the first tensor in which `layout` is not the expected one."""
    found = {spec.name: spec for spec in layout}
    for spec in expected:
        if spec.name not in found:
            raise ProfileError("missing-tensor", spec.name)
        got = found.pop(spec.name)
        if got.dtype != spec.dtype:
            raise ProfileError("wrong-dtype", f"{spec.name}: {got.dtype}, not {spec.dtype}")
        if got.shape != spec.shape:
            raise ProfileError("wrong-shape", f"{spec.name}: {got.shape}, not {spec.shape}")
    for name in found:
        raise ProfileError("unexpected-tensor", name)


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raise ``not-finite`` if a floating-point tensor holds a NaN or an infinity.

    By the smallest and the largest element, which a NaN would be both of: 18 times faster
    than asking each element.
    """
    if not tensor.is_floating_point():
        return
    low, high = torch.aminmax(tensor)
    if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
        raise ProfileError("not-finite", f"{name}: {low.item()} to {high.item()}")
