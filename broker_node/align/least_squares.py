"""Layer-wise least squares: a model whose every layer answers with the mean of both.

After activation matching, each layer of the merge is solved so that, on unlabelled rows and on
what the merged layers before it answer, it comes as near as it can to the mean of the two
models' own answers there (Nasery et al. 2024, PLeaS, with one width). The solution is sought
near the half-and-half merge, by a ridge in each input's own scale, so that neither a rescaling
by either side nor a unit that the rows never see has a say.

What comes out is no permutation of what was sold. It stands at α = 1, the buyer's model at 0; a
merge is made by whoever holds both models and the rows, and has no recipe.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from broker_node.align.activation_matching import activation_matching
from broker_node.align.preservation import require_same_architecture
from broker_node.align.probing import probe_rows
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.stages import Verified
from node.params.families.base import Affine
from node.params.permutation import Tensors

NAME: Final = "least-squares"
RIDGE: Final = 1e-2
"""Of each input's mean square on the rows."""


def solved(
    chain: tuple[Affine, ...], ours: Tensors, theirs: Tensors, rows_RF: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return float64 tensors of the layers of `chain` whose answers are the mean of both models'.

    `theirs` has the units and scales of `ours`.
    """
    merged: dict[str, torch.Tensor] = {}
    values = [rows_RF, rows_RF, rows_RF]
    for layer in chain:
        sides = [
            (side[layer.weight].double(), side[layer.bias].double()) for side in (ours, theirs)
        ]
        answers = [functional.linear(values[k], *sides[k]) for k in (0, 1)]
        weight_OI, bias_O = ((a + b) / 2 for a, b in zip(*sides, strict=True))
        wanted_RO = (answers[0] + answers[1]) / 2
        missing_RO = wanted_RO - functional.linear(values[2], weight_OI, bias_O)
        if layer != chain[0]:  # there all three read the rows, and the mean is exact
            step_OI = correction(values[2], missing_RO)
            weight_OI, bias_O = weight_OI + step_OI[:, :-1], bias_O + step_OI[:, -1]
        merged[layer.weight], merged[layer.bias] = weight_OI, bias_O
        values = [
            functional.relu(answer_RO)
            for answer_RO in (*answers, functional.linear(values[2], weight_OI, bias_O))
        ]
    return merged


def correction(inputs_RI: torch.Tensor, missing_RO: torch.Tensor) -> torch.Tensor:
    """Return the change of weights, and of biases behind them, that makes up for `missing_RO`."""
    inputs_RI = torch.cat((inputs_RI, torch.ones_like(inputs_RI[:, :1])), dim=1)
    gram_II = inputs_RI.T @ inputs_RI
    diagonal_I = gram_II.diagonal().clone()
    # in the scale of each input; one that is always 0 has an equation of its own, Δ = 0
    root_I = torch.where(diagonal_I > 0, diagonal_I, torch.ones_like(diagonal_I)).sqrt()
    scaled_II = gram_II / root_I / root_I[:, None]
    scaled_II.diagonal().copy_(torch.full_like(diagonal_I, 1 + RIDGE))
    right_IO = (inputs_RI / root_I).T @ missing_RO
    step_IO: torch.Tensor = torch.linalg.solve(scaled_II, right_IO) / root_I[:, None]
    return step_IO.T


@torch.inference_mode()
def least_squares(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,
) -> Aligned:
    """Return the pair with the layer-wise solution in place of the sold layers.

    Raises as `activation_matching`, and `AlignmentError` for an architecture that is no chain
    of affine layers, or where the solution is not finite.
    """
    require_same_architecture(buyer, seller)
    rows_RF = probe_rows(buyer.architecture, probe_RF, NAME)
    chain = buyer.architecture.model.affine_chain()
    if not chain:
        raise AlignmentError(f"`{NAME}` is for chains of affine layers")
    aligned = activation_matching(buyer, seller, seed=seed, probe_RF=probe_RF)
    sold = tuple(layer for layer in chain if layer.weight in seller.tensors)
    found = solved(sold, buyer.tensors, aligned.transformed, rows_RF)
    transformed = {name: found[name].to(tensor) for name, tensor in seller.tensors.items()}
    for name, tensor in transformed.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AlignmentError(f"the solution for {name} is not finite")
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=NAME,
        recipe=None,
        transformed=transformed,
        seed=seed,
    )
