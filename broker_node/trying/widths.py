"""What a merge with a model of other widths is set against: two controls of partial matching.

`projected`  the sold model alone in the buyer's widths, α = 1: what the matching itself costs
`random`     the merge at its own α*, of units that were matched at random
"""

from __future__ import annotations

from typing import Final

from broker_node.align.partial import NAME, RANDOM, partial_matching, random_matching
from broker_node.trying.making import Candidate, refused
from broker_node.trying.methods import LERP, OUTRIGHT, Rows, best_alpha, curve_of
from broker_node.trying.scoring import score
from broker_node.verify.stages import Verified
from node.params.recipe import interpolate
from node.protocol.errors import MarketError
from node.protocol.types import ONE, Millionths

CONTROLS: Final = ((NAME, OUTRIGHT), (RANDOM, LERP))
"""Alignment and merge of each control, in this order."""


def width_controls(
    buyer: Verified, seller: Verified, place: int, choice: Rows, *, seed: int
) -> list[Candidate]:
    """Return both controls of a seller of other widths; none for one of the buyer's own."""
    if seller.architecture == buyer.architecture:
        return []
    found = []
    for (name, merge), align in zip(CONTROLS, (partial_matching, random_matching), strict=True):
        try:
            aligned = align(buyer, seller, seed=seed, probe_RF=choice.inputs_RF)
            curve = curve_of(buyer, aligned.transformed, choice)
            alpha = Millionths(ONE) if merge == OUTRIGHT else best_alpha(curve)
            tensors = interpolate(buyer.tensors, aligned.transformed, alpha)
            loss = score(buyer.architecture, tensors, choice).loss
        except MarketError as error:
            found.append(refused((place,), name, merge, error))
            continue
        found.append(
            Candidate(
                sellers=(place,),
                align=name,
                merge=merge,
                tensors=tensors,
                alpha=alpha,
                choice_loss=loss,
                row_evaluations=curve.row_evaluations,
            )
        )
    return found
