"""TIES: task vectors trimmed to their largest entries, agreed on a sign, and averaged.

Yadav et al. 2023, Algorithm 1: of each model's vector the `KEPT` share of largest magnitude stays;
an entry's sign is that of the sum over models; the mean is over those that have this sign. The
scale λ is chosen on the broker's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.merge.stages import Merged, Rows
from broker_node.merge.task_vectors import Vectors, along, task_vectors
from broker_node.verify.stages import Verified

NAME: Final = "ties"
KEPT: Final = 0.2
"""Share of a vector's entries that is not trimmed, as published."""
LARGEST: Final = 2
"""Of λ: trimming shortens a vector, and what was cut is made up for by scale."""


def trimmed(vector: Sequence[torch.Tensor], kept: float) -> list[torch.Tensor]:
    """Return the parts of one model's vector with all but the largest entries zero.

    The share is of all parts together, rounded up; entries as large as the smallest kept stay.
    """
    magnitudes = torch.cat([part.abs().flatten() for part in vector])
    count = math.ceil(kept * len(magnitudes))
    smallest = magnitudes.kthvalue(len(magnitudes) - count + 1).values
    return [torch.where(part.abs() >= smallest, part, 0.0) for part in vector]


def elected_mean(vectors_KF: torch.Tensor) -> torch.Tensor:
    """Return, entry by entry, the mean over those of K that have the sign of the sum; else 0."""
    sign_F = vectors_KF.sum(0).sign()
    agrees_KF = (vectors_KF.sign() == sign_F) & (sign_F != 0)
    return (vectors_KF * agrees_KF).sum(0) / agrees_KF.sum(0).clamp(min=1)


def ties_vector(vectors: Vectors, *, kept: float = KEPT) -> dict[str, torch.Tensor]:
    """Return the merged task vector of models whose parts stand in the same order."""
    cut = [trimmed(vector, kept) for vector in zip(*vectors.values(), strict=True)]
    return {
        name: elected_mean(torch.stack(parts))
        for name, parts in zip(vectors, zip(*cut, strict=True), strict=True)
    }


def ties(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the base with λ times the elected mean; raises `MergeError` (``no-base``).

    A seller of some layers has no say in the others.
    """
    task = task_vectors(aligned, rows, base)
    detail = {"kept": round(KEPT * 1_000_000)}
    return along(
        NAME, aligned, rows, task, ties_vector(task.vectors), largest=LARGEST, detail=detail
    )
