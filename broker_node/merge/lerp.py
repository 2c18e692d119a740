"""A straight line to the sold model, as far as the search for α goes: what the market trades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.pairs import curve_between, merged_model, recipe_at, require_one
from broker_node.merge.stages import Fitted, Merged, Rows
from broker_node.verify.stages import Verified
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import Millionths

NAME: Final = "lerp"


def no_shares(buyer: Verified, sold: Tensors, rows: Rows, alpha: Millionths) -> Fitted:
    """Return nothing: α is the share of every row."""
    return Fitted()


def lerp(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return base·(1 − α) + T(sold)·α at the α that the rows choose; raises `MergeError`.

    The search is `halving-brent` of `broker_node.evaluate.search`.
    """
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    curve = curve_between(buyer, buyer.tensors, pair.transformed, rows)
    alpha = halving_brent(curve)
    return merged_model(
        NAME,
        buyer,
        interpolate(buyer.tensors, pair.transformed, alpha),
        recipe=recipe_at(pair.recipe, alpha),
        detail={"alpha": alpha},
        row_evaluations=curve.row_evaluations,
    )
