"""No alignment: unit i of the seller is taken for unit i of the buyer."""

from __future__ import annotations

from typing import Final

import torch

from broker_node.align.preservation import require_same_architecture
from broker_node.align.stages import Aligned
from broker_node.verify.stages import Verified
from node.params.recipe import NO_ALIGNMENT

NAME: Final = "identity"


def identity(
    buyer: Verified,
    seller: Verified,
    *,
    seed: int,
    probe_RF: torch.Tensor | None = None,  # noqa: ARG001  units are not looked at
) -> Aligned:
    """Return the pair as it came; raises `ArchitectureMismatchError`."""
    require_same_architecture(buyer, seller)
    return Aligned(
        buyer=buyer,
        seller=seller,
        method=NAME,
        recipe=NO_ALIGNMENT,
        transformed=seller.tensors,
        seed=seed,
    )
