"""REPAIR: a merge along the straight line whose units keep the spread of both models' units.

Where two models' units agree only in part, the mean of their weights answers with less variance
than either, and less again a layer further on. At every α each hidden unit is therefore rescaled
and shifted, so that before its activation it has, on the rows, the mean (1 − α)·μₐ + α·μ_b and the
standard deviation (1 − α)·σₐ + α·σ_b (Jordan et al. 2022, eq. 2 and 3), layer after layer, on what
the repaired layers before it answer. In an affine layer both go into its weights and bias, so the
outcome is a model like any other; the rows are looked at without their labels.

For the same reason there is no recipe. Families other than chains of affine layers are refused:
`resnet` has convolutions without biases, which a shift cannot go into. The paper's other way,
resetting the running figures of normalisation layers, is `broker_node.merge.reset`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.along import MadeCurve
from broker_node.merge.pairs import completed, merged_model, require_one
from broker_node.merge.stages import Merged, MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.families.base import Affine
from node.params.permutation import Tensors
from node.protocol.types import ONE, Millionths

NAME: Final = "repair"
MAX_ROWS: Final = 4096
"""Rows that means and spreads are taken on, the first ones."""
CONSTANT: Final = 1e-6
"""Of the wanted spread: a merged unit that varies less is constant, and is shifted alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """What the units of one layer answer on the rows, before their activation."""

    mean_U: torch.Tensor
    std_U: torch.Tensor


def _preactivations(layer: Affine, tensors: Tensors, values_RI: torch.Tensor) -> torch.Tensor:
    return functional.linear(
        values_RI, tensors[layer.weight].double(), tensors[layer.bias].double()
    )


def _spread(values_RU: torch.Tensor) -> Spread:
    return Spread(values_RU.mean(0), values_RU.std(0, correction=0))


def spreads(chain: Sequence[Affine], tensors: Tensors, rows_RF: torch.Tensor) -> list[Spread]:
    """Return the mean and spread of every hidden layer's units, input side first; float64."""
    found, values_RU = [], rows_RF.double()
    for layer in chain[:-1]:
        before_RU = _preactivations(layer, tensors, values_RU)
        found.append(_spread(before_RU))
        values_RU = functional.relu(before_RU)
    return found


def repaired(
    chain: Sequence[Affine],
    tensors: Tensors,
    ends: tuple[Sequence[Spread], Sequence[Spread]],
    alpha: Millionths,
    rows_RF: torch.Tensor,
    *,
    sold: Collection[str],
) -> dict[str, torch.Tensor]:
    """Return `tensors` with every hidden unit's mean and spread between those of the ends.

    `tensors` is the merge at `alpha`, of which the ends are 0 and 1. The last layer is left as it
    is, and so are layers that are not among the names `sold`. At either end that is the model
    itself, to the byte.
    """
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    if alpha in {0, ONE}:
        return found
    share, values_RU = alpha / ONE, rows_RF.double()
    for layer, ours, theirs in zip(chain[:-1], *ends, strict=True):
        before_RU = _preactivations(layer, found, values_RU)
        if not {layer.weight, layer.bias} <= set(sold):
            values_RU = functional.relu(before_RU)
            continue
        own = _spread(before_RU)
        mean_U = (1 - share) * ours.mean_U + share * theirs.mean_U
        std_U = (1 - share) * ours.std_U + share * theirs.std_U
        alive_U = own.std_U > CONSTANT * std_U
        ratio_U = torch.where(alive_U, std_U / own.std_U.where(alive_U, std_U.new_ones(())), 1.0)
        weight_UI, bias_U = found[layer.weight], found[layer.bias]
        found[layer.weight] = (weight_UI.double() * ratio_U[:, None]).to(weight_UI)
        found[layer.bias] = ((bias_U.double() - own.mean_U) * ratio_U + mean_U).to(bias_U)
        values_RU = functional.relu(_preactivations(layer, found, values_RU))
    return found


def repaired_curve(pair: Aligned, chain: Sequence[Affine], rows: Rows) -> MadeCurve:
    """Return α → mean loss of the repaired merge."""
    buyer = pair.buyer
    ends, sold = (buyer.tensors, completed(pair)), set(pair.transformed)
    seen_RF = rows.inputs_RF[:MAX_ROWS]
    ours, theirs = (spreads(chain, end, seen_RF) for end in ends)

    def make(merged: Tensors, alpha: Millionths) -> dict[str, torch.Tensor]:
        return repaired(chain, merged, (ours, theirs), alpha, seen_RF, sold=sold)

    curve = MadeCurve(
        buyer, ends, rows, make, cost=lambda alpha: 0 if alpha in {0, ONE} else len(seen_RF)
    )
    curve.row_evaluations += 2 * len(seen_RF)
    return curve


@torch.inference_mode()
def repair(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the repaired merge at its own α, found as that of `lerp`; raises `MergeError`.

    ``no-chain`` for a model that is no chain of affine layers.
    """
    pair = require_one(aligned, rows)
    buyer = pair.buyer
    chain = buyer.architecture.model.affine_chain()
    if not chain:
        raise MergeError(
            "no-chain",
            f"`{buyer.architecture.name}` is no chain of affine layers",
        )
    curve = repaired_curve(pair, chain, rows)
    alpha = halving_brent(curve)
    return merged_model(
        NAME,
        buyer,
        curve.model(alpha),
        detail={"alpha": alpha},
        row_evaluations=curve.row_evaluations,
    )
