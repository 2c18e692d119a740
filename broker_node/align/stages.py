"""The third stage: a verified pair in which the sold model's units line up with the buyer's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from broker_node.verify.stages import Verified
from node.params.recipe import Recipe
from node.protocol.errors import MarketError
from node.protocol.types import Digest


class AlignmentError(MarketError):
    """An alignment that cannot be trusted: it changes what the sold model computes."""


class ArchitectureMismatchError(AlignmentError):
    """Two models of different architectures have no units in common."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aligned:
    """A buyer's model, a sold model, and the sold model as the recipe transforms it."""

    buyer: Verified
    seller: Verified
    method: str
    """The name under which the alignment method is registered."""
    recipe: Recipe
    """Permutations and scales; α is 0, since nothing is measured yet."""
    transformed: Mapping[str, torch.Tensor] = field(repr=False)
    """T(sold): the tensors that are sold, and no others, with the buyer's units and scales."""
    seed: int

    @property
    def alignment_hash(self) -> Digest:
        """Names the permutations and scales, without α."""
        return self.recipe.alignment_hash


class Aligner(Protocol):
    """An alignment method: deterministic in its arguments."""

    def __call__(self, buyer: Verified, seller: Verified, *, seed: int) -> Aligned:
        """Line the seller's units up with the buyer's; raises `AlignmentError`."""
