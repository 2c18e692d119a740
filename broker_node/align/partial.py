"""Partial matching: models of one family and depth whose hidden layers have other widths.

The units of a group are assigned one to one by the correlation of their values on unlabelled
rows, as many as the narrower side has (Li et al. 2015, with a rectangular assignment). What is
left over depends on who is wider:

- the seller's units that nobody takes are dropped, and what read them is solved anew, layer after
  layer, so that the kept units answer on the rows as the sold model's own do (a ridge away from
  dropping alone, as in `least_squares`);
- the buyer's units that nobody meets keep their own weights, and the sold units do not read them:
  at α = 1 a perceptron computes exactly what was sold.

Where activations are ReLU, a sold unit is brought to the root mean square of the buyer's on the
rows. Units that no row wakes are told apart, and scaled, by the weights that enter them. Elsewhere
(`resnet`) units are picked and no more: a norm over all channels sees the others, and nothing is
solved.

What comes out has the buyer's shapes and no recipe, for an injection is no permutation of what
was sold. Two controls belong beside its gain: what it makes of the sold model alone (α = 1), and
`random_matching`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from broker_node.align.activation_matching import TIE
from broker_node.align.least_squares import correction
from broker_node.align.preservation import RELATIVE_TOLERANCE
from broker_node.align.probing import probe_rows, unit_values
from broker_node.align.stages import Aligned, AlignmentError, ArchitectureMismatchError
from broker_node.verify.checks import probes
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, permutation_spec
from node.params.permutation import Axis, PermutationSpec, Role, Tensors
from node.params.unit_values import standardised

NAME: Final = "partial-matching"
RANDOM: Final = "random-matching"
"""The control: the same with an injection drawn at random. No method of the registry."""
ALL: Final = frozenset({NAME, RANDOM})
WIDTHS: Final[Mapping[str, str]] = {"mlp": "widths", "resnet": "widen"}
"""Families with hidden widths, and the field of the configuration that holds them."""
UNMATCHED: Final = -1

Matches = dict[str, torch.Tensor]
"""By group: match_U, the seller's unit that the buyer's unit u meets, or `UNMATCHED`."""
Sides = tuple[torch.Tensor, torch.Tensor]
"""The buyer's and the seller's."""
Match = Callable[[Sides, Sides | None], torch.Tensor]
"""Values ours_RU and theirs_RV, and what enters the units → match_U."""


def require_widths_alone(buyer: Architecture, seller: Architecture) -> None:
    """Raise `ArchitectureMismatchError` unless the hidden widths are all that differs.

    Says which of family, depth, inputs and outputs it is that differs too.
    """
    if buyer.name != seller.name:
        raise ArchitectureMismatchError(
            f"other family: `{seller.name}` has other layers or activations than `{buyer.name}`"
        )
    field = WIDTHS.get(buyer.name)
    if field is None:
        raise ArchitectureMismatchError(
            f"models of `{buyer.name}` are matched at one width; of others, {', '.join(WIDTHS)}"
        )
    ours, theirs = buyer.config[field], seller.config[field]
    if isinstance(ours, list) and isinstance(theirs, list):
        for what, mine, other in (
            ("depth", len(ours) - 1, len(theirs) - 1),
            ("inputs", ours[0], theirs[0]),
            ("outputs", ours[-1], theirs[-1]),
        ):
            if mine != other:
                raise ArchitectureMismatchError(f"other {what}: {other}, the buyer's has {mine}")
    for key in buyer.config.keys() - {field}:
        if buyer.config[key] != seller.config[key]:
            raise ArchitectureMismatchError(
                f"other {key}: {seller.config[key]}, the buyer's has {buyer.config[key]}"
            )
    if {s.name for s in buyer.model.layout()} != {s.name for s in seller.model.layout()}:
        raise ArchitectureMismatchError(f"other tensors at {field} {theirs} than at {ours}")


def assign_partly(similarity_UV: torch.Tensor) -> torch.Tensor:
    """Return match_U of the greatest sum, as many pairs as the smaller side has units."""
    ours, theirs = linear_sum_assignment(similarity_UV.cpu().numpy(), maximize=True)
    match_U = torch.full((similarity_UV.shape[0],), UNMATCHED, dtype=torch.long)
    match_U[torch.from_numpy(np.asarray(ours, dtype=np.int64))] = torch.from_numpy(
        np.asarray(theirs, dtype=np.int64)
    )
    return match_U


def _by_values(sides: Sides, entering: Sides | None) -> torch.Tensor:
    """Match by correlation; constant units, which have none, by the cosine of what enters them."""
    ours_RU, theirs_RV = (standardised(side) for side in sides)
    similarity_UV = ours_RU.T @ theirs_RV
    if entering is not None and not all(bool(side.any(0).all()) for side in (ours_RU, theirs_RV)):
        ours_UF, theirs_VF = (functional.normalize(side, dim=1) for side in entering)
        similarity_UV = similarity_UV + TIE * ours_UF @ theirs_VF.T
    return assign_partly(similarity_UV)


def _at_random(seed: int) -> Match:
    generator = torch.Generator().manual_seed(seed)

    def match(sides: Sides, _entering: Sides | None) -> torch.Tensor:
        sizes = [side.shape[1] for side in sides]
        return assign_partly(torch.rand(sizes, generator=generator, dtype=torch.float64))

    return match


def _met(match_U: torch.Tensor) -> torch.Tensor:
    """Return the buyer's units that meet one of the seller's, in order."""
    return torch.nonzero(match_U != UNMATCHED).squeeze(1)


def picked(spec: PermutationSpec, ours: Tensors, theirs: Tensors, matches: Matches) -> Tensors:
    """Return the sold tensors in the buyer's shapes, float64.

    Units that meet nobody have the buyer's own weights; those that meet somebody read none of
    them. `spec` is the buyer's.
    """
    found = {}
    for name, axes in spec.axes.items():
        tensor, sold = ours[name].double().clone(), theirs[name].double()
        written, both, from_sold = [], [], []
        for dimension, axis in enumerate(axes):
            match_U = torch.arange(tensor.shape[dimension])
            if axis is not None:
                match_U = matches[axis.group]
            met = _met(match_U)
            both.append(met)
            from_sold.append(match_U[met])
            reads = axis is not None and axis.role is Role.READS
            written.append(torch.arange(tensor.shape[dimension]) if reads else met)
        tensor[torch.meshgrid(*written, indexing="ij")] = 0
        tensor[torch.meshgrid(*both, indexing="ij")] = sold[
            torch.meshgrid(*from_sold, indexing="ij")
        ]
        found[name] = tensor
    return found


def _entering(
    spec: PermutationSpec,
    group: str,
    models: tuple[Tensors, Tensors],
    matches: Matches,
    scales: Mapping[str, torch.Tensor],
) -> Sides | None:
    """Return both sides' weights into the units, ours_UF and theirs_VF, from units that have met.

    In the buyer's scales; None where nothing enters that is known.
    """
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    writes = Axis(group, Role.WRITES)
    for name, axes in spec.axes.items():
        others = [axis for axis in axes if axis is not None and axis.group != group]
        if writes not in axes or any(axis.group not in matches for axis in others):
            continue
        for sold, (model, kept) in enumerate(zip(models, found, strict=True)):
            tensor = model[name].double()
            for dimension, axis in enumerate(axes):
                if axis is None or axis.group == group:
                    continue
                met = _met(matches[axis.group])
                units = matches[axis.group][met] if sold else met
                tensor = tensor.index_select(dimension, units)
                if sold and axis.group in scales:
                    shape = [1] * tensor.ndim
                    shape[dimension] = -1
                    tensor = tensor / scales[axis.group][met].reshape(shape)
            tensor = tensor.movedim(axes.index(writes), 0)
            kept.append(tensor.reshape(len(tensor), -1))
    if not found[0]:
        return None
    ours, theirs = (torch.cat(side, dim=1) for side in found)
    return ours, theirs


def _scales(sides: Sides, entering: Sides | None, match_U: torch.Tensor) -> torch.Tensor:
    """Return scales_U that bring sold units to the size of the buyer's on the rows.

    Of units that no row wakes, to the size of what enters them; 1 where that is nothing.
    """
    met = _met(match_U)
    ratio = torch.ones(len(met), dtype=torch.float64)
    sizes = [(sides[0].norm(dim=0), sides[1].norm(dim=0))]
    if entering is not None:
        sizes.insert(0, (entering[0].norm(dim=1), entering[1].norm(dim=1)))
    for ours_U, theirs_V in sizes:
        mine, other = ours_U[met], theirs_V[match_U[met]]
        usable = (mine > 0) & (other > 0)
        ratio = torch.where(usable, mine / other.where(usable, torch.ones_like(other)), ratio)
    scales_U = torch.ones(len(match_U), dtype=torch.float64)
    scales_U[met] = ratio
    return scales_U


def _in_scale(
    spec: PermutationSpec, tensors: Tensors, scales: Mapping[str, torch.Tensor], matches: Matches
) -> dict[str, torch.Tensor]:
    """Return the tensors with the seller's weights in the buyer's scales, the buyer's untouched."""
    found = {}
    for name, axes in spec.axes.items():
        tensor = tensors[name].clone()
        factor = torch.ones_like(tensor)
        own = torch.zeros_like(tensor, dtype=torch.bool)
        for dimension, axis in enumerate(axes):
            if axis is None or axis.group not in scales:
                continue
            shape = [1] * tensor.ndim
            shape[dimension] = -1
            scales_U = scales[axis.group].reshape(shape)
            writes = axis.role is Role.WRITES
            factor = factor * (scales_U if writes else 1 / scales_U)
            if writes:
                own |= (matches[axis.group] == UNMATCHED).reshape(shape)
        found[name] = torch.where(own, tensor, tensor * factor)
    return found


