"""A merge weight for each layer, starting from the one that is best for all.

Early and late layers of two models need not agree as well as one another; a share of its own for
each costs more rows to find, and is never worse on the rows that chose it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.coordinates import Chosen, descend
from broker_node.merge.pairs import curve_between, merged_model, recipe_at, require_one
from broker_node.merge.stages import Fitted, Merged, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.permutation import Tensors
from node.params.recipe import MAX_SHARES, Recipe, interpolate
from node.protocol.types import Millionths

NAME: Final = "layer-alpha"


def layers_of(architecture: Architecture, sold: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names of what is sold, layer by layer in the model's order.

    Layers are those that the architecture sells; where it is sold whole, the tensors of one
    module (``block.0.weight`` and ``block.0.bias``) are a layer, in the order of their names.
    """
    named = architecture.model.layer_names()
    if not named:
        modules: dict[str, list[str]] = {}
        for name in sorted(sold):
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        named = tuple(tuple(names) for names in modules.values())
    layers = (tuple(name for name in names if name in sold) for names in named)
    return tuple(names for names in layers if names)


def layer_alpha(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the line's merge with each layer's share moved on its own; raises `MergeError`.

    Starts at the α of `lerp`, and is at least as good as that over all rows.
    """
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    curve = curve_between(buyer, buyer.tensors, pair.transformed, rows)
    alpha = halving_brent(curve)
    layers = layers_of(buyer.architecture, pair.transformed)
    found = _descended(buyer, pair.transformed, layers, rows, alpha)
    return merged_model(
        NAME,
        buyer,
        found.tensors,
        recipe=_recipe(pair, layers, found.shares, alpha),
        detail={
            "alpha": alpha,
            "layers": [list(names) for names in layers],
            "alphas": list(found.shares),
        },
        row_evaluations=curve.row_evaluations + found.row_evaluations,
    )


def layer_shares(buyer: Verified, sold: Tensors, rows: Rows, alpha: Millionths) -> Fitted:
    """Return each layer's share for all of its rows, started at α; none at 0, which is no trade."""
    layers = layers_of(buyer.architecture, sold)
    rows_of = [len(sold[name]) if sold[name].ndim else 0 for names in layers for name in names]
    if alpha == 0 or len(layers) < 2 or not all(rows_of) or sum(rows_of) > MAX_SHARES:
        return Fitted()
    found = _descended(buyer, sold, layers, rows, alpha)
    moved = {} if set(found.shares) == {alpha} else _by_row(sold, layers, found.shares)
    return Fitted(moved, found.row_evaluations)


def _descended(
    buyer: Verified,
    sold: Tensors,
    layers: Sequence[Sequence[str]],
    rows: Rows,
    alpha: Millionths,
) -> Chosen:
    def make(shares: Sequence[Millionths]) -> dict[str, torch.Tensor]:
        merged = dict(buyer.tensors)
        for names, share in zip(layers, shares, strict=True):
            own = {name: buyer.tensors[name] for name in names}
            merged |= interpolate(own, sold, share)
        return merged

    return descend(buyer, rows, make, [alpha] * len(layers))


def _by_row(
    sold: Tensors, layers: Sequence[Sequence[str]], shares: Sequence[Millionths]
) -> dict[str, tuple[Millionths, ...]]:
    """Return the shares as a recipe has them: one a row, the same in all of a layer."""
    return {
        name: (share,) * len(sold[name])
        for names, share in zip(layers, shares, strict=True)
        for name in names
    }


def _recipe(
    pair: Aligned,
    layers: Sequence[Sequence[str]],
    shares: Sequence[Millionths],
    alpha: Millionths,
) -> Recipe | None:
    """Return the recipe, if there is one.

    No row is left for its α where shares differ. It is the line's; where that is 0, which would
    be no trade, the largest share.
    """
    if len(set(shares)) == 1:
        return recipe_at(pair.recipe, shares[0])
    recipe = recipe_at(pair.recipe, alpha or max(shares))
    if recipe is None:
        return None
    if any(not pair.transformed[name].ndim for names in layers for name in names):
        return None  # a scalar has no row to say its share of
    by_row = _by_row(pair.transformed, layers, shares)
    return recipe.with_shares(by_row) if sum(map(len, by_row.values())) <= MAX_SHARES else None
