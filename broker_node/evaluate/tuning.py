"""The control of a gain: the buyer's own model, fine-tuned on the broker's labels.

Whoever has labelled rows can train on them instead of choosing a merge by them. The rows that chose
α are divided: three quarters are fitted to by Adam, the rest say when to stop, and not having begun
is among the answers. The rows that score are the trial's, and choose nothing here either.

A figure for the report: no price is made of it, and nothing that is signed tells it. What the
broker's labels are worth to a buyer is no gain of the trade.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch

from broker_node.evaluate.curve import ON_CPU, Runner, row_losses, training_loss, wanted_of
from broker_node.evaluate.gain import Gain, paired_gain
from broker_node.evaluate.validation import ValidationSet, draw_rows
from broker_node.evaluate.work import multiplications
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest

EPOCHS: Final = 30
PATIENCE: Final = 3
"""Passes without a better one after which there is none to wait for."""
BATCH: Final = 64
LEARNING_RATE: Final = 1e-3
STOPPING: Final = 4
"""One row in so many says when to stop."""
LEAST_ROWS: Final = 8
MAX_ROWS: Final = 4_096
"""Of those that chose α."""
MAX_WORK: Final = 5e11
"""Multiplications of all forward passes: a minute, at worst. The epochs are fewer beyond it."""
TRIAL_WORK: Final = 5e9
"""The same of a broker's trial, which a buyer waits for: of the order of a second."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuned:
    """A model that was fine-tuned, and when it was best."""

    tensors: Tensors = field(repr=False)
    epochs: int
    """Passes after which it was best; 0 for the model as it was."""
    rows: int
    """That it was fitted to."""


def tuned(
    architecture: Architecture,
    base: Tensors,
    inputs_RF: torch.Tensor,
    targets_R: torch.Tensor,
    *,
    seed: int,
    work: float = MAX_WORK,
) -> Tuned:
    """Return `base` after fine-tuning on the rows; the same for the same seed.

    Raises `LocalProtocolError` for fewer than `LEAST_ROWS` rows, or a model that is too large.
    """
    rows = min(len(targets_R), MAX_ROWS)
    if rows < LEAST_ROWS:
        raise LocalProtocolError(f"{rows} rows to fine-tune on, at least {LEAST_ROWS}")
    held = rows // STOPPING
    fitted = rows - held
    wanted = wanted_of(architecture, inputs_RF[:rows], targets_R[:rows])
    each = multiplications(architecture)
    epochs = min(EPOCHS, int(work / (fitted * each)))
    if epochs < 1:
        raise LocalProtocolError(
            f"{each:,} multiplications a row are too many to fine-tune on {rows} rows"
        )
    stop_RF, stop_R = inputs_RF[fitted:rows], targets_R[fitted:rows]
    names = list(base)
    current = [base[name].detach().clone().requires_grad_() for name in names]
    optimizer = torch.optim.Adam(current, lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(seed % 2**63)
    best = (_mean_loss(architecture, base, stop_RF, stop_R), 0, base)
    for epoch in range(1, epochs + 1):
        order_R = torch.randperm(fitted, generator=generator)
        for batch_R in torch.split(order_R, BATCH):
            side = dict(zip(names, current, strict=True))
            outputs_RO = apply(architecture, side, inputs_RF[batch_R])
            optimizer.zero_grad()
            training_loss(outputs_RO, wanted[batch_R]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        side = {name: t.detach().clone() for name, t in zip(names, current, strict=True)}
        loss = _mean_loss(architecture, side, stop_RF, stop_R)
        if loss < best[0]:
            best = (loss, epoch, side)
        elif epoch - best[1] >= PATIENCE:
            break
    return Tuned(tensors=best[2], epochs=best[1], rows=fitted)


def tuned_gain(
    architecture: Architecture,
    base: Tensors,
    validation: ValidationSet,
    *,
    seed: Digest,
    choice_rows: int,
    score_rows: int,
    runner: Runner = ON_CPU,
) -> Gain:
    """Return what `base` gains by fine-tuning, on the rows of a trial.

    Raises as `draw_rows`, `paired_gain` and `tuned` do.
    """
    drawn = draw_rows(seed, len(validation), choice=choice_rows, score=score_rows)
    chosen_R, scored_R = (torch.from_numpy(rows) for rows in (drawn.choice, drawn.score))
    found = tuned(
        architecture,
        base,
        validation.inputs_RF[chosen_R],
        validation.targets_R[chosen_R],
        seed=int.from_bytes(seed[:8], "big"),
        work=TRIAL_WORK,
    )
    before_R, after_R = (
        runner.losses(
            architecture, side, validation.inputs_RF[scored_R], validation.targets_R[scored_R]
        )
        for side in (base, found.tensors)
    )
    return paired_gain(before_R, after_R)


def _mean_loss(
    architecture: Architecture, side: Tensors, inputs_RF: torch.Tensor, targets_R: torch.Tensor
) -> float:
    return float(row_losses(architecture, side, inputs_RF, targets_R).mean())
