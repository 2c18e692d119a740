"""The sold model in place of the buyer's: α = 1, and no choice to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker_node.align.stages import Aligned
from broker_node.merge.pairs import merged_model, recipe_at, require_one
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.stages import Verified
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths

NAME: Final = "outright"


def outright(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return T(sold), in the buyer's own layers where it lacks some; raises `MergeError`."""
    pair = require_one(aligned, rows)
    alpha = Millionths(ONE)
    return merged_model(
        NAME,
        pair.buyer,
        interpolate(pair.buyer.tensors, pair.transformed, alpha),
        recipe=recipe_at(pair.recipe, alpha),
        detail={"alpha": alpha},
        row_evaluations=0,
    )
