"""Tensors to and from their canonical encoding, and to and from safetensors files.

The encoding (`node.protocol.parameters`) is what roots are taken over and what travels. To
encode, the bytes of the tensors are lent out as they lie in memory. To decode, they are
copied once: a tensor that lay on a file would change, or crash us, as the file does. So the bytes
that a root was taken over are the bytes that are computed with, and a GPU is given these and not
the file's again: `locked` puts them into memory that it can fetch from by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import safetensors.torch
import torch

from node.params.errors import ProfileError
from node.params.profile import (
    DEFAULT_LIMITS,
    Limits,
    check_values,
    open_regular,
    read_header,
    require_layout,
)
from node.protocol.errors import LocalProtocolError
from node.protocol.merkle import StreamingRoot
from node.protocol.parameters import (
    PREAMBLE_BYTES,
    Layout,
    TensorSpec,
    make_layout,
    parse_preamble,
    preamble,
    spans,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from node.protocol.types import Digest

_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_READ_BYTES: Final = 16 << 20
_TELLING_BYTES: Final = 5
"""The fifth begins a blob's header, which is a CBOR array, and is a zero of a safetensors file's
length."""
_CBOR_ARRAY: Final = 4


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """Return the element type in which a tensor is computed with."""
    return _DTYPES[spec.dtype]


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout of `tensors`, sorted by name.

    Raises `LocalProtocolError` for a dtype, name or shape that no parameter set has.
    """
    return make_layout(_spec(name, tensor) for name, tensor in tensors.items())


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
        raise LocalProtocolError(f"{name}: no encoding for {tensor.dtype}, {tensor.layout}")
    return TensorSpec(name, _NAMES[tensor.dtype], tuple(tensor.shape))


def lend(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in C order: its own memory where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def encoded_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the canonical encoding piece by piece, without a copy where memory allows it."""
    _require_little_endian()
    layout = layout_of(tensors)
    yield preamble(layout)
    for spec in layout:
        yield lend(tensors[spec.name])


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The canonical encoding in one piece; raises as `layout_of`."""
    return b"".join(encoded_chunks(tensors))


def weights_root(tensors: Mapping[str, torch.Tensor]) -> Digest:
    """The root of the canonical encoding: the identity of a parameter set."""
    root = StreamingRoot()
    for chunk in encoded_chunks(tensors):
        root.update(chunk)
    return root.finish()[0]


def decode_tensors(
    data: bytes | memoryview,
    expected: Layout | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    locked: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors of a canonical encoding, in memory of their own, in order of their names.

    `locked`: in page-locked memory, for a CUDA device, where there is any to be had.
    Raises `RemoteProtocolError` (as `parse_preamble` does) or `ProfileError` for any bytes that
    are not one, that are not of the `expected` layout, or that hold a NaN or an infinity.
    """
    _require_little_endian()
    view = memoryview(data).cast("B")
    layout, start = parse_preamble(view, len(view), max_bytes=limits.total_bytes)
    _require(layout, expected, limits)
    tensors = {}
    for spec, begin, end in spans(layout, start):
        tensor, memory = _allocate(spec, locked=locked)
        memory[:] = view[begin:end]
        tensors[spec.name] = _checked(spec, tensor, memory)
    return tensors


def decode_file(
    path: Path,
    expected: Layout | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    locked: bool = False,
) -> dict[str, torch.Tensor]:
    """`decode_tensors` of a file, such as a blob of the store, straight into the tensors."""
    _require_little_endian()
    tensors = {}
    with open_regular(path) as descriptor:
        head = os.pread(descriptor, PREAMBLE_BYTES, 0)
        size = os.fstat(descriptor).st_size
        layout, start = parse_preamble(head, size, max_bytes=limits.total_bytes)
        _require(layout, expected, limits)
        for spec, begin, _ in spans(layout, start):
            tensor, memory = _allocate(spec, locked=locked)
            read_into(descriptor, begin, memory)
            tensors[spec.name] = _checked(spec, tensor, memory)
    return tensors


def _require(layout: Layout, expected: Layout | None, limits: Limits) -> None:
    if len(layout) > limits.tensors:
        raise ProfileError("too-many-tensors", f"{len(layout)}, allowed {limits.tensors}")
    if expected is not None:
        require_layout(layout, expected)


def load_safetensors(
    path: Path,
    expected: Layout | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
    locked: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file of the strict profile, in order of their names.

    The file is opened once, and read by the offsets that were checked; `locked` as for
    `decode_tensors`. Raises `ProfileError`
    for anything that is not of the profile, not as `expected`, or not finite.
    """
    _require_little_endian()
    tensors = {}
    with open_regular(path) as descriptor:
        header = read_header(descriptor, expected, limits=limits)
        for spec in header.layout:
            tensor, memory = _allocate(spec, locked=locked)
            read_into(descriptor, header.offsets[spec.name], memory)
            tensors[spec.name] = _checked(spec, tensor, memory)
    return tensors


def load_weights(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> dict[str, torch.Tensor]:
    """The tensors of a file, whether safetensors or a blob of the store.

    Raises as `load_safetensors` and `decode_file`.
    """
    with open_regular(path) as descriptor:
        head = os.pread(descriptor, _TELLING_BYTES, 0)
    is_blob = len(head) == _TELLING_BYTES and head[-1] >> 5 == _CBOR_ARRAY
    return (decode_file if is_blob else load_safetensors)(path, limits=limits)


def save_safetensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` to `path`, whole or not at all.

    Raises `LocalProtocolError` for what `load_safetensors` would not take back, and `OSError`
    as the disk does.
    """
    layout = layout_of(tensors)
    owned = {spec.name: tensors[spec.name].detach().cpu().clone().contiguous() for spec in layout}
    try:
        for name, tensor in owned.items():
            check_values(name, tensor)
    except ProfileError as error:
        raise LocalProtocolError(str(error)) from error
    descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
    os.close(descriptor)
    try:
        safetensors.torch.save_file(owned, draft, dict(metadata) if metadata else None)
        with Path(draft).open("rb") as file:
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _allocate(spec: TensorSpec, *, locked: bool) -> tuple[torch.Tensor, memoryview]:
    """An empty tensor, and its memory to write into."""
    tensor = None
    if locked:  # the system has a limit to it, which is no reason to do without the model
        with contextlib.suppress(RuntimeError):
            tensor = torch.empty(spec.shape, dtype=dtype_of(spec), pin_memory=True)
    if tensor is None:
        tensor = torch.empty(spec.shape, dtype=dtype_of(spec))
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data


def read_into(descriptor: int, offset: int, memory: memoryview) -> None:
    """Fill `memory` with the bytes of a file at `offset`; raises ``truncated`` if it ends."""
    at = 0
    while at < len(memory):
        count = os.preadv(descriptor, [memory[at : at + _READ_BYTES]], offset + at)
        if count == 0:
            raise ProfileError("truncated", "the file shrank while it was read")
        at += count


def _checked(spec: TensorSpec, tensor: torch.Tensor, memory: memoryview) -> torch.Tensor:
    # any other byte in a boolean is undefined behaviour, before any check in torch can see it
    if spec.dtype == "BOOL" and int(torch.frombuffer(memory, dtype=torch.uint8).max()) > 1:
        raise ProfileError("bad-bool", f"{spec.name}: a byte that is neither 0 nor 1")
    check_values(spec.name, tensor)
    return tensor


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise LocalProtocolError("parameter sets are little-endian, and so must be this machine")
