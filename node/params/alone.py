"""What PyTorch has one of in a process, its generator and its tracer: for one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

ALONE: Final = threading.RLock()
"""Held by whoever seeds the generator and draws by it, or traces a graph."""


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Draw by `seed`, on the CPU and undisturbed; afterwards the generator is where it was."""
    with ALONE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
