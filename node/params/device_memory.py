"""How a device says that it has no memory left: one in a type of error, others in words alone."""

from __future__ import annotations

from typing import Final

import torch

WORDS: Final = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""Of CUDA and of Apple's, of CUDA's libraries, of the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, the CPU among them, ran out of memory."""
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    named = any(words in said for words in WORDS)
    return named or isinstance(error, torch.OutOfMemoryError)
