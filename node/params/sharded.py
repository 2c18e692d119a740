"""Parameter sets too large for memory: rooted and merged in pieces, from one file or several.

A set is a safetensors file, or the shards of one beside an index (``*.safetensors.index.json``,
whose ``weight_map`` names the shard of every tensor). Every shard is of the strict profile
(`node.params.profile`); an index adds, as reasons of a `ProfileError`:

| the index must                                            | or else            |
|-----------------------------------------------------------|--------------------|
| be an object in JSON with a `weight_map`, of bounded size | ``malformed-index``|
| name files that lie beside it                             | ``bad-shard-name`` |
| name just the tensors that each of its shards holds       | ``wrong-index``    |

What is read is rows, at most `PIECE_BYTES` of them at a time, so that neither a root nor a merge
takes more memory for a larger set.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch

from node.params.disk import Draft, sync_directory
from node.params.encoding import dtype_of, lend, read_into
from node.params.errors import ProfileError
from node.params.permutation import PermutationSpec, Role, restrict
from node.params.profile import (
    DEFAULT_LIMITS,
    Header,
    Limits,
    check_values,
    open_regular,
    read_header,
)
from node.params.recipe import Recipe, check_recipe, check_shares, interpolate, unpack_scales
from node.protocol import bounded_json
from node.protocol.errors import LocalProtocolError
from node.protocol.merkle import StreamingRoot
from node.protocol.parameters import DTYPE_BYTES, Layout, TensorSpec, make_layout, preamble
from node.protocol.types import ONE, Digest

PIECE_BYTES: Final = 8 << 20
INDEX_SUFFIX: Final = ".safetensors.index.json"
SUFFIX: Final = ".safetensors"
MAX_INDEX_BYTES: Final = 16 << 20
MAX_SHARDS: Final = 1_000
_LENGTH: Final = struct.Struct("<Q")
_ALIGNED: Final = 8


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one tensor lies."""

    descriptor: int
    shard: str
    offset: int
    """From the start of its file."""


class ShardedSet:
    """An open parameter set; `open_set` makes one."""

    def __init__(self, headers: Mapping[str, Header], descriptors: Mapping[str, int]) -> None:
        self.shards = tuple(headers)
        """The names of its files."""
        self.layout: Layout = make_layout(
            spec for header in headers.values() for spec in header.layout
        )
        self._specs = {spec.name: spec for spec in self.layout}
        self._places = {
            name: _Place(descriptors[shard], shard, offset)
            for shard, header in headers.items()
            for name, offset in header.offsets.items()
        }

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def spec(self, name: str) -> TensorSpec:
        return self._specs[name]

    def shard_of(self, name: str) -> str:
        return self._places[name].shard

    def largest_shard(self) -> int:
        """Return the bytes of tensors in the largest shard."""
        sizes = dict.fromkeys(self.shards, 0)
        for spec in self.layout:
            sizes[self.shard_of(spec.name)] += spec.byte_length
        return max(sizes.values())

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the rows of a tensor in order, with the number of the first of each piece.

        A scalar is one row. Raises `ProfileError` for what is not finite, and for a file that
        shrinks.
        """
        rows, row_bytes = _rows(self._specs[name])
        step = max(1, PIECE_BYTES // row_bytes)
        for begin in range(0, rows, step):
            yield begin, self.rows(name, range(begin, min(begin + step, rows)))

    def rows(self, name: str, wanted: Sequence[int]) -> torch.Tensor:
        """Return the rows of these numbers, in this order; each must be one of the tensor's."""
        spec, place = self._specs[name], self._places[name]
        _, row_bytes = _rows(spec)
        tensor = torch.empty((len(wanted), *spec.shape[1:]), dtype=dtype_of(spec))
        memory = tensor.reshape(-1).view(torch.uint8).numpy().data
        for first, count, at in _runs(wanted):
            part = memory[at * row_bytes : (at + count) * row_bytes]
            read_into(place.descriptor, place.offset + first * row_bytes, part)
        check_values(name, tensor)
        return tensor


