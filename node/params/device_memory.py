"""How a device says that it has no memory left: some in a type of error, some in words alone."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory; Apple's, and the libraries of CUDA, say so in words."""
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    named = "out of memory" in said or "ALLOC_FAILED" in said
    return named or isinstance(error, torch.OutOfMemoryError)
