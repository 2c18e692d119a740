"""A merge along the straight line whose normalisation is measured anew at every α.

The mean of two models' running statistics is not that of the merge, whose units vary less than
those of either. So BatchNorm's running means and variances are taken from the merge itself on the
rows, without their labels (Jordan et al. 2022, REPAIR, §3), and α is searched along that curve. The
ends are the models as they are.

Whoever resets needs the rows, so there is no recipe: it is a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from broker_node.align.modules import reset_normalisation
from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.along import MadeCurve
from broker_node.merge.pairs import completed, merged_model, require_one
from broker_node.merge.stages import Merged, MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture
from node.params.families.own import OwnModule
from node.params.families.own_facts import facts_of
from node.params.permutation import Tensors
from node.protocol.types import ONE, Millionths

NAME: Final = "reset"
MAX_ROWS: Final = 1024
"""Rows that statistics are taken on, the first ones."""
BATCH: Final = 128


def reset(
    architecture: Architecture, tensors: Tensors, rows_RF: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the tensors with running statistics of the first `MAX_ROWS` rows.

    Raises `MergeError` ``no-running-figures`` for a model that keeps none.
    """
    model = architecture.model
    if not isinstance(model, OwnModule) or not facts_of(model).statistics:
        raise MergeError(
            "no-running-figures",
            f"`{architecture.name}` here normalises by no running statistics: none are to be reset",
        )
    rows = model.rows(rows_RF[:MAX_ROWS])
    batches = torch.tensor_split(rows, -(-len(rows) // BATCH))
    module = model.module_with(tensors)
    found = reset_normalisation(module, module.state_dict(), ((batch,) for batch in batches))
    return {name: found[name] for name in tensors}


@torch.inference_mode()
def reset_merge(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the merge at its own α, found as that of `lerp`; raises `MergeError`."""
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    looked = min(len(rows), MAX_ROWS)

    def make(merged: Tensors, alpha: Millionths) -> dict[str, torch.Tensor]:
        if alpha in {0, ONE}:
            return dict(merged)
        return reset(buyer.architecture, merged, rows.inputs_RF)

    reset(buyer.architecture, buyer.tensors, rows.inputs_RF[:2])  # where there is nothing to reset
    curve = MadeCurve(
        buyer,
        (buyer.tensors, completed(pair)),
        rows,
        make,
        cost=lambda alpha: 0 if alpha in {0, ONE} else looked,
    )
    alpha = halving_brent(curve)
    return merged_model(
        NAME,
        buyer,
        curve.model(alpha),
        detail={"alpha": alpha},
        row_evaluations=curve.row_evaluations,
    )
