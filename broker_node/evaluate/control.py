"""What a buyer's model gains by itself: its own outputs, all multiplied by one number.

Of classes that is temperature scaling (Guo et al. 2017): a model that is too sure of itself
loses less where its logits are smaller. A merge with weights that know nothing does the same, so
that of a gain as much as this could be had without any purchase. Of values it is the factor of
least squares.

A figure for the log: no price is made of it, and nothing that is signed tells it. The factor is
chosen and scored on the same rows as the α of the trial.
"""

from __future__ import annotations

from typing import Final

import torch
from scipy.optimize import minimize_scalar

from broker_node.evaluate.curve import ON_CPU, Runner, losses_of, wanted_of
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.evaluate.validation import ValidationSet, draw_rows
from node.params.architecture import Architecture
from node.params.permutation import Tensors
from node.protocol.types import Digest

MOST_ROWS: Final = 1_024
"""Of those that choose α: one number is found on no more."""
LARGEST_FACTOR: Final = 4.0
TOLERANCE: Final = 1e-6
"""Of the factor, which is small where answers are large."""


def own_gain(
    architecture: Architecture,
    base: Tensors,
    validation: ValidationSet,
    *,
    seed: Digest,
    choice_rows: int,
    score_rows: int,
    runner: Runner = ON_CPU,
) -> Gain:
    """Return what `base` gains by the best factor on its outputs, on the rows of a trial.

    Raises as `draw_rows` and `paired_gain` do, and `LocalProtocolError` for a model of values
    that answers more than one.
    """
    drawn = draw_rows(seed, len(validation), choice=choice_rows, score=score_rows)
    chosen_R, scored_R = (torch.from_numpy(rows) for rows in (drawn.choice, drawn.score))
    chosen_R = chosen_R[:MOST_ROWS]

    def answered(rows_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs_RF, targets_R = validation.inputs_RF[rows_R], validation.targets_R[rows_R]
        wanted = wanted_of(architecture, inputs_RF, targets_R)
        return runner.outputs(architecture, base, inputs_RF), wanted

    factor = best_factor(*answered(chosen_R))
    outputs_RO, targets_R = answered(scored_R)
    return paired_gain(losses_of(outputs_RO, targets_R), losses_of(factor * outputs_RO, targets_R))


def best_factor(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> float:
    """Return the factor of 0 … `LARGEST_FACTOR` of least mean loss, or 1 where none has less.

    The mean loss is convex in it.
    """

    def loss(factor: float) -> float:
        return float(losses_of(factor * outputs_RO, targets_R).mean())

    found = minimize_scalar(
        loss, bounds=(0.0, LARGEST_FACTOR), method="bounded", options={"xatol": TOLERANCE}
    )
    return min(1.0, 0.0, float(found.x), key=loss)
