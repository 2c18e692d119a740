"""Trials of whatever is traded: adapters are measured as the whole models that they make.

Of adapters α is searched, and the gain scored, along the line between the two whole models: that is
what merged adapters compute, to the rounding of a weight. What the buyer gets, and what is named,
are adapters. Everything else is measured as it is.
"""

from __future__ import annotations

import dataclasses

from broker_node.align.stages import Aligned
from broker_node.evaluate.curve import ON_CPU, Runner
from broker_node.evaluate.evaluation import Evaluated, replay
from broker_node.evaluate.gain import Gain
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.computing import computing, whole
from broker_node.verify.stages import Received, Verified
from node.params.adapters import lora_of, summed_architecture
from node.params.encoding import weights_root
from node.params.merges import is_adapter, merge_bought, unscaled
from node.params.recipe import NO_ALIGNMENT, Recipe, interpolate
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import Digest, Millionths


def whole_pair(aligned: Aligned) -> Aligned:
    """Return a pair of adapters as whole models, whose units are the base's; all else as it is."""
    if not is_adapter(aligned.buyer.architecture):
        return aligned
    buyer, seller = whole(aligned.buyer), whole(aligned.seller)
    return dataclasses.replace(
        aligned, buyer=buyer, seller=seller, recipe=NO_ALIGNMENT, transformed=seller.tensors
    )


def as_traded(aligned: Aligned, found: Evaluated) -> Evaluated:
    """Return what `evaluate` found of `whole_pair(aligned)` as of the pair itself.

    Of adapters the roots are their own, and the architecture is that of what is sold. Raises
    `LocalProtocolError` for a merge of them by more than a share, as `merge_bought`, and as
    `verify` for a merge that no broker would take, or the next merge with it.
    """
    if not is_adapter(aligned.buyer.architecture):
        return found
    if found.recipe != NO_ALIGNMENT.with_alpha(found.alpha):
        raise LocalProtocolError("adapters are merged by one share, and by nothing else")
    merged = merged_pair(aligned, found.alpha)
    if found.alpha:
        _require_takeable(merged)
    return dataclasses.replace(
        found,
        architecture=aligned.seller.architecture.text,
        base_root=aligned.buyer.weights_root,
        sold_root=aligned.seller.weights_root,
        merged_root=merged.weights_root,
    )


def _require_takeable(merged: Verified) -> None:
    """Raise `RemoteProtocolError` as `verify` unless a merge is sane with its scales within B.

    Factors are bounded without their scales, which may be 2^20, and any merge moves these into B.
    """
    try:
        tensors = unscaled(merged.architecture, merged.tensors)
        verify(
            Received(
                weights_root=weights_root(tensors),
                architecture=summed_architecture([lora_of(merged.architecture)]),
                tensors=tensors,
                base=merged.base,
            )
        )
    except RemoteProtocolError as error:
        raise RemoteProtocolError(error.reason, f"what is merged: {error.detail}") from error


def merged_pair(aligned: Aligned, alpha: Millionths) -> Verified:
    """Return the buyer's model with so much of the seller's in it; adapters have ranks added."""
    buyer, seller = aligned.buyer, aligned.seller
    architecture, tensors = buyer.architecture, dict(buyer.tensors)
    if is_adapter(architecture):
        own, sold = ((side.architecture, side.tensors) for side in (buyer, seller))
        architecture, tensors = merge_bought(own, sold, NO_ALIGNMENT.with_alpha(alpha))
    else:
        tensors = interpolate(tensors, aligned.transformed, alpha)
    return dataclasses.replace(
        buyer, weights_root=weights_root(tensors), architecture=architecture, tensors=tensors
    )


def replay_pair(
    base: Verified,
    sold: Verified,
    recipe: Recipe,
    validation: ValidationSet,
    *,
    seed: Digest,
    choice_rows: int,
    score_rows: int,
    runner: Runner = ON_CPU,
) -> tuple[Digest, Gain]:
    """Return the merged root and the gain of a recipe, computed again; as `replay`."""
    architecture, ours = computing(base)
    theirs = computing(sold)[1] if is_adapter(base.architecture) else sold.tensors
    merged_root, gain = replay(
        architecture,
        ours,
        theirs,
        recipe,
        validation,
        seed=seed,
        choice_rows=choice_rows,
        score_rows=score_rows,
        runner=runner,
    )
    if is_adapter(base.architecture):
        own, bought = ((side.architecture, side.tensors) for side in (base, sold))
        merged_root = weights_root(merge_bought(own, bought, recipe)[1])
    return merged_root, gain
