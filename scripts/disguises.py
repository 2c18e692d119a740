"""What a thief does to a copy, for benchmarks: little of what it computes changes, or nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from node.params import blocks
from node.params.architecture import Architecture, permutation_spec
from node.params.families.base import GraphModel
from node.params.permutation import permute, rescale
from node.params.symmetry import GaugeKind

Tensors = dict[str, torch.Tensor]
Disguise = Callable[[Tensors, torch.Generator], Tensors]
OCTAVES: Final = 4.0
"""Units are rescaled by 1/16 … 16."""
LARGEST_CONDITION: Final = 10.0
"""Of the matrices by which bases inside of heads are changed."""


def moved(architecture: Architecture, tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Return the same function, its units renumbered and rescaled wherever that is exact."""
    spec = permutation_spec(architecture)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {}
    for name, own in spec.rescalings.items():
        drawn_U = torch.rand(spec.groups[own.group].size, generator=generator)
        scales[name] = torch.exp2(2 * OCTAVES * drawn_U - OCTAVES)
    return rescale(spec, permute(spec, tensors, permutations), scales)


def in_other_bases(
    architecture: Architecture, tensors: Tensors, generator: torch.Generator
) -> Tensors:
    """Return the same function, to rounding, with another basis inside of every head."""
    assert isinstance(architecture.model, GraphModel)
    spec = architecture.model.symmetries()
    found = {name: tensor.double() for name, tensor in tensors.items()}
    for gauge in spec.gauges:
        if gauge.kind is not GaugeKind.LINEAR:
            continue
        shape = blocks.shape_of(spec, gauge.group)
        bases = torch.stack([_basis(shape[-1], generator) for _ in range(math.prod(shape[:-1]))])
        found = blocks.change_basis(spec, found, gauge, bases.reshape(*shape, shape[-1]))
    return {name: tensor.float() for name, tensor in found.items()}


def _basis(size: int, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    left, right = torch.linalg.qr(drawn).Q
    values_U = torch.logspace(0, torch.tensor(LARGEST_CONDITION).log10(), size)
    basis_UU: torch.Tensor = left @ (values_U.double()[:, None] * right)
    return basis_UU


def noise(share: float) -> Disguise:
    """Return a disguise by noise of a share of each tensor's standard deviation."""

    def disguise(tensors: Tensors, generator: torch.Generator) -> Tensors:
        return {
            name: tensor
            + share * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    return disguise


def half_precision(tensors: Tensors, _generator: torch.Generator) -> Tensors:
    """Round to fp16."""
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def eight_bits(tensors: Tensors, _generator: torch.Generator) -> Tensors:
    """Round to 255 levels a tensor."""
    found = {}
    for name, tensor in tensors.items():
        step = (tensor.abs().max() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        found[name] = (tensor / step).round() * step
    return found


def as_it_is(tensors: Tensors, _generator: torch.Generator) -> Tensors:
    """Change nothing."""
    return tensors


DISGUISES: Final[Mapping[str, Disguise]] = {
    "renumbered and rescaled": as_it_is,
    "fp16": half_precision,
    "int8": eight_bits,
    "noise 10%": noise(0.1),
    "noise 50%": noise(0.5),
    "noise 100%": noise(1.0),
}
"""Of what needs no training."""
