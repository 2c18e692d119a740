"""From permutations between two canonical gauges to a recipe: T = canon_b⁻¹ · P · canon_s.

Both models are brought to the balanced gauge, where units are compared; the sold model is then
carried on into the buyer's own scales. The buyer's parameters stay as they are, so the merge is
the one that would be made in the canonical gauge, written in the buyer's scales.

Where only some layers are sold, all of this sees their tensors alone, of both models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from broker_node.align.gauge import balanced_scales, without_dead_units
from broker_node.align.preservation import require_same_function
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.stages import Verified
from node.params.architecture import permutation_spec
from node.params.permutation import PermutationSpec, Tensors, rescale, restrict
from node.params.recipe import MAX_SCALE, Recipe, pack_scales, transform
from node.protocol.types import Millionths


@dataclass(frozen=True, slots=True, eq=False)
class Canonical:
    """A model's tensors of a specification, float64 on the CPU, in the balanced gauge."""

    tensors: Mapping[str, torch.Tensor]
    scales: Mapping[str, torch.Tensor]
    """By rescaling: what the model's own tensors were multiplied by, scales_U."""


def canonical(spec: PermutationSpec, model: Tensors) -> Canonical:
    """Return what of `model` is in `spec`, cleared of units without effect and rescaled."""
    tensors = without_dead_units(spec, {name: model[name].cpu().double() for name in spec.axes})
    scales = balanced_scales(spec, tensors)
    return Canonical(rescale(spec, tensors, scales), scales)


def sold_spec(seller: Verified) -> PermutationSpec:
    """Return the symmetries of what is sold."""
    return restrict(permutation_spec(seller.architecture), seller.tensors)


def carried(
    buyer: Verified,
    seller: Verified,
    *,
    permutations: Mapping[str, Sequence[int]],
    scales: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
    method: str,
    seed: int,
) -> Aligned:
    """Return the pair with the seller's units renumbered and scaled to the buyer's.

    `scales` are the buyer's and the seller's into the gauge that they were matched in. Raises
    `AlignmentError` if the result is not, to rounding, the same function as the sold model,
    completed by the buyer's own layers if it is sold without some.
    """
    whole = permutation_spec(buyer.architecture)
    spec = restrict(whole, seller.tensors)
    packed = {}
    for name, ours_U in scales[0].items():
        units = permutations[spec.rescalings[name].group]
        scales_U = scales[1][name][torch.tensor(units, dtype=torch.long)] / ours_U
        if not bool(((scales_U > 1 / MAX_SCALE) & (scales_U < MAX_SCALE)).all()):
            raise AlignmentError(f"scales of {name} differ by more than {MAX_SCALE:g}")
        packed[name] = pack_scales(scales_U)
    recipe = Recipe(
        permutations={group: tuple(units) for group, units in permutations.items()},
        scales=packed,
        alpha=Millionths(0),
    )
    transformed = transform(spec, seller.tensors, recipe)
    own = {name: t for name, t in buyer.tensors.items() if name not in seller.tensors}
    require_same_function(
        buyer.architecture,
        {**seller.tensors, **own},
        {**transformed, **transform(whole, own, recipe)},
    )
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=method,
        recipe=recipe,
        transformed=transformed,
        seed=seed,
    )
