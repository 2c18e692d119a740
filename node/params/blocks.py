"""Joint permutations at work: applied to tensors, inverted, composed, named by a hash.

A joint permutation gives groups an int64 tensor of shape (units of each group around …, units):
``T'[i] = T[P(i)]``, the unit around read at its *new* place. A group that is not named keeps
its order. Tensors are taken apart into blocks, arrays whose every dimension runs over one
group's units or stays fixed, so that layouts have to be understood in one place only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from node.params.permutation import Tensors
from node.params.symmetry import (
    Concat,
    Gauge,
    GaugeKind,
    Layout,
    Place,
    Product,
    SymmetrySpec,
    Units,
    leaves,
)
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest

JointPermutation: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension of a block: part of an axis of the tensor."""

    axis: int
    group: str | None
    leaf: int
    """Which `Units` of the axis' layout it is; -1 for what stays fixed."""


_Part: TypeAlias = tuple[int, Layout, int]
"""An axis, (a part of) its layout, and the number of the first leaf in that."""


def _numbered(axis: int, parts: Sequence[Layout], first: int) -> list[_Part]:
    found = []
    for part in parts:
        found.append((axis, part, first))
        first += sum(1 for _ in leaves(part))
    return found


def _dims(parts: Sequence[_Part]) -> tuple[Dim, ...]:
    return tuple(
        Dim(axis, layout.group, leaf) if isinstance(layout, Units) else Dim(axis, None, -1)
        for axis, layout, leaf in parts
    )


def _unfolded(tensor: torch.Tensor, at: int, sizes: list[int]) -> torch.Tensor:
    return tensor.reshape((*tensor.shape[:at], *sizes, *tensor.shape[at + 1 :]))


