"""Canonical scales: one representative of all the rescalings of a model.

Multiplying what enters a ReLU unit by s > 0 and dividing what leaves it by s changes
nothing that a model computes, and everything that weight matching sees. The same is true of a
norm's gain and what reads the normed values, of a head's queries and its keys, of its values and
its outputs. So both models are brought to one gauge first, and no rescaling by a seller changes the
merge.

Gains, vectors that only scale what others read, are folded into their readers: each unit's gain and
bias have a norm of 1, so that a merge is the mean of what is read. Everywhere else the gauge is the
balanced one: each unit's weights on the one side and on the other have the same norm. It is the
choice of scales that minimises the sum of squares of all weights, and gradient descent conserves
the difference of the two norms (Du, Hu and Lee 2018, Theorem 2.1), so that a trained model of ReLU
units stands near it already. Incoming norms of 1 have a closed form and cost less; which of the two
is worth more was within the noise of what was measured.
Signs, and bases inside of heads beyond their scale, are no part of it (`broker_node.align.bases`).

A unit without weights on one side contributes nothing there, whatever stands on the other:
`without_dead_units` clears that side before anything is compared, so that it lends no weight to
the units before and behind it. Its own scale stays 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.params.permutation import PermutationSpec, Role, Tensors

MAX_SWEEPS: Final = 1000
MAX_WORK: Final = 2e9
"""Squares that all sweeps over a model may read, those of `OVERHEAD` among them: a deep chain of
layers would have every sweep that there is, in a thread that nothing can stop. The slowest that
is taken has 3 s (784, 255 times 1, 10)."""
OVERHEAD: Final = 1e4
"""Squares that could be read in the time that it takes to read none."""
LEAST: Final = 2.0**-31
"""The smallest scale of gains and heads, whose inverse is the largest: quotients of two models'
stay within what recipes carry."""
TOLERANCE: Final = 1e-7
"""Largest relative step of a sweep that ends the balancing: float32's own precision."""


@dataclass(frozen=True, slots=True)
class _Use:
    """A tensor's squares, summed over every axis but those that are rescaled, as one of these is.

    Its own axis comes first; `others` are rescaling and side of the other axes, in order.
    """

    squares: NDArray[np.float64]
    role: Role
    others: tuple[tuple[str, Role], ...]


def _uses(spec: PermutationSpec, tensors: Tensors) -> dict[str, list[_Use]]:
    """Return every use of each rescaling."""
    found: dict[str, list[_Use]] = {name: [] for name in spec.rescalings}
    for name, sides in spec.rescales().items():
        kept = [(at, side) for at, side in enumerate(sides) if side is not None]
        summed = tuple(set(range(len(sides))) - {at for at, _ in kept})
        squares = np.square(tensors[name].detach().cpu().double().numpy()).sum(axis=summed)
        for place, (_, (own, role)) in enumerate(kept):
            found[own].append(
                _Use(
                    squares=np.moveaxis(squares, place, 0),
                    role=role,
                    others=tuple(side for at, (_, side) in enumerate(kept) if at != place),
                )
            )
    return found


def _sums(
    uses: list[_Use], factors: Mapping[str, NDArray[np.float64]], own: str, role: Role
) -> NDArray[np.float64]:
    """Return each unit's sum of squared weights on a side, at squared scales `factors`."""
    total_U = np.zeros_like(factors[own])
    for use in uses:
        if use.role is role:
            rest = use.squares
            for other, side in reversed(use.others):
                factor = factors[other]
                rest = rest @ (factor if side is Role.WRITES else 1 / factor)
            total_U += rest
    return total_U * factors[own] if role is Role.WRITES else total_U / factors[own]


def _is_gain(spec: PermutationSpec, name: str) -> bool:
    """Whether what a rescaling multiplies are vectors alone, and not all that is of its group."""
    written = spec.rescalings[name].writes
    return name not in spec.groups and all(len(spec.axes[tensor]) == 1 for tensor, _ in written)


def _sweeps(uses: Mapping[str, list[_Use]]) -> int:
    """Return how many sweeps `MAX_WORK` has room for, 1 … `MAX_SWEEPS`."""
    each = sum(use.squares.size + OVERHEAD for of_one in uses.values() for use in of_one)
    return int(min(MAX_SWEEPS, max(1, MAX_WORK // max(each, 1.0))))


def balanced_scales(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return float64 scales by rescaling: gains of norm 1, and both sides equal everywhere else.

    The problem is convex in the logarithms of the scales and is solved one rescaling after another.
    It starts from norms of 1 of what writes, so that the answer does not depend, beyond rounding,
    on the scales in which the model came, however extreme: not even where a model is so deep
    that its bound of work ends the balancing before its tolerance does.
    """
    uses = _uses(spec, tensors)
    factors = {name: np.ones(spec.groups[own.group].size) for name, own in spec.rescalings.items()}
    for name, of_one in uses.items():
        into_U = _sums(of_one, factors, name, Role.WRITES)
        factors[name] = np.divide(1, into_U, out=np.ones_like(into_U), where=into_U > 0)
    balanced = {name: of_one for name, of_one in uses.items() if not _is_gain(spec, name)}
    for _ in range(_sweeps(balanced)):
        largest = 0.0
        for name, of_one in balanced.items():
            into_U = _sums(of_one, factors, name, Role.WRITES)
            out_U = _sums(of_one, factors, name, Role.READS)
            alive_U = (into_U > 0) & (out_U > 0)
            step_U = np.divide(out_U, into_U, out=np.ones_like(out_U), where=alive_U) ** 0.5
            factors[name] = factors[name] * step_U
            largest = max(largest, float(np.abs(step_U - 1).max()))
        if largest < TOLERANCE:
            break
    for name in factors.keys() - spec.groups.keys():
        # a gain may decay to next to nothing: any scale is exact, and this one still fits a recipe
        np.clip(factors[name], LEAST**2, LEAST**-2, out=factors[name])
    return {name: torch.from_numpy(np.sqrt(factor)) for name, factor in factors.items()}


def without_dead_units(spec: PermutationSpec, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the same function with every weight zero that meets a unit without effect.

    A unit that nothing but zeros write to is zero; one that nothing reads may as well be.
    The former are found in the direction of the data, the latter against it.
    """
    current = dict(tensors)
    order = list(spec.rescalings.values())
    for rescalings, from_writes in ((order, True), (order[::-1], False)):
        for own in rescalings:
            looked_at, cleared = own.writes, own.reads
            if not from_writes:
                looked_at, cleared = cleared, looked_at
            alive_U = torch.zeros(spec.groups[own.group].size, dtype=torch.bool)
            for name, axis in sorted(looked_at):
                weights_UF = current[name].movedim(axis, 0).reshape(len(alive_U), -1)
                alive_U |= (weights_UF != 0).any(1).cpu()
            for name, axis in sorted(cleared):
                shape = [1] * current[name].ndim
                shape[axis] = -1
                current[name] = current[name] * alive_U.to(current[name]).reshape(shape)
    return current
