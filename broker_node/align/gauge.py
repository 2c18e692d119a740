"""Canonical scales: one representative of all the ReLU rescalings of a model.

Multiplying what enters a ReLU unit by s > 0 and dividing what leaves it by s changes
nothing that a model computes, and everything that weight matching sees. So both models are
brought to the balanced gauge first: every unit's incoming weights (with its bias) and its
outgoing weights have the same norm. It is the one rescaling that minimises the sum of
squares of all weights, and gradient descent conserves the difference of the two norms (Du,
Hu and Lee 2018, Theorem 2.1), so that a trained model stands near it already, and no
rescaling of such units by a seller changes the merge. Incoming norms of 1 have a closed form and
cost less; which of the two is worth more was within the noise of what was measured. Scales that
normalisation layers take up, and bases of attention heads, are no part of it.

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
MAX_WORK: Final = 2e9
"""Squares that all sweeps over a model may read, those of `OVERHEAD` among them: a deep chain of
layers would have every sweep that there is, in a thread that nothing can stop. The slowest that
is taken has 3 s (784, 255 times 1, 10)."""
OVERHEAD: Final = 1e4
"""Squares that could be read in the time that it takes to read none."""
TOLERANCE: Final = 1e-7
"""Largest relative step of a sweep that ends the balancing: float32's own precision."""


@dataclass(frozen=True, slots=True)
class _Use:
    """A tensor's squares, summed over every axis but those of rescalable units, as a group has it.

    The group's own axis comes first; `others` are those of the other axes, in order.
    """

    squares: NDArray[np.float64]
    role: Role
    others: tuple[Axis, ...]


def _uses(spec: PermutationSpec, tensors: Tensors) -> dict[str, list[_Use]]:
    """Return every use of each rescalable group."""
    found: dict[str, list[_Use]] = {name: [] for name, g in spec.groups.items() if g.rescalable}
    for name, axes in spec.axes.items():
        kept = [(at, axis) for at, axis in enumerate(axes) if axis and axis.group in found]
        if not kept:
            continue
        summed = tuple(set(range(len(axes))) - {at for at, _ in kept})
        squares = np.square(tensors[name].detach().cpu().double().numpy()).sum(axis=summed)
        for place, (_, own) in enumerate(kept):
            found[own.group].append(
                _Use(
                    squares=np.moveaxis(squares, place, 0),
                    role=own.role,
                    others=tuple(axis for at, (_, axis) in enumerate(kept) if at != place),
                )
            )
    return found


def _sums(
    uses: list[_Use], factors: Mapping[str, NDArray[np.float64]], group: str, role: Role
) -> NDArray[np.float64]:
    """Return each unit's sum of squared weights in `role`, at squared scales `factors`."""
    total_U = np.zeros_like(factors[group])
    for use in uses:
        if use.role is role:
            rest = use.squares
            for other in reversed(use.others):
                factor = factors[other.group]
                rest = rest @ (factor if other.role is Role.WRITES else 1 / factor)
            total_U += rest
    return total_U * factors[group] if role is Role.WRITES else total_U / factors[group]


def _sweeps(uses: Mapping[str, list[_Use]]) -> int:
    """Return how many sweeps `MAX_WORK` has room for, 1 … `MAX_SWEEPS`."""
    each = sum(use.squares.size + OVERHEAD for of_group in uses.values() for use in of_group)
    return int(min(MAX_SWEEPS, max(1, MAX_WORK // max(each, 1.0))))


def balanced_scales(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return float64 scales by group that make incoming and outgoing norms equal.

    The problem is convex in the logarithms of the scales and is solved group after group.
    It starts from incoming norms of 1, so that the answer does not depend, beyond rounding,
    on the scales in which the model came, however extreme: not even where a model is so deep
    that its bound of work ends the balancing before its tolerance does.
    """
    uses = _uses(spec, tensors)
    factors = {group: np.ones(spec.groups[group].size) for group in uses}
    for group, of_group in uses.items():
        into_U = _sums(of_group, factors, group, Role.WRITES)
        factors[group] = np.divide(1, into_U, out=np.ones_like(into_U), where=into_U > 0)
    for _ in range(_sweeps(uses)):
        largest = 0.0
        for group, of_group in uses.items():
            into_U = _sums(of_group, factors, group, Role.WRITES)
            out_U = _sums(of_group, factors, group, Role.READS)
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
