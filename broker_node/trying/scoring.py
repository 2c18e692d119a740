"""How good a model is on rows: its loss row by row, its accuracy, and a metric of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from broker_node.evaluate.curve import row_losses
from broker_node.trying.errors import TryError
from broker_node.trying.methods import Rows
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors

Model = Callable[[torch.Tensor], torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]
Metric = Callable[[Model, Batch], object]
"""``metric(model, batch)``: `model` answers inputs_RF with outputs_RO, `batch` is inputs_RF and
targets_R. Returns one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model scores on rows."""

    losses_R: torch.Tensor = field(repr=False)
    """float64: cross-entropy in nats, or squared error."""
    accuracy: float | None
    """Share of rows whose likeliest class is right; None where the targets are values."""
    metric: float | None
    """What the user's own metric says, if there is one."""

    @property
    def loss(self) -> float:
        """The mean loss; inf where it overflows."""
        mean = float(self.losses_R.mean())
        return mean if math.isfinite(mean) else math.inf

    @property
    def perplexity(self) -> float | None:
        """Exp of the mean loss, where that is a cross-entropy."""
        if self.accuracy is None:
            return None
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.inference_mode()
def score(
    architecture: Architecture, tensors: Tensors, rows: Rows, metric: Metric | None = None
) -> Score:
    """Return what a model scores. Raises `TryError` if the metric gives no number."""
    losses_R = row_losses(architecture, tensors, rows.inputs_RF, rows.targets_R)
    accuracy = None
    if not rows.targets_R.is_floating_point():
        outputs_RO = apply(architecture, tensors, rows.inputs_RF)
        accuracy = _accuracy(outputs_RO, rows.targets_R)
    return Score(
        losses_R=losses_R,
        accuracy=accuracy,
        metric=_asked(metric, lambda inputs_RF: apply(architecture, tensors, inputs_RF), rows),
    )


@torch.inference_mode()
def score_ensemble(
    architecture: Architecture,
    members: Sequence[Tensors],
    rows: Rows,
    metric: Metric | None = None,
    *,
    architectures: Sequence[Architecture] = (),
) -> Score:
    """Return what the mean of several models' probabilities, or values, scores.

    `architectures`: those of the members, where not all are of `architecture`.
    """
    values = rows.targets_R.is_floating_point()
    of_each = architectures or [architecture] * len(members)

    def model(inputs_RF: torch.Tensor) -> torch.Tensor:
        answers = [
            apply(own, tensors, inputs_RF).double()
            for own, tensors in zip(of_each, members, strict=True)
        ]
        if values:
            return torch.stack(answers).mean(0)
        logs_NRC = torch.stack([functional.log_softmax(each, dim=1) for each in answers])
        return torch.logsumexp(logs_NRC, dim=0) - math.log(len(answers))

    outputs_RO = model(rows.inputs_RF)
    if values:
        losses_R = (outputs_RO.squeeze(1) - rows.targets_R.double()).square()
    else:
        losses_R = functional.nll_loss(outputs_RO, rows.targets_R, reduction="none")
    return Score(
        losses_R=losses_R,
        accuracy=None if values else _accuracy(outputs_RO, rows.targets_R),
        metric=_asked(metric, model, rows),
    )


def _accuracy(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> float:
    return float((outputs_RO.argmax(1) == targets_R).double().mean())


def _asked(metric: Metric | None, model: Model, rows: Rows) -> float | None:
    if metric is None:
        return None
    found = metric(model, (rows.inputs_RF, rows.targets_R))
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TryError(f"--metric must return one number, and returned {found!r:.60}")
    return float(found)
