"""What a parameter set is, apart from the numbers in it: names, element types, shapes.

The canonical encoding of a parameter set, over which its weights root is taken, is

    u32be header length ‖ header ‖ bytes of the first tensor ‖ bytes of the second ‖ …

with little-endian elements in C order and no gaps. The header is the layout in canonical
CBOR: an array of ``[name, dtype, [dimensions]]``, sorted by name. How a file happens to
order its tensors, and what else it says about them, leaves no trace in it: the same weights
have one encoding and so one root, and a subset of the tensors has the root of the subset.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from node.protocol import cbor
from node.protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DTYPE_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""The element types of a parameter set, by their safetensors names, and their widths."""

MAX_TENSORS: Final = 10_000
MAX_NAME_BYTES: Final = 256
MAX_RANK: Final = 8
MAX_TOTAL_BYTES: Final = 1 << 40
"""The default cap on a parameter set, header included: 1 TiB."""
MAX_HEADER_BYTES: Final = 4 << 20

_LENGTH: Final = struct.Struct(">I")
PREAMBLE_BYTES: Final = _LENGTH.size + MAX_HEADER_BYTES
"""However many tensors: the first of them begins no later."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor without its numbers. Raises `LocalProtocolError` rather than be malformed."""

    name: str
    """1 to 256 bytes of printable UTF-8."""
    dtype: str
    """A key of `DTYPE_BYTES`."""
    shape: tuple[int, ...]
    """At most 8 dimensions of at least 1; ``()`` is one number."""

    def __post_init__(self) -> None:
        fault = tensor_fault(self.name, self.dtype, self.shape)
        if fault is not None:
            raise LocalProtocolError(f"{fault[0]}: {fault[1]}")

    @property
    def byte_length(self) -> int:
        """How many bytes the tensor takes, in C order without padding."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


Layout: TypeAlias = tuple[TensorSpec, ...]
"""The specs of a parameter set, sorted by name, each name once, at least one."""


def tensor_fault(name: object, dtype: object, shape: object) -> tuple[str, str] | None:
    """Return the reason and the detail for which these cannot be a tensor's, or None.

    Reasons: ``bad-tensor-name``, ``bad-dtype``, ``bad-shape``. Total over any values.
    """
    # a surrogate is not printable, so what passes the second test can be encoded
    if type(name) is not str or not name.isprintable():
        return "bad-tensor-name", f"not printable text: {name!r:.80}"
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        return "bad-tensor-name", f"{len(name.encode())} bytes, allowed 1 to {MAX_NAME_BYTES}"
    if type(dtype) is not str or dtype not in DTYPE_BYTES:
        return "bad-dtype", f"{name}: {dtype!r:.40}"
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
        return "bad-shape", f"{name}: at most {MAX_RANK} dimensions, got {shape!r:.80}"
    if any(type(size) is not int or not 1 <= size <= MAX_TOTAL_BYTES for size in shape):
        return "bad-shape", f"{name}: dimensions are at least 1, got {shape!r:.80}"
    return None


def layout_fault(specs: tuple[TensorSpec, ...], max_bytes: int) -> tuple[str, str] | None:
    """Return the reason and the detail for which `specs` are no layout, or None.

    Reasons: ``no-tensors``, ``too-many-tensors``, ``unsorted-names``, ``duplicate-name``,
    ``too-many-bytes``.
    """
    if not specs:
        return "no-tensors", "a parameter set has at least one tensor"
    if len(specs) > MAX_TENSORS:
        return "too-many-tensors", f"{len(specs)}, allowed {MAX_TENSORS}"
    for before, after in itertools.pairwise(specs):
        if before.name == after.name:
            return "duplicate-name", repr(after.name)
        if before.name > after.name:
            return "unsorted-names", f"{before.name!r} before {after.name!r}"
    total = sum(spec.byte_length for spec in specs)
    if total > max_bytes:
        return "too-many-bytes", f"{total}, allowed {max_bytes}"
    return None


def make_layout(specs: Iterable[TensorSpec], *, max_bytes: int = MAX_TOTAL_BYTES) -> Layout:
    """Sort `specs` into a layout.

    Raises `LocalProtocolError` for a repeated name, no tensor at all, or too many.
    """
    layout = tuple(sorted(specs, key=lambda spec: spec.name))
    _require_layout(layout, max_bytes)
    return layout


def encode_header(layout: Layout) -> bytes:
    """The layout in canonical CBOR; the inverse of `decode_header`.

    Raises `LocalProtocolError` if `layout` is not sorted, or is over the caps.
    """
    _require_layout(layout, MAX_TOTAL_BYTES)
    header = cbor.encode([[spec.name, spec.dtype, list(spec.shape)] for spec in layout])
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"header of {len(header)} bytes, allowed {MAX_HEADER_BYTES}")
    return header


def decode_header(data: bytes, *, max_bytes: int = MAX_TOTAL_BYTES) -> Layout:
    """The one layout whose header is `data`; total and strict.

    Raises `RemoteProtocolError` for anything else, its reason one of ``header-too-large``,
    ``malformed`` (not canonical CBOR), ``malformed-header``, and those of `tensor_fault` and
    `layout_fault`. `max_bytes` caps the tensors' bytes together.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise RemoteProtocolError("header-too-large", f"{len(data)} bytes")
    rows = cbor.decode(data)
    if not isinstance(rows, list):
        raise RemoteProtocolError("malformed-header", "not an array")
    if len(rows) > MAX_TENSORS:
        raise RemoteProtocolError("too-many-tensors", f"{len(rows)}, allowed {MAX_TENSORS}")
    layout = tuple(_spec(row) for row in rows)
    fault = layout_fault(layout, max_bytes)
    if fault is not None:
        raise RemoteProtocolError(*fault)
    return layout


