"""Fisher merging: a mean in which each parameter counts as much as the model's answers hang on it.

    w̃ = Σₖ Fₖ wₖ / Σₖ Fₖ,   Fₖ = E over rows, E over y of pₖ(y | x), of (∂ log pₖ(y | x) / ∂w)²

Matena and Raffel 2022, §3, with equal λ: the diagonal of the Fisher information, on the rows of the
broker, which need no labels: the expectation over classes is taken in full. Of values, with a unit
Gaussian around the output, it is the squared gradient of the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch.func import jacrev, vmap
from torch.nn import functional

from broker_node.align.stages import Aligned
from broker_node.merge.pairs import completed, merged_model, require_pairs, sellers_of
from broker_node.merge.stages import Merged, MergeError, Rows
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply
from node.params.families.base import TokenModel

NAME: Final = "fisher"
MAX_ROWS: Final = 512
"""The first rows of the choice half that are used: each costs a gradient for every class."""
FLOOR: Final = 1e-6
"""Of the mean information over all that is merged: what no row says anything about is the mean."""
CHUNK: Final = 2**22
"""Gradients held at once, in numbers."""


def fisher_mean(
    weights_KF: Sequence[torch.Tensor], fishers_KF: Sequence[torch.Tensor], *, floor: float
) -> torch.Tensor:
    """Return the mean weighted by information of at least `floor` > 0; in float64."""
    total = torch.zeros_like(weights_KF[0], dtype=torch.float64)
    weight = torch.zeros_like(total)
    for weights_F, fisher_F in zip(weights_KF, fishers_KF, strict=True):
        information_F = fisher_F.double().clamp(min=floor)
        total += information_F * weights_F.double()
        weight += information_F
    return total / weight


def diagonal_fisher(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    inputs_RF: torch.Tensor,
    *,
    classes: bool,
    wanted: Sequence[str],
) -> dict[str, torch.Tensor]:
    """Return the diagonal of the Fisher information of the `wanted` tensors, in float64."""
    rest = {name: tensor for name, tensor in tensors.items() if name not in wanted}

    def scaled_scores(moving: dict[str, torch.Tensor], input_F: torch.Tensor) -> torch.Tensor:
        """√p(y)·log p(y) with p held still: its squared gradients add up to the row's Fisher."""
        outputs_C = apply(architecture, {**rest, **moving}, input_F[None])[0]
        if not classes:
            return outputs_C
        log_C = functional.log_softmax(outputs_C, dim=0)
        return log_C * (0.5 * log_C.detach()).exp()

    moving = {name: tensors[name] for name in wanted}
    gradients = vmap(jacrev(scaled_scores), in_dims=(None, 0))
    outputs = int(apply(architecture, tensors, inputs_RF[:1]).shape[-1])
    each = outputs * sum(tensor.numel() for tensor in moving.values())
    found = {name: torch.zeros_like(moving[name], dtype=torch.float64) for name in wanted}
    for batch_RF in torch.split(inputs_RF, max(1, CHUNK // each)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # of attention
            of_batch = gradients(moving, batch_RF)
        for name, gradient in of_batch.items():
            found[name] += gradient.detach().double().square().sum((0, 1))
    return {name: total / len(inputs_RF) for name, total in found.items()}


def fisher(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the information-weighted mean of the buyer's and all sold models.

    Raises `MergeError`. Costs a forward pass and one gradient a class for each of at most
    `MAX_ROWS` rows and each model.
    """
    buyer = require_pairs(aligned, rows)
    if isinstance(buyer.architecture.model, TokenModel):
        raise MergeError("wrong-rows", f"`{NAME}` is for rows of one answer, and tokens have many")
    wanted = [name for name in buyer.tensors if any(name in p.transformed for p in aligned)]
    inputs_RF = rows.inputs_RF[:MAX_ROWS]
    models = [dict(buyer.tensors), *(completed(pair) for pair in aligned)]
    fishers = [
        diagonal_fisher(buyer.architecture, model, inputs_RF, classes=rows.classes, wanted=wanted)
        for model in models
    ]
    entries = sum(one[name].numel() for one in fishers for name in wanted)
    mean = sum(float(one[name].sum()) for one in fishers for name in wanted) / entries
    floor = FLOOR * mean if mean > 0 else 1.0
    changed = {}
    for name in wanted:
        having = [0, *(1 + at for at, pair in enumerate(aligned) if name in pair.transformed)]
        changed[name] = fisher_mean(
            [models[k][name] for k in having], [fishers[k][name] for k in having], floor=floor
        )
    outputs = int(apply(buyer.architecture, buyer.tensors, inputs_RF[:1]).shape[-1])
    return merged_model(
        NAME,
        buyer,
        changed,
        detail={"rows": len(inputs_RF), "sellers": sellers_of(aligned)},
        row_evaluations=len(models) * len(inputs_RF) * (1 + 2 * outputs),
    )
