"""What makes a figure doubtful without making it wrong: told beside it, under stable names.

`constant`        a model answers every row alike
`several-minima`  the loss falls, rises and falls again from the buyer's model to the seller's, so
                  that a search may have found the lesser valley
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from broker_node.evaluate.curve import ON_CPU, Runner
from node.params.architecture import Architecture
from node.params.permutation import Tensors

FLAT: Final = 1e-6
"""Of the largest answer: what differs less from row to row is rounding."""
RIPPLE: Final = 0.02
"""Of the span of a curve: what falls or rises less is no valley."""
MAX_ROWS: Final = 64
"""Rows that are enough to see that answers differ."""


@torch.inference_mode()
def answers_alike(
    architecture: Architecture,
    tensors: Tensors,
    inputs_RF: torch.Tensor,
    rows: int = MAX_ROWS,
    *,
    runner: Runner = ON_CPU,
) -> bool:
    """Whether a model answers the first rows alike: it has learned nothing that they show."""
    outputs_RO = runner.outputs(architecture, tensors, inputs_RF[:rows])
    return float((outputs_RO - outputs_RO[0]).abs().max()) <= FLAT * float(outputs_RO.abs().max())


def valleys(losses: Sequence[float]) -> int:
    """Return how many times the losses fall by more than `RIPPLE` of their span, then rise so."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    ripple = RIPPLE * (max(finite, default=0.0) - min(finite, default=0.0))
    count, low, high, falling = 0, math.inf, -math.inf, True
    for loss in losses:
        low, high = min(low, loss), max(high, loss)
        if falling and loss > low + ripple:
            count, falling, high = count + 1, False, loss
        elif not falling and loss < high - ripple:
            falling, low = True, loss
    return count + falling
