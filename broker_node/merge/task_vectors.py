"""Task vectors: what tuning has made of a common base, one for the buyer and for every seller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from broker_node.align.stages import Aligned
from broker_node.evaluate.search import halving_brent
from broker_node.merge.pairs import (
    curve_between,
    merged_model,
    require_base,
    require_pairs,
    sellers_of,
)
from broker_node.merge.stages import Json, Merged, Rows
from broker_node.verify.stages import Verified
from node.protocol.types import ONE

Vectors = dict[str, list[torch.Tensor]]
"""By the name of a tensor that is sold: the buyer's difference from the base, then every seller's,
in float64; zero where a seller does not supply it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """The base's part that is sold, and the vectors over it."""

    buyer: Verified
    base: Mapping[str, torch.Tensor] = field(repr=False)
    vectors: Vectors = field(repr=False)


def task_vectors(aligned: Sequence[Aligned], rows: Rows, base: Verified | None) -> Task:
    """Return the differences from the base; raises `MergeError`, ``no-base`` among them."""
    buyer = require_pairs(aligned, rows)
    origin = require_base(buyer, base)
    sold = {name for pair in aligned for name in pair.transformed}
    start = {name: origin.tensors[name] for name in buyer.tensors if name in sold}
    sides = [buyer.tensors, *(pair.transformed for pair in aligned)]
    vectors = {
        name: [side.get(name, own).double() - own.double() for side in sides]
        for name, own in start.items()
    }
    return Task(buyer=buyer, base=start, vectors=vectors)


def along(
    method: str,
    aligned: Sequence[Aligned],
    rows: Rows,
    task: Task,
    vector: Mapping[str, torch.Tensor],
    *,
    largest: int,
    detail: Mapping[str, Json],
) -> Merged:
    """Return base + λ·vector for the λ in 0 … `largest` that the rows choose."""
    buyer = task.buyer
    start = {**buyer.tensors, **task.base}
    end = {name: (own.double() + largest * vector[name]).float() for name, own in task.base.items()}
    curve = curve_between(buyer, start, end, rows)
    share = largest * halving_brent(curve)
    changed = {
        name: (own.double() + share / ONE * vector[name]).float() for name, own in task.base.items()
    }
    return merged_model(
        method,
        buyer,
        changed,
        detail={**detail, "lambda": share, "sellers": sellers_of(aligned)},
        row_evaluations=curve.row_evaluations,
    )
