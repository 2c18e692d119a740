"""Several shares at once: one after the other is searched, and kept where the loss falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from broker_node.evaluate.search import halving_brent
from broker_node.merge.pairs import curve_between, mean_loss
from broker_node.merge.stages import Rows
from broker_node.verify.stages import Verified
from node.protocol.types import ONE, Millionths

MAX_PASSES: Final = 3
"""Over all shares; a pass in which none moves is the last."""

Make = Callable[[Sequence[Millionths]], dict[str, torch.Tensor]]
"""Shares → the whole model; affine in each share alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """Shares, the model that they make, and what finding them has cost."""

    shares: tuple[Millionths, ...]
    tensors: dict[str, torch.Tensor] = field(repr=False)
    loss: float
    """Mean over all rows."""
    row_evaluations: int


def descend(buyer: Verified, rows: Rows, make: Make, start: Sequence[Millionths]) -> Chosen:
    """Return shares whose mean loss over all rows is at most that of `start`.

    Each share is searched along its own line by `halving-brent`, and moved only if the loss over
    all rows falls: what a search found on fewer rows is never taken on trust. A share is searched
    again only when another has moved since.
    """
    shares = list(start)
    tensors = make(shares)
    loss = mean_loss(buyer, tensors, rows)
    cost = len(rows)
    due = set(range(len(shares)))
    for _ in range(MAX_PASSES):
        for at in range(len(shares)):
            if at not in due:
                continue
            due.discard(at)
            start_of, end_of = (
                make([*shares[:at], Millionths(end), *shares[at + 1 :]]) for end in (0, ONE)
            )
            curve = curve_between(buyer, start_of, end_of, rows)
            trial = [*shares[:at], halving_brent(curve), *shares[at + 1 :]]
            cost += curve.row_evaluations
            if trial == shares:
                continue
            candidate = make(trial)
            candidate_loss = mean_loss(buyer, candidate, rows)
            cost += len(rows)
            if candidate_loss < loss:
                shares, tensors, loss = trial, candidate, candidate_loss
                due = set(range(len(shares))) - {at}
        if not due:
            break
    return Chosen(shares=tuple(shares), tensors=tensors, loss=loss, row_evaluations=cost)