def _mapped(
    spec: SymmetrySpec,
    parts: list[_Part],
    tensor: torch.Tensor,
    change: Callable[[tuple[Dim, ...], torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return `tensor` with `change` made to every block of it."""
    for at, (axis, layout, leaf) in enumerate(parts):
        if isinstance(layout, Product | Concat):
            inner = _numbered(axis, layout.parts, leaf)
            sizes = [spec.size(part) for part in layout.parts]
            if isinstance(layout, Product):
                apart = [*parts[:at], *inner, *parts[at + 1 :]]
                changed = _mapped(spec, apart, _unfolded(tensor, at, sizes), change)
                return changed.flatten(at, at + len(sizes) - 1)
            pieces = [
                _mapped(spec, [*parts[:at], part, *parts[at + 1 :]], piece, change)
                for part, piece in zip(inner, torch.split(tensor, sizes, at), strict=True)
            ]
            return torch.cat(pieces, at)
    return change(_dims(parts), tensor)


def _apart(
    spec: SymmetrySpec, parts: list[_Part], tensor: torch.Tensor
) -> Iterator[tuple[tuple[Dim, ...], torch.Tensor]]:
    for at, (axis, layout, leaf) in enumerate(parts):
        if isinstance(layout, Product | Concat):
            inner = _numbered(axis, layout.parts, leaf)
            sizes = [spec.size(part) for part in layout.parts]
            if isinstance(layout, Product):
                apart = [*parts[:at], *inner, *parts[at + 1 :]]
                yield from _apart(spec, apart, _unfolded(tensor, at, sizes))
                return
            for part, piece in zip(inner, torch.split(tensor, sizes, at), strict=True):
                yield from _apart(spec, [*parts[:at], part, *parts[at + 1 :]], piece)
            return
    yield _dims(parts), tensor


def _parts(spec: SymmetrySpec, name: str, tensor: torch.Tensor) -> list[_Part]:
    name = spec.ties.get(name, name)
    if name not in spec.axes:
        raise LocalProtocolError(f"the specification has no tensor {name!r}")
    if tuple(tensor.shape) != spec.shape(name):
        raise LocalProtocolError(
            f"{name!r} has shape {tuple(tensor.shape)}, specified is {spec.shape(name)}"
        )
    return [(axis, layout, 0) for axis, layout in enumerate(spec.axes[name])]


def blocks(
    spec: SymmetrySpec, name: str, tensor: torch.Tensor
) -> list[tuple[tuple[Dim, ...], torch.Tensor]]:
    """Return views of `tensor` whose every dimension is one group's units, or fixed."""
    return list(_apart(spec, _parts(spec, name, tensor), tensor))


def around(spec: SymmetrySpec, dims: Sequence[Dim], at: int) -> list[int]:
    """Return the dimensions that number the permutations of dimension `at`, outermost first.

    Units around are looked for on the same axis, then on the others, where they must be once.
    """
    group = dims[at].group
    found = []
    for outer in spec.groups[group].within if group is not None else ():
        places = [place for place, dim in enumerate(dims) if dim.group == outer]
        own = [place for place in places if dims[place].axis == dims[at].axis]
        if len(own or places) != 1:
            raise LocalProtocolError(f"units of {group!r} without the one {outer!r} around them")
        found += own or places
    return found


def permute_block(
    spec: SymmetrySpec,
    dims: Sequence[Dim],
    tensor: torch.Tensor,
    permutations: JointPermutation,
    skip: Sequence[int] = (),
) -> torch.Tensor:
    """Return a block in its new order, dimensions `skip` left as they are."""
    named = [
        (at, dim.group)
        for at, dim in enumerate(dims)
        if dim.group is not None and dim.group in permutations and at not in skip
    ]
    for at, group in sorted(named, key=lambda item: len(spec.groups[item[1]].within)):
        perm = permutations[group].to(tensor.device)
        outer = around(spec, dims, at)
        if not outer:
            tensor = tensor.index_select(at, perm)
            continue
        shape = [1] * tensor.ndim
        for place in (*outer, at):
            shape[place] = tensor.shape[place]
        order = sorted(range(len(outer) + 1), key=[*outer, at].__getitem__)
        index = perm.permute(order).reshape(shape)
        tensor = tensor.gather(at, index.expand(tensor.shape))
    return tensor


def permute(
    spec: SymmetrySpec, tensors: Tensors, permutations: JointPermutation
) -> dict[str, torch.Tensor]:
    """Return the tensors with their units in the new order; tied ones under all of their names.

    Raises `LocalProtocolError` for tensors or permutations that are not of `spec`.
    """
    require_joint(spec, permutations)
    return {
        name: _mapped(
            spec,
            _parts(spec, name, tensor),
            tensor,
            lambda dims, block: permute_block(spec, dims, block, permutations),
        )
        for name, tensor in tensors.items()
    }


def shape_of(spec: SymmetrySpec, group: str) -> tuple[int, ...]:
    """Return the shape of a group's entry in a joint permutation."""
    own = spec.groups[group]
    return (*(spec.groups[outer].size for outer in own.within), own.size)


def identity(spec: SymmetrySpec) -> dict[str, torch.Tensor]:
    """Return the joint permutation that changes nothing, with every group named."""
    return {
        group: torch.arange(spec.groups[group].size).expand(shape_of(spec, group)).clone()
        for group in spec.groups
    }


def require_joint(spec: SymmetrySpec, permutations: JointPermutation) -> None:
    """Raise `LocalProtocolError` unless these are permutations that `spec` allows."""
    for group, perm in permutations.items():
        if group not in spec.groups:
            raise LocalProtocolError(f"{group!r} is no group of the architecture")
        shape = shape_of(spec, group)
        if tuple(perm.shape) != shape or perm.is_floating_point():
            raise LocalProtocolError(
                f"{group!r} needs integers of shape {shape}, got {perm.dtype} {tuple(perm.shape)}"
            )
        units = torch.arange(shape[-1], device=perm.device)
        if not bool((perm.sort(-1).values == units).all()):
            raise LocalProtocolError(f"not a permutation of the units of {group!r}")
        if not spec.groups[group].movable and not bool((perm == units).all()):
            raise LocalProtocolError(f"units of {group!r} keep their order")


def _whole(spec: SymmetrySpec, permutations: JointPermutation) -> dict[str, torch.Tensor]:
    require_joint(spec, permutations)
    return {**identity(spec), **permutations}


def _places(spec: SymmetrySpec, group: str, whole: JointPermutation) -> tuple[torch.Tensor, ...]:
    """Return where each entry's units, and the units around them, came from."""
    own = spec.groups[group]
    shape = shape_of(spec, group)
    grid = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    found = []
    for outer in own.within:
        above = [own.within.index(name) for name in spec.groups[outer].within]
        at = own.within.index(outer)
        found.append(whole[outer][(*(grid[place] for place in above), grid[at])])
    return (*found, whole[group][grid])


def compose(
    spec: SymmetrySpec, first: JointPermutation, then: JointPermutation
) -> dict[str, torch.Tensor]:
    """Return what `first` and `then` do one after the other."""
    before, after = _whole(spec, first), _whole(spec, then)
    return {group: before[group][_places(spec, group, after)] for group in spec.groups}


def inverse(spec: SymmetrySpec, permutations: JointPermutation) -> dict[str, torch.Tensor]:
    """Return what undoes `permutations`."""
    whole = _whole(spec, permutations)
    undone = {}
    for group in spec.groups:
        undone[group] = torch.empty_like(whole[group])
        units = torch.arange(spec.groups[group].size).expand_as(whole[group])
        undone[group][_places(spec, group, whole)] = units
    return undone


def random_permutation(
    spec: SymmetrySpec, generator: torch.Generator, groups: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return uniform permutations of `groups` (of all, if none are named)."""
    return {
        group: torch.rand(shape_of(spec, group), generator=generator).argsort(-1)
        for group in (spec.groups if groups is None else groups)
        if spec.groups[group].movable
    }


def permutation_hash(spec: SymmetrySpec, permutations: JointPermutation) -> Digest:
    """Return the SHA-256 of the canonical CBOR of all groups' permutations."""
    whole = _whole(spec, permutations)
    return Digest(
        hashlib.sha256(
            cbor.encode({group: perm.flatten().tolist() for group, perm in whole.items()})
        ).digest()
    )


def change_basis(
    spec: SymmetrySpec, tensors: Tensors, gauge: Gauge, change: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the tensors in another basis of a gauge's units: the same function.

    `change` has the shape of the group's permutation, for scales; with one axis more it holds
    matrices M, of a `GaugeKind.LINEAR` gauge only: what writes the units is multiplied by M,
    what reads them by M⁻ᵀ. Raises `LocalProtocolError` for any other.
    """
    shape = shape_of(spec, gauge.group)
    matrices = tuple(change.shape) == (*shape, shape[-1]) and gauge.kind is GaugeKind.LINEAR
    if not matrices:
        if tuple(change.shape) != shape:
            raise LocalProtocolError(f"a basis of {tuple(change.shape)} for {gauge.group!r}")
        allowed = {
            GaugeKind.POSITIVE: bool((change > 0).all()),
            GaugeKind.SIGN: bool((change.abs() == 1).all()),
        }.get(gauge.kind, bool((change != 0).all()))
        if not allowed:
            raise LocalProtocolError(f"scales of {gauge.group!r} must be {gauge.kind.value}")
        change = torch.diag_embed(change)
    back = torch.linalg.inv(change).mT
    sides = {
        **dict.fromkeys(gauge.writes, change),
        **dict.fromkeys(gauge.reads, back),
    }

    def changed(name: str, dims: tuple[Dim, ...], block: torch.Tensor) -> torch.Tensor:
        for at, dim in enumerate(dims):
            matrix = sides.get(Place(name, dim.axis, dim.leaf))
            if matrix is None:
                continue
            outer = around(spec, dims, at)
            letters = [chr(ord("a") + place) for place in range(len(dims))]
            given = "".join(letters[place] for place in outer)
            before = "".join(letters)
            after = before.replace(letters[at], "z")
            block = torch.einsum(
                f"{given}z{letters[at]},{before}->{after}", matrix.to(block), block
            )
        return block

    result = {}
    for name, tensor in tensors.items():
        own = spec.ties.get(name, name)
        result[name] = _mapped(
            spec,
            _parts(spec, name, tensor),
            tensor,
            lambda dims, block, own=own: changed(own, dims, block),  # type: ignore[misc]
        )
    return result
