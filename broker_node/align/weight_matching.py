"""Weight matching between canonical gauges (the paper's alignment, made scale-proof).

Both models are brought to the balanced gauge, their units are matched there, and the sold
model is carried on into the buyer's own scales: T = canon_b⁻¹ · P · canon_s. The buyer's
parameters stay as they are, so the merge is the one that would be made in the canonical
gauge, written in the buyer's scales.

Where only some layers are sold, all of this sees their tensors alone, of both models. Units on
the border, between a sold layer and one that is not, are matched by the sold side, and in the
scales in which both models stand.
"""

from __future__ import annotations

from typing import Final

import torch

from broker_node.align.gauge import balanced_scales, without_dead_units
from broker_node.align.matching import match_units
from broker_node.align.preservation import require_same_architecture, require_same_function
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.stages import Verified
from node.params.architecture import permutation_spec
from node.params.permutation import rescale, restrict
from node.params.recipe import MAX_SCALE, Recipe, pack_scales, transform
from node.protocol.types import Millionths

NAME: Final = "weight-matching"


@torch.inference_mode()
def weight_matching(buyer: Verified, seller: Verified, *, seed: int) -> Aligned:
    """Return the pair with the seller's units matched and scaled to the buyer's.

    Raises `ArchitectureMismatchError`, and `AlignmentError` if the result is not, to
    rounding, the same function as the sold model, completed by the buyer's own layers if it
    is sold without some.
    """
    require_same_architecture(buyer, seller)
    whole = permutation_spec(buyer.architecture)
    spec = restrict(whole, seller.tensors)
    ours, theirs = (
        without_dead_units(spec, {name: model.tensors[name].cpu().double() for name in spec.axes})
        for model in (buyer, seller)
    )
    our_scales, their_scales = balanced_scales(spec, ours), balanced_scales(spec, theirs)
    matching = match_units(
        spec,
        rescale(spec, ours, our_scales),
        rescale(spec, theirs, their_scales),
        seed=seed,
    )
    scales = {}
    for group, ours_U in our_scales.items():
        permutation_U = torch.tensor(matching.permutations[group], dtype=torch.long)
        scales_U = their_scales[group][permutation_U] / ours_U
        if not bool(((scales_U > 1 / MAX_SCALE) & (scales_U < MAX_SCALE)).all()):
            raise AlignmentError(f"scales of {group} differ by more than {MAX_SCALE:g}")
        scales[group] = pack_scales(scales_U)
    recipe = Recipe(permutations=matching.permutations, scales=scales, alpha=Millionths(0))
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
        method=NAME,
        recipe=recipe,
        transformed=transformed,
        seed=seed,
    )