@contextmanager
def open_set(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[ShardedSet]:
    """Open a safetensors file, an index, or the folder of either; check all headers.

    Raises `ProfileError` for anything that is not of the profile.
    """
    with ExitStack() as files:
        headers: dict[str, Header] = {}
        descriptors: dict[str, int] = {}
        found = _find(path)
        mapped = _read_index(found) if found.name.endswith(INDEX_SUFFIX) else None
        for shard in [found.name] if mapped is None else sorted(set(mapped.values())):
            with open_regular(found.parent / shard) as opened:
                headers[shard] = read_header(opened, limits=limits)
                descriptors[shard] = os.dup(opened)
                files.callback(os.close, descriptors[shard])
        if mapped is not None:
            _require_mapped(mapped, headers)
        try:
            parameters = ShardedSet(headers, descriptors)
        except LocalProtocolError as error:
            raise ProfileError("wrong-index", str(error)) from error
        yield parameters


def root_of(parameters: ShardedSet) -> Digest:
    """Return the weights root, whatever the files are; raises `ProfileError` as `pieces` does."""
    root = StreamingRoot()
    root.update(preamble(parameters.layout))
    for spec in parameters.layout:
        for _, piece in parameters.pieces(spec.name):
            root.update(lend(piece))
    return root.finish()[0]


def merge_shards(
    base: ShardedSet,
    sold: ShardedSet,
    spec: PermutationSpec,
    recipe: Recipe,
    folder: Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Digest:
    """Write base·(1 − α) + T(sold)·α into `folder`, in shards of the base's names; return its root.

    The same bytes as `node.params.recipe.apply_recipe` makes of float32 tensors; others of
    floating point are merged in float32, and rounded once. An index comes last, where there
    are several shards. `spec` is of the whole architecture.

    Raises `RemoteProtocolError`, ``bad-recipe`` or ``wrong-shape``, `ProfileError` for what is not
    finite, in or out, and `OSError` as the disk does; no half of a set is left in `folder` then.
    """
    for each in sold.layout:
        if each.name not in base or base.spec(each.name) != each:
            raise ProfileError("wrong-shape", f"{each.name}: {each.dtype} {list(each.shape)}")
    restricted = restrict(spec, {each.name for each in sold.layout})
    check_recipe(restricted, recipe)
    check_shares(recipe.shares, {each.name: each.shape for each in sold.layout})
    with _Shards(folder, base, metadata or {}) as shards:
        root = StreamingRoot()
        root.update(preamble(base.layout))
        for each in base.layout:
            for begin, ours in base.pieces(each.name):
                data = lend(_merged(ours, begin, each.name, sold, restricted, recipe))
                shards.append(each.name, data)
                root.update(data)
        shards.keep()
    return root.finish()[0]


class _Shards:
    """The files of a set that is being written, all of them kept at the end or none."""

    def __init__(self, folder: Path, like: ShardedSet, metadata: Mapping[str, str]) -> None:
        self._folder = folder
        self._like = like
        self._metadata = dict(metadata)
        self._drafts: dict[Path, Draft] = {}
        self._next: dict[str, tuple[Draft, int]] = {}
        """By tensor: where its next bytes go."""

    def __enter__(self) -> Self:
        try:
            for shard in self._like.shards:
                draft = self._drafts[self._folder / shard] = Draft(self._folder)
                held = [e for e in self._like.layout if self._like.shard_of(e.name) == shard]
                head, offsets = _header(held, self._metadata)
                draft.write_at(head, 0)
                self._next |= {name: (draft, len(head) + at) for name, at in offsets.items()}
        except BaseException:
            self.__exit__()
            raise
        return self

    def append(self, name: str, data: memoryview) -> None:
        draft, at = self._next[name]
        draft.write_at(data, at)
        self._next[name] = (draft, at + len(data))

    def keep(self) -> None:
        """Put every file in its place, the index last: it says that all others are there."""
        if len(self._drafts) > 1:
            named = {each.name: self._like.shard_of(each.name) for each in self._like.layout}
            index = {"metadata": self._metadata, "weight_map": named}
            draft = self._drafts[self._folder / f"model{INDEX_SUFFIX}"] = Draft(self._folder)
            draft.write_at(json.dumps(index, indent=1).encode(), 0)
        for path, draft in self._drafts.items():
            draft.keep(path)
        sync_directory(self._folder)

    def __exit__(self, *_: object) -> None:
        for draft in self._drafts.values():
            draft.discard()


def _merged(
    ours: torch.Tensor,
    begin: int,
    name: str,
    sold: ShardedSet,
    spec: PermutationSpec,
    recipe: Recipe,
) -> torch.Tensor:
    if name not in sold or recipe.alpha == 0:
        return ours
    theirs = _transformed(sold, name, range(begin, begin + len(ours)), spec, recipe)
    by_row = name in recipe.shares
    if not ours.is_floating_point():
        if (by_row or recipe.alpha != ONE) and not torch.equal(ours, theirs):
            raise ProfileError("wrong-dtype", f"{name}: integers that differ have no mean")
        return theirs
    shares = {name: recipe.shares[name][begin : begin + len(ours)]} if by_row else None
    merged = interpolate({name: ours.float()}, {name: theirs.float()}, recipe.alpha, shares=shares)[
        name
    ]
    rounded = merged.to(ours.dtype)
    check_values(name, rounded)
    return rounded


def _transformed(
    sold: ShardedSet, name: str, rows: range, spec: PermutationSpec, recipe: Recipe
) -> torch.Tensor:
    """Return some rows of T(sold): `recipe.transform`, a piece at a time."""
    axes = spec.axes[name]
    first = axes[0].group if axes and axes[0] is not None else None
    permutation = None if first is None else recipe.permutations.get(first)
    wanted = rows if permutation is None else [permutation[row] for row in rows]
    tensor = sold.rows(name, wanted)
    for dimension, axis in enumerate(axes):
        if dimension and axis is not None and axis.group in recipe.permutations:
            index = torch.tensor(recipe.permutations[axis.group], dtype=torch.long)
            tensor = tensor.index_select(dimension, index)
    for dimension, side in enumerate(spec.rescales().get(name, ())):
        if side is not None and side[0] in recipe.scales:
            scales_U = unpack_scales(recipe.scales[side[0]])
            if dimension == 0:
                scales_U = scales_U[rows.start : rows.stop]
            shape = [1] * tensor.ndim
            shape[dimension] = -1
            factor = scales_U.to(tensor).reshape(shape)
            tensor = tensor * factor if side[1] is Role.WRITES else tensor / factor
    return tensor


def _rows(spec: TensorSpec) -> tuple[int, int]:
    """Return how many rows a tensor has, and the bytes of one."""
    rows = spec.shape[0] if spec.shape else 1
    return rows, spec.byte_length // rows


def _runs(wanted: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, rows, place of the first) of rows that lie behind one another."""
    if isinstance(wanted, range):
        yield wanted.start, len(wanted), 0
        return
    begin = 0
    for at in range(1, len(wanted) + 1):
        if at == len(wanted) or wanted[at] != wanted[at - 1] + 1:
            yield wanted[begin], at - begin, begin
            begin = at


def _header(
    held: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return a safetensors header, and where each tensor lies behind it."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets, at = {}, 0
    for spec in sorted(held, key=lambda each: (-DTYPE_BYTES[each.dtype], each.name)):
        offsets[spec.name], end = at, at + spec.byte_length
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return _LENGTH.pack(len(text)) + text, offsets


def _find(path: Path) -> Path:
    """Return the file or the index that `path`, or the folder `path`, is."""
    if not path.is_dir():
        return path
    for suffix in (INDEX_SUFFIX, SUFFIX):
        found = sorted(each for each in path.iterdir() if each.name.endswith(suffix))
        if len(found) == 1:
            return found[0]
        if found:
            raise ProfileError("unreadable", f"{path} holds {len(found)} of *{suffix}: name one")
    raise ProfileError("unreadable", f"{path} holds no *{SUFFIX}")


def _read_index(path: Path) -> dict[str, str]:
    with open_regular(path) as descriptor:
        text = os.pread(descriptor, MAX_INDEX_BYTES + 1, 0)
    if len(text) > MAX_INDEX_BYTES:
        raise ProfileError("malformed-index", f"over {MAX_INDEX_BYTES} bytes")
    try:
        value = bounded_json.loads(text)
    except ValueError as error:
        raise ProfileError("malformed-index", f"not JSON: {error!s:.120}") from error
    mapped = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(mapped, dict) or not mapped:
        raise ProfileError("malformed-index", "no `weight_map` from tensors to files")
    for shard in mapped.values():
        if not isinstance(shard, str) or not shard.endswith(SUFFIX) or Path(shard).name != shard:
            raise ProfileError("bad-shard-name", f"{shard!r:.80} is no file beside the index")
    if len(set(mapped.values())) > MAX_SHARDS:
        raise ProfileError("malformed-index", f"more than {MAX_SHARDS} shards")
    return mapped


def _require_mapped(mapped: Mapping[str, str], headers: Mapping[str, Header]) -> None:
    for shard, header in headers.items():
        held = {spec.name for spec in header.layout}
        named = {name for name, of in mapped.items() if of == shard}
        if held != named:
            different = sorted(held ^ named)
            raise ProfileError("wrong-index", f"{shard}: {different[0]!r:.80}")