def _solved(
    buyer: Verified,
    seller: Verified,
    tensors: dict[str, torch.Tensor],
    matches: Matches,
    scales: Mapping[str, torch.Tensor],
    rows_RF: torch.Tensor,
) -> None:
    """Solve, in place, what reads units that were left out, layer after layer.

    The units that are kept come as near as they can, on the rows, to the sold model's own
    values, in the buyer's scales.
    """
    groups = list(matches)
    values_RU = sold_RV = rows_RF
    for place, layer in enumerate(buyer.architecture.model.affine_chain()):
        weight_OI, bias_O = tensors[layer.weight], tensors[layer.bias]
        sold_RV = functional.linear(
            sold_RV, seller.tensors[layer.weight].double(), seller.tensors[layer.bias].double()
        )
        if place < len(groups):
            match_U, scales_U = matches[groups[place]], scales[groups[place]]
        else:
            match_U = torch.arange(len(bias_O))
            scales_U = torch.ones(len(bias_O), dtype=torch.float64)
        met = _met(match_U)
        before = matches[groups[place - 1]] if place else None
        if before is not None and len(_met(before)) < seller.tensors[layer.weight].shape[1]:
            wanted_RO = sold_RV[:, match_U[met]] * scales_U[met]
            read = _met(before)
            missing_RO = wanted_RO - functional.linear(values_RU, weight_OI[met], bias_O[met])
            step_OI = correction(values_RU[:, read], missing_RO)
            weight_OI[met[:, None], read] += step_OI[:, :-1]
            bias_O[met] += step_OI[:, -1]
        values_RU = functional.relu(functional.linear(values_RU, weight_OI, bias_O))
        sold_RV = functional.relu(sold_RV)


