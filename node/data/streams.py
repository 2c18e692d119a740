"""Random streams by key: NumPy's Philox generator, the same on every platform."""

from __future__ import annotations

import numpy as np


def stream(*key: int) -> np.random.Generator:
    """Return a fresh generator for `key`; keys that differ only in zeros at the end are one."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
