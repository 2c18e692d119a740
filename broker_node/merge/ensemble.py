"""All models side by side: the mean of their answers, at the cost of running each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker_node.align.stages import Aligned
from broker_node.merge.pairs import require_pairs, sellers_of
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.stages import Verified

NAME: Final = "ensemble"


def ensemble(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return an ensemble of the buyer's model and all sold ones; raises `MergeError`.

    What it answers is the mean of the class probabilities, or of the values, of its members
    (`broker_node.merge.scoring.answers`). Nothing is chosen, so nothing is evaluated here.
    """
    require_pairs(aligned, rows)
    return Merged(
        method=NAME,
        tensors=None,
        recipe=None,
        detail={"members": 1 + len(aligned), "sellers": sellers_of(aligned)},
        row_evaluations=0,
    )
