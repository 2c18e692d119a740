"""Assignments that have no say in one another, several at a time.

The solver lets go of the interpreter's lock, so threads are enough; below `THREADED` units the
hand-over costs more than it wins. The result is that of one after the other, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from broker_node.align.matching import assign

THREADED: Final = 512
"""Units of the second largest problem from which on a thread each is worth it."""
MAX_THREADS: Final = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    """Return the best `perm_U` of each similarity_UV."""
    sizes = [len(similarity_UV) for similarity_UV in similarities.values()]
    found = each(assign, list(similarities.values()), sizes)
    return dict(zip(similarities, found, strict=True))
