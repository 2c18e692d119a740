"""Weight matching between canonical gauges (the paper's alignment, made scale-proof).

Where only some layers are sold, all of this sees their tensors alone, of both models. Units on
the border, between a sold layer and one that is not, are matched by the sold side, and in the
scales in which both models stand.
"""

from __future__ import annotations

from typing import Final

import torch

from broker_node.align.carrying import canonical, carried, sold_spec
from broker_node.align.matching import match_units
from broker_node.align.preservation import require_same_architecture
from broker_node.align.stages import Aligned
from broker_node.verify.stages import Verified

NAME: Final = "weight-matching"


@torch.inference_mode()
def weight_matching(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,  # noqa: ARG001  the weights say it all
) -> Aligned:
    """Return the pair with the seller's units matched and scaled to the buyer's.

    Raises `ArchitectureMismatchError`, and `AlignmentError` if the result is not, to
    rounding, the same function as the sold model, completed by the buyer's own layers if it
    is sold without some.
    """
    require_same_architecture(buyer, seller)
    spec = sold_spec(seller)
    ours, theirs = canonical(spec, buyer.tensors), canonical(spec, seller.tensors)
    matching = match_units(spec, ours.tensors, theirs.tensors, seed=seed)
    return carried(
        buyer,
        seller,
        permutations=matching.permutations,
        scales=(ours.scales, theirs.scales),
        method=NAME,
        seed=seed,
    )
