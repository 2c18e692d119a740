"""RegMean: each affine layer answers, in the mean square, as every model's own layer does.

    W̃ = (Σₖ Gₖ)⁻¹ Σₖ Gₖ Wₖ,   Gₖ = Xₖᵀ Xₖ

Jin et al. 2023, §3.2: Xₖ are what enters model k's layer on the broker's rows, unlabelled, and Wₖ
its weights, inputs first; entries of Gₖ off its diagonal are shrunk to `KEPT`. Here a row of ones
stands for the bias, so that it is fitted with its weights. What belongs to no affine layer is the
plain mean. Where the rows say nothing about a direction of the inputs, it is the plain mean too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.affine import AffineUse, grams
from broker_node.merge.pairs import completed, merged_model, require_pairs, sellers_of, supplied
from broker_node.merge.stages import Merged, MergeError, Rows
from broker_node.verify.stages import Verified

NAME: Final = "regmean"
KEPT: Final = 0.9
"""Of the entries off a Gram matrix's diagonal (Jin et al. 2023, §3.2)."""
RIDGE: Final = 1e-9
"""Of the mean of the diagonals: decides what the rows leave open."""


def regression_mean(
    weights_KFO: Sequence[torch.Tensor], grams_KFF: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return weights_FO that minimise Σₖ ‖Xₖ·(W − Wₖ)‖², given the Gₖ = XₖᵀXₖ; in float64.

    With Wₖ the least-squares solutions of K data sets, that is the solution of all data pooled.
    """
    scale = sum(float(gram_FF.diagonal().mean()) for gram_FF in grams_KFF) / len(grams_KFF)
    ridge_FF = (RIDGE * scale if scale > 0 else 1.0) * torch.eye(
        grams_KFF[0].shape[0], dtype=torch.float64
    )
    left_FF = sum((gram_FF + ridge_FF for gram_FF in grams_KFF), torch.zeros_like(ridge_FF))
    right_FO = torch.zeros_like(weights_KFO[0], dtype=torch.float64)
    for weights_FO, gram_FF in zip(weights_KFO, grams_KFF, strict=True):
        right_FO += (gram_FF + ridge_FF) @ weights_FO.double()
    merged_FO: torch.Tensor = torch.linalg.solve(left_FF, right_FO)
    return merged_FO


def _shrunk(gram_FF: torch.Tensor, kept: float) -> torch.Tensor:
    return kept * gram_FF + (1 - kept) * torch.diag(gram_FF.diagonal())


def _stacked(use: AffineUse, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a layer's weights_FO in float64, its bias below them."""
    weight_FO = tensors[use.weight].double().flatten(1).T
    if use.bias is None:
        return weight_FO
    return torch.cat((weight_FO, tensors[use.bias].double()[None]))


@torch.inference_mode()
def regmean(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the buyer's model with every sold affine layer regressed; raises `MergeError`.

    Costs one forward pass a row and model. A layer whose bias is sold and whose weight is not, or
    the other way round, keeps its plain mean in the part that is sold.
    """
    buyer = require_pairs(aligned, rows)
    models = [dict(buyer.tensors), *(completed(pair) for pair in aligned)]
    found = [grams(buyer.architecture, model, rows.inputs_RF) for model in models]
    if any(list(one) != list(found[0]) for one in found):
        raise MergeError("mismatch", "the models run through different layers")
    sold = supplied(aligned)
    changed = {
        name: torch.stack([t.double() for t in (buyer.tensors[name], *theirs)]).mean(0)
        for name, theirs in sold.items()
    }
    regressed = 0
    for use in found[0]:
        names = {use.weight} if use.bias is None else {use.weight, use.bias}
        having = [0, *(1 + at for at, pair in enumerate(aligned) if names <= set(pair.transformed))]
        if len(having) == 1:
            continue
        weights_FO = regression_mean(
            [_stacked(use, models[k]) for k in having],
            [_shrunk(found[k][use], KEPT) for k in having],
        )
        own = buyer.tensors[use.weight]
        inputs = weights_FO.shape[0] - (use.bias is not None)
        changed[use.weight] = weights_FO[:inputs].T.reshape(own.shape)
        if use.bias is not None:
            changed[use.bias] = weights_FO[inputs]
        regressed += 1
    return merged_model(
        NAME,
        buyer,
        changed,
        detail={"regressed": regressed, "sellers": sellers_of(aligned)},
        row_evaluations=len(models) * len(rows),
    )
