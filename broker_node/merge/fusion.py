"""Weight fusion with several sellers (weight market, Eq. 16): how a buyer takes up all it bought.

    w̃ = w + (1/n) Σᵢ λᵢ (wᵢ − w)

tensor by tensor, n being the number of sellers that supply it. Every λᵢ starts as the α of a
purchase from that seller alone, which is what the market fuses, and is then moved given the
others. `node.params.fusion` makes the model, as a buyer would, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.coordinates import descend
from broker_node.merge.pairs import (
    curve_between,
    merged_model,
    recipe_at,
    require_pairs,
    sellers_of,
)
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.stages import Verified
from node.params.fusion import fuse_merges
from node.params.recipe import interpolate
from node.protocol.types import Millionths

NAME: Final = "fusion"


def fusion(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return Eq. 16 at the λ that the rows choose; raises `MergeError`.

    Of one seller it is `lerp`, with its recipe. Of several, each λ is one seller's recipe at that
    α, and `node.params.fusion.fuse_merges` of what these make is the result.
    """
    buyer = require_pairs(aligned, rows)
    curves = [curve_between(buyer, buyer.tensors, pair.transformed, rows) for pair in aligned]
    start = [halving_brent(curve) for curve in curves]
    cost = sum(curve.row_evaluations for curve in curves)

    def make(shares: Sequence[Millionths]) -> dict[str, torch.Tensor]:
        merges = []
        for pair, share in zip(aligned, shares, strict=True):
            own = {name: buyer.tensors[name] for name in pair.transformed}
            merges.append(interpolate(own, pair.transformed, share))
        return fuse_merges(buyer.tensors, merges)

    if len(aligned) == 1:
        shares, tensors = tuple(start), make(start)
    else:
        found = descend(buyer, rows, make, start)
        shares, tensors = found.shares, found.tensors
        cost += found.row_evaluations
    return merged_model(
        NAME,
        buyer,
        tensors,
        recipe=recipe_at(aligned[0].recipe, shares[0]) if len(aligned) == 1 else None,
        detail={"alone": list(start), "shares": list(shares), "sellers": sellers_of(aligned)},
        row_evaluations=cost,
    )
