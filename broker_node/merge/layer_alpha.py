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
from broker_node.merge.coordinates import descend
from broker_node.merge.pairs import curve_between, merged_model, recipe_at, require_one
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.recipe import interpolate
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

    Starts at the α of `lerp`, and is at least as good as that over all rows. A recipe has one
    α, so there is none unless all shares are equal.
    """
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    curve = curve_between(buyer, buyer.tensors, pair.transformed, rows)
    alpha = halving_brent(curve)
    layers = layers_of(buyer.architecture, pair.transformed)

    def make(shares: Sequence[Millionths]) -> dict[str, torch.Tensor]:
        merged = dict(buyer.tensors)
        for names, share in zip(layers, shares, strict=True):
            own = {name: buyer.tensors[name] for name in names}
            merged |= interpolate(own, pair.transformed, share)
        return merged

    found = descend(buyer, rows, make, [alpha] * len(layers))
    same = len(set(found.shares)) == 1
    return merged_model(
        NAME,
        buyer,
        found.tensors,
        recipe=recipe_at(pair.recipe, found.shares[0]) if same else None,
        detail={
            "alpha": alpha,
            "layers": [list(names) for names in layers],
            "alphas": list(found.shares),
        },
        row_evaluations=curve.row_evaluations + found.row_evaluations,
    )
