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
    recipe: Recipe | None
    """Permutations and scales; α is 0, since nothing is measured yet.

    None where T(sold) is no permutation with scales: then a buyer could not make it from what
    was sold, and the merge is a product that only whoever holds both models can hand out."""
    transformed: Mapping[str, torch.Tensor] = field(repr=False)
    """T(sold): the tensors that are sold, and no others, with the buyer's units and scales."""
    seed: int
    permutation_hash: Digest | None = None
    """Of an alignment that no recipe can say: what names the order of its units
    (`node.params.blocks.permutation_hash`)."""

    @property
    def exact_recipe(self) -> Recipe:
        """The recipe; `AlignmentError` where there is none."""
        if self.recipe is None:
            raise AlignmentError(f"what `{self.method}` makes of a sold model has no recipe")
        return self.recipe

    @property
    def alignment_hash(self) -> Digest | None:
        """What names the alignment without α, so that others can tell whether they found the same.

        Of a recipe, its permutations and scales; else the order of units, if T has one. A
        receipt needs neither: its `recipe_hash` is of the recipes with their α.
        """
        return self.permutation_hash if self.recipe is None else self.recipe.alignment_hash


class Aligner(Protocol):
    """An alignment method: deterministic in its arguments."""

    def __call__(
        self,
        buyer: Verified,
        seller: Verified,
        *,
        seed: int,
        probe_RF: torch.Tensor | None = None,
    ) -> Aligned:
        """Line the seller's units up with the buyer's.

        `probe_RF` are unlabelled rows, of those that α is chosen on and never of those that
        score. Raises `AlignmentError`, also where a method needs rows and has none.
        """
