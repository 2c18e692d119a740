"""Which units of a model may be permuted and rescaled without changing what it computes.

A specification is data: for every axis of every tensor, the group of units that it runs
over, and whether it writes those units' values or reads them. Renumbering the units of a
group along all of its axes is exact for any elementwise activation. Where the activation
is ReLU, so is multiplying what writes a unit by s > 0 and dividing what reads it by s.
The solver that finds good permutations stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    rescalable: bool
    """Whether their activation is ReLU, so that any positive scale of a unit is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationSpec:
    """The symmetries of an architecture; groups stand in the order data flows through them."""

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis | None, ...]]
    """For every tensor, one entry an axis; None where the axis is no group's."""
    statistics: frozenset[str] = frozenset()
    """Tensors that are taken of data and not learnt, in scales of their own: they are renumbered
    with their units, and no ground to match by."""


def restrict(spec: PermutationSpec, names: Collection[str]) -> PermutationSpec:
    """Return what may be done to the tensors of these names while all others stay as they are.

    Groups that none of them touches are left out. A group that others touch too is not
    rescaled, for what would make up for it is not there; but it may be renumbered, so that the
    units on this side of it meet those of another model on the other.
    """
    axes = {name: of_tensor for name, of_tensor in spec.axes.items() if name in names}
    touched = _groups(axes.values())
    shared = _groups(of_tensor for name, of_tensor in spec.axes.items() if name not in axes)
    groups = {
        name: replace(group, rescalable=group.rescalable and name not in shared)
        for name, group in spec.groups.items()
        if name in touched
    }
    return PermutationSpec(groups=groups, axes=axes, statistics=spec.statistics.intersection(names))


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
    """Multiply what writes unit u by ``scales[group][u]`` and divide what reads it by that.

    Raises `LocalProtocolError` for a group whose units cannot be rescaled.
    """
    for group in scales:
        if group not in spec.groups or not spec.groups[group].rescalable:
            raise LocalProtocolError(f"units of {group!r} cannot be rescaled")
    result = {}
    for name, tensor in tensors.items():
        for dimension, axis in enumerate(spec.axes[name]):
            if axis is not None and axis.group in scales:
                shape = [1] * tensor.ndim
                shape[dimension] = -1
                factor = scales[axis.group].to(tensor).reshape(shape)
                tensor = tensor * factor if axis.role is Role.WRITES else tensor / factor
        result[name] = tensor
    return result


def is_permutation(permutation: Sequence[int], size: int) -> bool:
    """Whether `permutation` holds every integer of 0 … size - 1 exactly once."""
    return len(permutation) == size and sorted(permutation) == list(range(size))
