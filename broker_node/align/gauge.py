"""Canonical scales: one representative of all the ReLU rescalings of a model.

Multiplying what enters a ReLU unit by s > 0 and dividing what leaves it by s changes
nothing that a model computes, and everything that weight matching sees. So both models are
brought to the balanced gauge first: every unit's incoming weights (with its bias) and its
outgoing weights have the same norm. It is the one rescaling that minimises the sum of
squares of all weights, and gradient descent conserves the difference of the two norms (Du,
Hu and Lee 2018, Theorem 2.1), so that a trained model stands near it already, and no
rescaling by a seller changes the merge. Incoming norms of 1 have a closed form and cost
less; which of the two gains more was within the noise of what was measured.

A unit without incoming or without outgoing weights contributes nothing, whatever stands on
its other side: `without_dead_units` clears that side before anything is compared, so that
it lends no weight to the units before and behind it. Its own scale stays 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.params.permutation import Axis, PermutationSpec, Role, Tensors

MAX_SWEEPS: Final = 1000
TOLERANCE: Final = 1e-7
"""Largest relative step of a sweep that ends the balancing: float32's own precision."""


@dataclass(frozen=True, slots=True)
class _UnitSquares:
    """A tensor's squares, summed over every axis but those of rescalable units."""

    values: NDArray[np.float64]
    axes: tuple[Axis, ...]


def _unit_squares(spec: PermutationSpec, tensors: Tensors) -> list[_UnitSquares]:
    reduced = []
    for name, axes in spec.axes.items():
        kept = [
            (dimension, axis)
            for dimension, axis in enumerate(axes)
            if axis is not None and spec.groups[axis.group].rescalable
        ]
        if kept:
            summed = tuple(set(range(len(axes))) - {dimension for dimension, _ in kept})
            squares = np.square(tensors[name].detach().cpu().double().numpy())
            reduced.append(_UnitSquares(squares.sum(axis=summed), tuple(axis for _, axis in kept)))
    return reduced


def _sums(
    squares: list[_UnitSquares],
    factors: Mapping[str, NDArray[np.float64]],
    group: str,
    role: Role,
) -> NDArray[np.float64]:
    """Return each unit's sum of squared weights in `role`, at squared scales `factors`."""
    total_U = np.zeros_like(factors[group])
    for reduced in squares:
        for dimension, axis in enumerate(reduced.axes):
            if axis.group != group or axis.role is not role:
                continue
            rest = reduced.values
            # from the last axis down, so that the numbers of those before it stay right
            for other in reversed(range(len(reduced.axes))):
                if other != dimension:
                    factor = factors[reduced.axes[other].group]
                    writes = reduced.axes[other].role is Role.WRITES
                    rest = np.tensordot(rest, factor if writes else 1 / factor, axes=(other, 0))
            total_U += rest
    return total_U * factors[group] if role is Role.WRITES else total_U / factors[group]


def balanced_scales(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return float64 scales by group that make incoming and outgoing norms equal.

    The problem is convex in the logarithms of the scales and is solved group after group.
    It starts from incoming norms of 1, so that the answer does not depend, beyond the
    tolerance, on the scales in which the model came, however extreme.
    """
    squares = _unit_squares(spec, tensors)
    groups = [name for name, group in spec.groups.items() if group.rescalable]
    factors = {group: np.ones(spec.groups[group].size) for group in groups}
    for group in groups:
        into_U = _sums(squares, factors, group, Role.WRITES)
        factors[group] = np.divide(1, into_U, out=np.ones_like(into_U), where=into_U > 0)
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for group in groups:
            into_U = _sums(squares, factors, group, Role.WRITES)
            out_U = _sums(squares, factors, group, Role.READS)
            alive_U = (into_U > 0) & (out_U > 0)
            step_U = np.divide(out_U, into_U, out=np.ones_like(out_U), where=alive_U) ** 0.5
            factors[group] = factors[group] * step_U
            largest = max(largest, float(np.abs(step_U - 1).max()))
        if largest < TOLERANCE:
            break
    return {group: torch.from_numpy(np.sqrt(factor)) for group, factor in factors.items()}


def without_dead_units(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function with every weight zero that meets a unit without effect.

    A unit that nothing but zeros write to is zero; one that nothing reads may as well be.
    The former are found in the direction of the data, the latter against it.
    """
    current = dict(tensors)
    order = [name for name, group in spec.groups.items() if group.rescalable]
    for groups, empty in ((order, Role.WRITES), (order[::-1], Role.READS)):
        for group in groups:
            alive_U = torch.zeros(spec.groups[group].size, dtype=torch.bool)
            uses = [
                (name, dimension, axis.role)
                for name, axes in spec.axes.items()
                for dimension, axis in enumerate(axes)
                if axis is not None and axis.group == group
            ]
            for name, dimension, role in uses:
                if role is empty:
                    weights_UF = current[name].movedim(dimension, 0).reshape(len(alive_U), -1)
                    alive_U |= (weights_UF != 0).any(1).cpu()
            for name, dimension, role in uses:
                if role is not empty:
                    shape = [1] * current[name].ndim
                    shape[dimension] = -1
                    current[name] = current[name] * alive_U.to(current[name]).reshape(shape)
    return current