@torch.inference_mode()
def _matched(
    buyer: Verified,
    seller: Verified,
    probe_RF: torch.Tensor | None,
    match: Match,
    *,
    method: str,
    seed: int,
) -> Aligned:
    if buyer.layers:
        raise ArchitectureMismatchError(f"layers {list(buyer.layers)} are no model to merge into")
    if seller.layers:
        raise ArchitectureMismatchError(
            f"`{method}` takes whole models, and layers {list(seller.layers)} are sold"
        )
    require_widths_alone(buyer.architecture, seller.architecture)
    rows_RF = probe_rows(buyer.architecture, probe_RF, method)
    spec = permutation_spec(buyer.architecture)
    ours, theirs = (
        unit_values(side.architecture, permutation_spec(side.architecture), side.tensors, rows_RF)
        for side in (buyer, seller)
    )
    matches: Matches = {}
    scales: dict[str, torch.Tensor] = {}
    for group in spec.groups:
        sides = ours[group], theirs[group]
        models = buyer.tensors, seller.tensors
        entering = _entering(spec, group, models, matches, scales)
        matches[group] = match(sides, entering)
        if group in spec.rescalings:
            scales[group] = _scales(sides, entering, matches[group])
    tensors = _in_scale(spec, picked(spec, buyer.tensors, seller.tensors, matches), scales, matches)
    if buyer.architecture.model.affine_chain():
        _solved(buyer, seller, tensors, matches, scales, rows_RF)
    transformed = {name: tensors[name].to(tensor) for name, tensor in buyer.tensors.items()}
    for name, tensor in transformed.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AlignmentError(f"what is made of {name} is not finite")
    whole = all(len(_met(match_U)) == theirs[group].shape[1] for group, match_U in matches.items())
    if whole and buyer.architecture.model.affine_chain():
        _require_sold_function(buyer.architecture, seller, transformed)
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=method,
        recipe=None,
        transformed=transformed,
        seed=seed,
    )


def _require_sold_function(
    architecture: Architecture, seller: Verified, transformed: Tensors
) -> None:
    """Raise `AlignmentError` unless a model that lost no unit computes what was sold."""
    inputs_RF = probes(architecture)
    before_RC, after_RC = (
        apply(of, {name: tensor.cpu().double() for name, tensor in side.items()}, inputs_RF)
        for of, side in ((seller.architecture, seller.tensors), (architecture, transformed))
    )
    worst = float((before_RC - after_RC).abs().max())
    allowed = RELATIVE_TOLERANCE * float(before_RC.abs().max())
    if not worst <= allowed:
        raise AlignmentError(f"outputs differ by {worst:g}, allowed {allowed:g}")


def partial_matching(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair with the seller's model in the buyer's widths; widths may be equal.

    Raises `ArchitectureMismatchError` where more than the hidden widths differ, and
    `AlignmentError` without usable rows, or where the result is not finite.
    """
    return _matched(buyer, seller, probe_RF, _by_values, method=NAME, seed=seed)


def random_matching(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair as `partial_matching` does, but of units drawn at random; the control."""
    return _matched(buyer, seller, probe_RF, _at_random(seed), method=RANDOM, seed=seed)
