"""How a buyer takes up the weights that several purchases gave it (paper 003, Eq. 16).

    w̃ = w + (1/n) Σᵢ λᵢ (wᵢ − w)

tensor by tensor, n being the number of sellers that supply it. Here wᵢ are the seller's weights in
the buyer's own numbering and scales, and λᵢ is the α at which that purchase was measured; so each
summand is what the purchase's own merge has moved by, and w̃ is the mean of these merges. Of one
purchase it is that merge, to the byte. What nobody supplies stays as it is.

The paper holds one λ for all sellers. A trial has measured for this very pair how far to go, and a
model that is little alike stays a small step; on digits that beat every fixed λ, and no fixed one
over a half was without rounds that made the buyer worse (docs/adr/0013).

The twin of `broker_node.mechanisms.fusion` on tensors, to the bit; nodes that only trade do
without the mechanisms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from node.protocol.errors import LocalProtocolError

Tensors = Mapping[str, torch.Tensor]


def fuse_merges(own: Tensors, merges: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """Return the fused tensors, each of the shape and type of our own.

    Each of `merges` has the tensors that its seller supplied, merged at λ = α; sums are taken in
    double precision, in their order. Raises `LocalProtocolError` for a tensor that is not ours, or
    of another shape.
    """
    for merged in merges:
        for name, tensor in merged.items():
            if name not in own or own[name].shape != tensor.shape:
                raise LocalProtocolError(f"{name!r:.80} of {list(tensor.shape)} is no part of ours")
    fused = {}
    for name, weights in own.items():
        supplied = [merged[name] for merged in merges if name in merged]
        if len(supplied) < 2:
            fused[name] = (supplied[0] if supplied else weights).clone()
            continue
        total = torch.zeros(weights.shape, dtype=torch.float64)
        for theirs in supplied:
            total += (1.0 / len(supplied)) * theirs.to(torch.float64)
        fused[name] = total.to(weights.dtype)
    return fused
