"""Linear assignments, and those that have no say in one another several at a time.

The solver lets go of the interpreter's lock, so threads are enough; below `THREADED` units the
hand-over costs more than it wins. The result is that of one after the other, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

THREADED: Final = 512
"""Units of the second largest problem from which on a thread each is worth it."""
MAX_THREADS: Final = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def _best_of_rows(similarity_UV: torch.Tensor) -> torch.Tensor | None:
    """Return the largest entries of the rows where they stand in different columns."""
    best_U = similarity_UV.argmax(1)
    return best_U.cpu() if len(torch.unique(best_U)) == len(best_U) else None


def _solve(similarity_UV: torch.Tensor) -> torch.Tensor:
    centred_UV = similarity_UV - similarity_UV.mean(0)
    centred_UV -= centred_UV.mean(1, keepdim=True)
    _, columns = linear_sum_assignment(centred_UV.cpu().numpy(), maximize=True)
    return torch.from_numpy(np.asarray(columns, dtype=np.int64))


def assign(similarity_UV: torch.Tensor) -> torch.Tensor:
    """Return `perm_U` that maximises Σ_u similarity[u, perm[u]]: a linear assignment.

    Where the largest entries of the rows already stand in different columns they are the
    optimum, and no assignment problem is solved. What all entries of a row or of a column share
    is in every assignment alike, and only costs the solver steps: it is taken off before.
    """
    best_U = _best_of_rows(similarity_UV)
    return _solve(similarity_UV) if best_U is None else best_U


def threads() -> int:
    """Return how many threads this process may use, `MAX_THREADS` at most."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, own))


def each(
    work: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
) -> list[Result]:
    """Return `work` of every item, in order; in threads where two items at least are large.

    `sizes` are how many units each item assigns.
    """
    workers = min(threads(), len(sizes))
    if workers < 2 or sorted(sizes)[-2] < THREADED:
        return [work(item) for item in items]

    def unrecorded(item: Item) -> Result:
        with torch.inference_mode():  # which every thread has to say for itself
            return work(item)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(unrecorded, items))


def assign_all(similarities: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the best `perm_U` of each similarity_UV, as `assign` would, in their order."""
    best = {group: _best_of_rows(similarity) for group, similarity in similarities.items()}
    left = [similarities[group] for group, best_U in best.items() if best_U is None]
    solved = iter(each(_solve, left, [len(similarity_UV) for similarity_UV in left]))
    return {group: next(solved) if best_U is None else best_U for group, best_U in best.items()}
