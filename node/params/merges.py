"""What a buyer has after a purchase, whatever was sold, and of which architecture that is.

Models, and layers of them, are interpolated (`node.params.recipe`), and stay what they are.
Adapters of one base are merged by what they add to it (`node.params.adapters`): ranks add, so that
the result is of another architecture than what was bought, and than what it was bought for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from node.params.adapters import (
    PAIRWISE,
    Adapter,
    lora_of,
    merged,
    summed_architecture,
    weighted_sum,
)
from node.params.architecture import Architecture, permutation_spec
from node.params.families.base import ArchitectureError
from node.params.families.lora import Lora
from node.params.permutation import Tensors, restrict
from node.params.recipe import NO_ALIGNMENT, Recipe, apply_recipe, check_recipe, check_shares
from node.protocol import kinship
from node.protocol.errors import RemoteProtocolError
from node.protocol.kinship import require_kin
from node.protocol.parameters import Layout
from node.protocol.types import ONE, Millionths


def is_adapter(architecture: Architecture) -> bool:
    """Whether its weights are factors of adapters, which compute nothing without a base."""
    return isinstance(architecture.model, Lora)


def require_whole(text: str, where: str) -> None:
    """Raise `RemoteProtocolError` ``adapters-pairwise`` for a text of adapters, and say what to do.

    `where` fuses the weights of many: a call, or a round of a clearing house.
    """
    if kinship.is_adapter(text):
        raise RemoteProtocolError(
            PAIRWISE,
            f"{where} takes no adapters: trade them pair by pair, in a market that bargains "
            "(--mechanism nash), or bring whole models",
        )


def architecture_after(own: Architecture, sold: Architecture, alpha: Millionths) -> Architecture:
    """Return of what our weights are once so much of the `sold` is merged into them.

    Raises `RemoteProtocolError`: as `require_kin`, and ``bad-architecture`` for adapters that are
    past the largest rank, or length of text, together.
    """
    require_kin(own.text, sold.text)
    if not is_adapter(own) or alpha == 0:
        return own
    return sold if alpha == ONE else summed_architecture([lora_of(own), lora_of(sold)])


def merge_bought(
    own: tuple[Architecture, Tensors], sold: tuple[Architecture, Tensors], recipe: Recipe
) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """Return what a recipe makes of our weights and of those that were sold.

    Raises `RemoteProtocolError`: as `architecture_after` and `apply_recipe`, ``bad-recipe`` for one
    that would renumber or rescale adapters, ``not-finite`` for a sum of them that overflows.
    """
    require_kin(own[0].text, sold[0].text)
    if not is_adapter(own[0]):
        return own[0], apply_recipe(own[0], own[1], sold[1], recipe)
    _require_share_alone(recipe)
    found = merged(Adapter(*own), Adapter(*sold), recipe.alpha)
    return found.architecture, dict(found.tensors)


def require_applicable(own: Architecture, sold: Layout, recipe: Recipe) -> None:
    """Raise `RemoteProtocolError("bad-recipe")` for a recipe that `merge_bought` would refuse.

    `sold` names the tensors that are to be merged into weights of our `own`; none need be here.
    """
    if is_adapter(own):
        return _require_share_alone(recipe)
    shapes = {spec.name: spec.shape for spec in sold}
    check_shares(recipe.shares, shapes)
    if not recipe.permutations and not recipe.scales:
        return None
    try:
        spec = permutation_spec(own)
    except ArchitectureError as error:
        raise RemoteProtocolError("bad-recipe", f"it renumbers units: {error}"[:300]) from error
    return check_recipe(restrict(spec, shapes), recipe)


def _require_share_alone(recipe: Recipe) -> None:
    if recipe != NO_ALIGNMENT.with_alpha(recipe.alpha):
        raise RemoteProtocolError("bad-recipe", "of adapters a recipe says the share alone")


def unscaled(architecture: Architecture, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return adapters with their scales within B, α = r."""
    return dict(weighted_sum([(1.0, Adapter(architecture, tensors))]).tensors)


def mean_of_merges(
    own: tuple[Architecture, Tensors],
    sold: Sequence[tuple[Architecture, Tensors, Millionths]],
) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """Return the mean of what several purchases of adapters gave (paper 003, Eq. 16).

    Each of `sold` is an adapter with the share at which it was measured. Our own factors stand in
    the sum once, at what all merges leave of them. Raises as `merge_bought`.
    """
    for architecture, _, _ in sold:
        require_kin(own[0].text, architecture.text)
    count = len(sold) * ONE
    kept = sum(ONE - alpha for _, _, alpha in sold) / count
    terms = [(alpha / count, Adapter(one, tensors)) for one, tensors, alpha in sold]
    found = weighted_sum([(kept, Adapter(*own)), *terms])
    return found.architecture, dict(found.tensors)
