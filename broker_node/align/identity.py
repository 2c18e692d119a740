"""No alignment: unit i of the seller is taken for unit i of the buyer."""

from __future__ import annotations

from typing import Final

from broker_node.align.preservation import require_same_architecture
from broker_node.align.stages import Aligned
from broker_node.verify.stages import Verified
from node.params.recipe import NO_ALIGNMENT

NAME: Final = "identity"


def identity(buyer: Verified, seller: Verified, *, seed: int) -> Aligned:
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
