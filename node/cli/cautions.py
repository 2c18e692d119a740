"""What a reader of measured merges is warned of, whichever command measured; names are stable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from broker_node.trying.trial import FEW_ROWS
from node.data.clean import row_digests

CHANCE: Final = 1.5
"""An accuracy under so many times 1 / classes looks like no model of these rows."""

Cautions = list[tuple[str, str]]
"""Name and text of each."""


def of_inferred(inferred: Sequence[bool]) -> Cautions:
    """Warn of files whose architecture was read off names and shapes."""
    if not any(inferred):
        return []
    text = (
        "ReLU is taken for granted between the layers: names and shapes do not tell it; "
        "--architecture says that it is so"
    )
    return [("inferred", text)]


def of_count(rows: int) -> Cautions:
    """Warn of too few rows in all."""
    few = f"{rows} rows are few: take {FEW_ROWS} or more"
    return [("few-rows", few)] if rows < FEW_ROWS else []


def of_chance(right: float | None, targets_R: torch.Tensor, who: str) -> Cautions:
    """Warn of an accuracy that is hardly more than chance; `who` is right so often."""
    if right is None or targets_R.is_floating_point():
        return []
    classes = len(set(targets_R.tolist()))
    if right >= CHANCE / max(classes, 1):
        return []
    text = (
        f"{who} {100 * right:.1f} % of {classes} classes, hardly more than chance: are the rows "
        "normalised as in training (--normalise), is ReLU between the layers?"
    )
    return [("chance", text)]


def of_overlap(choosing_RF: torch.Tensor, judging_RF: torch.Tensor, does: str) -> Cautions:
    """Warn of rows that choose, and stand among those that `does`: score, or confirm."""
    shared = shared_rows(choosing_RF, judging_RF)
    text = (
        f"{shared:,} of the {len(judging_RF):,} rows that {does} are among those that choose, to "
        "the byte: gains are flattered by as many; bring each row once"
    )
    return [("rows-overlap", text)] if shared else []


def shared_rows(one_RF: torch.Tensor, other_RF: torch.Tensor) -> int:
    """Return how many of the other rows are among the first ones, features alone."""
    known = set(row_digests(one_RF.numpy()))
    return sum(row in known for row in row_digests(other_RF.numpy()))
