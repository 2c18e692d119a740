"""Canonical scales: one representative of all the ReLU rescalings of a model.

Multiplying what enters a ReLU unit by s > 0 and dividing what leaves it by s changes
nothing that a model computes, and everything that weight matching sees. So both models are
brought to a canonical gauge first. Two gauges:

`incoming`  every unit's incoming weights and bias have norm 1; closed form, group by group
            in the order that data flows.
`balanced`  every unit's incoming and outgoing weights have the same norm: the one
            rescaling that minimises the sum of squares of all weights. Gradient descent
            conserves the difference of the two norms (Du et al. 2018), so a trained model
            stands near it already. A convex problem in log s, solved by sweeps.

A unit without incoming or without outgoing weights contributes nothing, whatever stands on
its other side: `without_dead_units` clears that side before anything is compared, so that
it lends no weight to the units before and behind it. Its own scale stays 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from node.params.permutation import PermutationSpec, Role, Tensors, rescale

MAX_SWEEPS: Final = 400
TOLERANCE: Final = 1e-10
"""Largest |log s| of a sweep that ends the balancing."""

Gauge = Callable[[PermutationSpec, Tensors], dict[str, torch.Tensor]]


def _squared_norms(spec: PermutationSpec, tensors: Tensors, group: str, role: Role) -> torch.Tensor:
    """Return, for each unit, the sum of squares of the weights in this role, in float64."""
    total_U = torch.zeros(spec.groups[group].size, dtype=torch.float64)
    for name, dimension in _uses(spec, group, role):
        squares = tensors[name].double().square()
        others = [d for d in range(squares.ndim) if d != dimension]
        total_U += (squares.sum(dim=others) if others else squares).cpu()
    return total_U


def _uses(spec: PermutationSpec, group: str, role: Role) -> list[tuple[str, int]]:
    """Return the tensors, and which of their axes, that stand in this role to the group."""
    return [
        (name, dimension)
        for name, axes in spec.axes.items()
        for dimension, axis in enumerate(axes)
        if axis is not None and axis.group == group and axis.role is role
    ]


def _rescalable(spec: PermutationSpec) -> list[str]:
    return [name for name, group in spec.groups.items() if group.rescalable]


def without_dead_units(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function with every weight zero that meets a unit without effect.

    A unit that nothing writes to but zeros reads as zero; one that nothing reads may as well
    hold zero. The former are found in the order of the data, the latter against it.
    """
    current = dict(tensors)
    order = _rescalable(spec)
    for groups, empty, cleared in (
        (order, Role.WRITES, Role.READS),
        (order[::-1], Role.READS, Role.WRITES),
    ):
        for group in groups:
            alive_U = _squared_norms(spec, current, group, empty) > 0
            for name, dimension in _uses(spec, group, cleared):
                shape = [1] * current[name].ndim
                shape[dimension] = -1
                current[name] = current[name] * alive_U.to(current[name]).reshape(shape)
    return current


def incoming(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return float64 scales by group that give every unit an incoming norm of 1."""
    current = {name: tensor.double() for name, tensor in tensors.items()}
    scales = {}
    for group in _rescalable(spec):
        norms_U = _squared_norms(spec, current, group, Role.WRITES).sqrt()
        scales_U = torch.where(norms_U > 0, 1 / norms_U, 1.0)
        scales[group] = scales_U
        current = rescale(spec, current, {group: scales_U})
    return scales


def balanced(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return float64 scales by group that make incoming and outgoing norms equal.

    Starts from the `incoming` gauge, so that the answer does not depend on the gauge in
    which the model came, however extreme, beyond the tolerance.
    """
    scales = incoming(spec, tensors)
    current = rescale(spec, {name: tensor.double() for name, tensor in tensors.items()}, scales)
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for group in _rescalable(spec):
            in_U = _squared_norms(spec, current, group, Role.WRITES)
            out_U = _squared_norms(spec, current, group, Role.READS)
            alive_U = (in_U > 0) & (out_U > 0)
            ratio_U = torch.where(alive_U, out_U / in_U, 1.0)
            step_U = ratio_U.pow(0.25)
            largest = max(largest, float(step_U.log().abs().max()))
            scales[group] = scales[group] * step_U
            current = rescale(spec, current, {group: step_U})
        if largest < TOLERANCE:
            break
    return scales


def natural(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return scales of 1: the gauge in which the model came."""
    return {
        group: torch.ones(spec.groups[group].size, dtype=torch.float64)
        for group in _rescalable(spec)
    }
