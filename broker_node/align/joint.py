"""Weight matching by all that a model's graph says: heads, and the units inside of them, too.

A recipe renumbers groups that every tensor lays out plainly. A graph may know more of a model:
queries, keys and values in one matrix, as blocks of heads, with a basis of its own inside of each
head. Here all of it is matched at once (`symmetric_matching`), in balanced scales and bases that
are the same for every model; heads then stand in the buyer's own bases (`bases`). What comes out is
the same function as what was sold, but no recipe makes it, so that the merge is a product of
whoever holds both models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import torch

from broker_node.align.bases import balanced, turned, with_bases
from broker_node.align.gauge import without_dead_units
from broker_node.align.matching import match_units
from broker_node.align.preservation import require_same_architecture, require_same_function
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.align.symmetric_matching import match_symmetries, objective, pairs_of
from broker_node.verify.stages import Verified
from node.params import blocks
from node.params.architecture import Architecture
from node.params.families.base import GraphModel
from node.params.permutation import PermutationSpec, Tensors, rescale
from node.params.symmetry import SymmetrySpec

NAME: Final = "joint-matching"


def symmetries_of(architecture: Architecture) -> SymmetrySpec:
    """Return all symmetries of an architecture that has more than recipes can say.

    Raises `AlignmentError` for one that has not, and as `OwnModule.symmetries`.
    """
    if isinstance(architecture.model, GraphModel):
        return architecture.model.symmetries()
    raise AlignmentError(f"`{NAME}` is for `module` and `gpt`: `weight-matching` does it all here")


def _matched(
    spec: SymmetrySpec,
    plain: PermutationSpec,
    sides: tuple[Tensors, Tensors],
    seed: int,
    device: torch.device | None,
) -> Mapping[str, torch.Tensor]:
    """Return the better of two ends: of all groups at once, and of those that recipes name."""
    found = match_symmetries(spec, *sides, seed=seed, device=device)
    named = match_units(plain, *sides, seed=seed).permutations
    other = {group: torch.tensor(units, dtype=torch.long) for group, units in named.items()}
    pairs = pairs_of(spec, *sides, torch.float64, None)
    better = objective(spec, pairs, other) > objective(spec, pairs, found.permutations)
    return other if better else found.permutations


@torch.inference_mode()
def joint_matching(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,  # noqa: ARG001  the weights say it all
    device: torch.device | None = None,
) -> Aligned:
    """Return the pair with every block of the seller's units matched; it has no recipe.

    `device`: where similarities are computed, as `match_symmetries` does there; it may find other
    units than the CPU. What comes out is judged, and made, on the CPU.

    Raises `ArchitectureMismatchError`, and `AlignmentError` for a model that is sold in layers, or
    if the result is not, to rounding, the same function as the sold model.
    """
    require_same_architecture(buyer, seller)
    architecture = buyer.architecture
    spec = symmetries_of(architecture)
    if seller.layers:
        raise AlignmentError(f"`{NAME}` is for whole models, and layers {seller.layers} are sold")
    plain = architecture.model.permutation_spec()
    ours, theirs = (
        without_dead_units(plain, {n: t.cpu().double() for n, t in model.tensors.items()})
        for model in (buyer, seller)
    )
    # no signs: what is made below carries none
    (ours_there, ours_scales), (theirs_there, theirs_scales) = (
        balanced(plain, spec, side, signs=False) for side in (ours, theirs)
    )
    learnt = {name: axes for name, axes in spec.axes.items() if name not in plain.statistics}
    compared = dataclasses.replace(spec, axes=learnt)
    permutations = _matched(compared, plain, (ours_there, theirs_there), seed, device)
    # a numbering of settled bases says nothing of those in which the models came
    turning = {gauge.group for gauge in with_bases(spec)}
    kept = {group: units for group, units in permutations.items() if group not in turning}
    exact = {name: tensor.cpu().double() for name, tensor in seller.tensors.items()}
    moved = blocks.permute(spec, rescale(plain, exact, theirs_scales), kept)
    moved = turned(spec, rescale(plain, ours, ours_scales), moved)
    back = {name: 1 / scales_U for name, scales_U in ours_scales.items()}
    transformed = {
        name: tensor.float().contiguous() for name, tensor in rescale(plain, moved, back).items()
    }
    require_same_function(architecture, seller.tensors, transformed)
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=NAME,
        recipe=None,
        transformed=transformed,
        seed=seed,
        permutation_hash=blocks.permutation_hash(spec, kept),
    )
