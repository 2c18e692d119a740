"""Which units of a model may be permuted and rescaled without changing what it computes.

A specification is data: for every axis of every tensor, the group of units that it runs
over, and whether it writes those units' values or reads them. Renumbering the units of a
group along all of its axes is exact for any elementwise activation. Multiplying what writes
a unit by s > 0 and dividing what reads it by s is exact where nothing between the two sees
the scale (`Rescaling`): through ReLU; from the gain of a norm to what reads the normed values;
from a head's queries to its keys. The solver that finds good permutations stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import torch

from node.protocol.errors import LocalProtocolError

Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""A parameter set: float32 tensors by name."""


class Role(Enum):
    """What a tensor does to the units that one of its axes runs over."""

    WRITES = "writes"
    READS = "reads"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor that runs over the units of `group`."""

    group: str
    role: Role


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are interchangeable with one another."""

    size: int


AxisOf: TypeAlias = tuple[str, int]
"""A tensor, by name, and one of its axes."""


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Places of a group between which any positive scale of a unit is exact."""

    group: str
    writes: frozenset[AxisOf]
    """Multiplied by a unit's scale."""
    reads: frozenset[AxisOf]
    """Divided by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationSpec:
    """The symmetries of an architecture; groups stand in the order data flows through them."""

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis | None, ...]]
    """For every tensor, one entry an axis; None where the axis is no group's."""
    rescalings: Mapping[str, Rescaling] = field(default_factory=dict)
    """By name: the group's own where it takes in all that the group touches, as ReLU's does, and
    that of a place otherwise (`named`). No place is in two."""
    statistics: frozenset[str] = frozenset()
    """Tensors that are taken of data and not learnt, in scales of their own: they are renumbered
    with their units, and no ground to match by."""

    def rescales(self) -> dict[str, tuple[tuple[str, Role] | None, ...]]:
        """Return, for every tensor that is rescaled, the rescaling of each axis and its side."""
        found: dict[str, list[tuple[str, Role] | None]] = {}
        for name, rescaling in self.rescalings.items():
            for role, places in (
                (Role.WRITES, rescaling.writes),
                (Role.READS, rescaling.reads),
            ):
                for tensor, axis in places:
                    found.setdefault(tensor, [None] * len(self.axes[tensor]))[axis] = (name, role)
        return {tensor: tuple(sides) for tensor, sides in found.items()}


def all_through(
    groups: Iterable[str], axes: Mapping[str, tuple[Axis | None, ...]]
) -> dict[str, Rescaling]:
    """Return rescalings of groups that nothing but ReLU stands behind, at all of their places."""
    places: dict[tuple[str, Role], set[AxisOf]] = {}
    for name, of_tensor in axes.items():
        for at, axis in enumerate(of_tensor):
            if axis is not None:
                places.setdefault((axis.group, axis.role), set()).add((name, at))
    return {
        group: Rescaling(
            group=group,
            writes=frozenset(places.get((group, Role.WRITES), ())),
            reads=frozenset(places.get((group, Role.READS), ())),
        )
        for group in groups
    }


def named(rescalings: Iterable[Rescaling]) -> dict[str, Rescaling]:
    """Return rescalings of some of their groups' places by the first that each writes."""
    found = {}
    for rescaling in rescalings:
        tensor, axis = min(rescaling.writes)
        found[f"{tensor}#{axis}"] = rescaling
    return found


def restrict(spec: PermutationSpec, names: Collection[str]) -> PermutationSpec:
    """Return what may be done to the tensors of these names while all others stay as they are.

    Groups that none of them touches are left out. What others would have to make up for is not
    rescaled; but a group that others touch too may be renumbered, so that the units on this side of
    it meet those of another model on the other.
    """
    axes = {name: of_tensor for name, of_tensor in spec.axes.items() if name in names}
    touched = _groups(axes.values())
    return PermutationSpec(
        groups={name: group for name, group in spec.groups.items() if name in touched},
        axes=axes,
        rescalings={
            name: rescaling
            for name, rescaling in spec.rescalings.items()
            if all(tensor in axes for tensor, _ in rescaling.writes | rescaling.reads)
        },
        statistics=spec.statistics.intersection(names),
    )


def _groups(axes: Iterable[tuple[Axis | None, ...]]) -> set[str]:
    return {axis.group for of_tensor in axes for axis in of_tensor if axis is not None}


def permute(
    spec: PermutationSpec, tensors: Tensors, permutations: Mapping[str, Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Renumber units: unit u of the result is unit ``permutations[group][u]`` of `tensors`.

    A group that is not named keeps its order.
    """
    indices = {
        group: torch.tensor(permutation, dtype=torch.long)
        for group, permutation in permutations.items()
    }
    result = {}
    for name, tensor in tensors.items():
        for dimension, axis in enumerate(spec.axes[name]):
            if axis is not None and axis.group in indices:
                tensor = tensor.index_select(dimension, indices[axis.group].to(tensor.device))
        result[name] = tensor
    return result


def rescale(
    spec: PermutationSpec, tensors: Tensors, scales: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Multiply what writes unit u by ``scales[name][u]`` and divide what reads it by that.

    `scales` are by rescaling. Raises `LocalProtocolError` for one that there is not.
    """
    for rescaling in scales:
        if rescaling not in spec.rescalings:
            raise LocalProtocolError(f"units of {rescaling!r} cannot be rescaled")
    sides = spec.rescales()
    result = {}
    for name, tensor in tensors.items():
        for dimension, side in enumerate(sides.get(name, ())):
            if side is not None and side[0] in scales:
                shape = [1] * tensor.ndim
                shape[dimension] = -1
                factor = scales[side[0]].to(tensor).reshape(shape)
                tensor = tensor * factor if side[1] is Role.WRITES else tensor / factor
        result[name] = tensor
    return result


def is_permutation(permutation: Sequence[int], size: int) -> bool:
    """Whether `permutation` holds every integer of 0 … size - 1 exactly once."""
    return len(permutation) == size and sorted(permutation) == list(range(size))
