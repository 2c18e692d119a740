"""The check on outputs: a renumbered module must compute what it computed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch.func import functional_call
from torch.utils import _pytree as pytree

from node.params.blocks import change_basis, permute, random_permutation, shape_of
from node.params.derivation.derive import derive
from node.params.derivation.errors import UnderivableError
from node.params.derivation.trace import evaluating
from node.params.permutation import Tensors
from node.params.symmetry import Gauge, GaugeKind, SymmetrySpec, Units, within

RELATIVE_TOLERANCE: Final = 1e-4
"""Of the largest output: sums in another order, in float32."""


def outputs(
    module: torch.nn.Module,
    tensors: Tensors,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> list[torch.Tensor]:
    """Return what `module` computes with these tensors, in evaluation mode."""
    with evaluating(module), torch.no_grad():
        result = functional_call(
            module, dict(tensors), tuple(args), dict(kwargs or {}), tie_weights=False
        )
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def unsettled(
    module: torch.nn.Module, spec: SymmetrySpec, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the module's tensors, none of them constant along an axis any more.

    Fresh scales of 1 and shifts of 0 would hide that their order matters. What was positive
    stays so: variances must.
    """
    moved = {}
    for name, tensor in module.state_dict().items():
        if name not in spec.ties and tensor.is_floating_point():
            factor, shift = (
                torch.rand(tensor.shape, generator=generator).to(tensor) for _ in range(2)
            )
            tensor = tensor * (1 + factor / 2) + shift / 20
        moved[name] = tensor
    return {name: moved[spec.ties.get(name, name)] for name in moved}


def require_preserved(
    module: torch.nn.Module,
    spec: SymmetrySpec,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> None:
    """Raise `UnderivableError` ``not-preserved`` if a random renumbering changes an output."""
    generator = torch.Generator().manual_seed(seed)
    before = unsettled(module, spec, generator)
    after = permute(spec, before, random_permutation(spec, generator))
    changed = _changed(*(outputs(module, side, args, kwargs) for side in (before, after)))
    if changed is not None:
        raise UnderivableError("not-preserved", changed)


def _changed(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> str | None:
    """Return by how much an output changed, or None."""
    for old, new in zip(before, after, strict=True):
        if old.numel() == 0:
            continue
        old, new = old.double(), new.double()
        worst, largest = float((old - new).abs().max()), float(old.abs().max())
        if not worst <= RELATIVE_TOLERANCE * largest:
            return f"outputs of {largest:g} differ by {worst:g}"
    return None


def by_head(
    module: torch.nn.Module,
    spec: SymmetrySpec,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> SymmetrySpec:
    """Return `spec` with a basis for each head wherever outputs bear that out.

    Where heads and the units inside of them have an axis each, and are no blocks of one, a graph
    says of the latter one basis for all heads. Whether there is one for each is tried: with
    every other group that all of the gauge's tensors run over, in random bases.
    """
    generator = torch.Generator().manual_seed(seed)
    for gauge in spec.gauges:
        if gauge.kind is not GaugeKind.LINEAR or spec.groups[gauge.group].within:
            continue
        for outer in _beside(spec, gauge):
            finer = within(spec, {gauge.group: outer})
            before = unsettled(module, finer, generator)
            heads, size = shape_of(finer, gauge.group)
            turns = torch.linalg.qr(torch.randn(2, heads, size, size, generator=generator)).Q
            stretch_U = torch.linspace(0.5, 2, size)
            bases = turns[0] @ (stretch_U[:, None] * turns[1])
            after = change_basis(finer, before, gauge, bases)
            sides = (outputs(module, side, args, kwargs) for side in (before, after))
            if _changed(*sides) is None:
                spec = finer
                break
    return spec


def _beside(spec: SymmetrySpec, gauge: Gauge) -> list[str]:
    """Return the groups that have one axis in each tensor of a gauge, and stand within none."""
    found = []
    for name, group in spec.groups.items():
        plain = [
            sum(layout == Units(name) for layout in spec.axes[place.tensor])
            for place in (*gauge.writes, *gauge.reads)
        ]
        if name != gauge.group and not group.within and all(count == 1 for count in plain):
            found.append(name)
    return found


def derive_checked(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> SymmetrySpec:
    """Return the symmetries of `module`, once its outputs have borne them out.

    Raises `UnderivableError`.
    """
    spec = derive(module, args, kwargs)
    require_preserved(module, spec, args, kwargs)
    return by_head(module, spec, args, kwargs)
