"""Task arithmetic: what the buyer and all sellers learned on top of a common base, added up.

    w̃ = w₀ + λ Σₖ (wₖ − w₀)

Ilharco et al. 2023, §2, with λ chosen on the broker's rows; the buyer is one of the summands. At
λ = 1/K it is the plain mean of K models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from broker_node.align.stages import Aligned
from broker_node.merge.stages import Merged, Rows
from broker_node.merge.task_vectors import along, task_vectors
from broker_node.verify.stages import Verified

NAME: Final = "task-arithmetic"
LARGEST: Final = 1
"""Of λ: the whole sum."""


def task_arithmetic(
    aligned: Sequence[Aligned], rows: Rows, *, seed: int, base: Verified | None = None
) -> Merged:
    """Return the base with the scaled sum of all task vectors; raises `MergeError` (``no-base``).

    A tensor that only some supply has their vectors alone; what nobody sells stays the buyer's.
    """
    task = task_vectors(aligned, rows, base)
    total = {name: torch.stack(vectors).sum(0) for name, vectors in task.vectors.items()}
    return along(NAME, aligned, rows, task, total, largest=LARGEST, detail={})