def _spec(row: cbor.Value) -> TensorSpec:
    if not isinstance(row, list) or len(row) != 3:
        raise RemoteProtocolError("malformed-header", f"not [name, dtype, shape]: {row!r:.80}")
    name, dtype, shape = row
    fault = tensor_fault(name, dtype, shape)
    if fault is not None:
        raise RemoteProtocolError(*fault)
    return TensorSpec(cast("str", name), cast("str", dtype), tuple(cast("list[int]", shape)))


def _require_layout(layout: Layout, max_bytes: int) -> None:
    fault = layout_fault(layout, max_bytes)
    if fault is not None:
        raise LocalProtocolError(f"{fault[0]}: {fault[1]}")


def preamble(layout: Layout) -> bytes:
    """Everything of the canonical encoding that stands before the first tensor's bytes."""
    header = encode_header(layout)
    return _LENGTH.pack(len(header)) + header


def encoded_length(layout: Layout) -> int:
    """The byte length of the canonical encoding of a parameter set with this layout."""
    return len(preamble(layout)) + sum(spec.byte_length for spec in layout)


def spans(layout: Layout, start: int) -> Iterator[tuple[TensorSpec, int, int]]:
    """Yield each spec with the first and the last-plus-one byte of its tensor, from `start`."""
    for spec in layout:
        yield spec, start, start + spec.byte_length
        start += spec.byte_length


def parse_preamble(
    head: bytes | memoryview, total_length: int, *, max_bytes: int = MAX_TOTAL_BYTES
) -> tuple[Layout, int]:
    """The layout of a canonical encoding, and where the bytes of its first tensor begin.

    `head` is its beginning: all of it, or `PREAMBLE_BYTES` at least. Raises
    `RemoteProtocolError` as `decode_header` does, and ``truncated`` or ``trailing-bytes`` if
    `total_length` is not exactly that of the layout.
    """
    view = memoryview(head).cast("B")
    if len(view) < _LENGTH.size:
        raise RemoteProtocolError("truncated", f"{len(view)} bytes hold no header length")
    (header_length,) = _LENGTH.unpack(view[: _LENGTH.size])
    if header_length > MAX_HEADER_BYTES:
        raise RemoteProtocolError("header-too-large", f"{header_length} bytes")
    start = _LENGTH.size + header_length
    header = bytes(view[_LENGTH.size : start])
    if len(header) < header_length:
        raise RemoteProtocolError("truncated", f"header of {len(header)}/{header_length} bytes")
    layout = decode_header(header, max_bytes=max_bytes)
    expected = start + sum(spec.byte_length for spec in layout)
    if total_length < expected:
        raise RemoteProtocolError("truncated", f"{total_length} bytes, not {expected}")
    if total_length > expected:
        raise RemoteProtocolError("trailing-bytes", f"{total_length} bytes, not {expected}")
    return layout, start
