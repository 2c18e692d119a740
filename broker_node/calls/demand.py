"""What a buyer would gain by layers of a seller: the broker's prediction, from its trials.

A weight market wants one figure of each pair, the layers that a unit of gain takes (paper 003,
Eq. 1), and predicts it with a regression from weights to accuracy. Here weights need not be
guessed about: every beginning of a seller's layers, from the input side to the whole model, is an
offer that was tried on the buyer's own model. The prediction is the straight line through no gain
for no layers that fits these trials best, by least squares:

    gain(k layers) ≈ slope · k,    slope = Σ k·g_k / Σ k²

so that the whole model, and whatever is nearly the whole, weighs most. What it leaves out is that
the gain does not grow by the layer evenly, and that gains of several sellers do not add up once
they are fused: both are measured against what came of each purchase, in the report of a run.

How well it predicts, in runs of `pm-node devnet --mechanism eeg --endowment dirichlet --rounds 2`:
R² of a purchase's gain, and of what a round's purchases made of the buyer's loss on unseen rows,

    digits, 4 agents, 2 seeds    0.64 of 18 purchases    0.64 of 16 rounds
    mnist, 3 agents, 1 seed      0.91 of 6               0.90 of 6

Gains are relative drops of the loss, in millionths as they were measured, 1 in what is returned.
"""

from __future__ import annotations

from collections.abc import Mapping

from node.protocol.types import ONE, Millionths


def slope_of(measured: Mapping[int, Millionths]) -> float:
    """Return the predicted gain of one layer; 0 where none is predicted.

    `measured` is the gain that was found for so many layers, each at least 1.
    """
    if not measured:
        return 0.0
    # integers as far as they go, so that the order of the trials changes no bit
    fitted = sum(layers * gain for layers, gain in measured.items())
    return max(0.0, fitted / (ONE * sum(layers * layers for layers in measured)))


def predicted(slope: float, layers: int) -> Millionths:
    """Return the gain that is predicted for whole layers, rounded down; at most all of the loss."""
    return Millionths(min(ONE, int(slope * layers * ONE)))
