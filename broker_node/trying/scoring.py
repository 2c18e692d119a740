"""How good a model is on rows: its loss row by row, its accuracy, and a metric of the user's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from broker_node.evaluate.curve import (
    ON_CPU,
    Model,
    Runner,
    losses_of,
    outputs_of,
    tensors_of,
    wanted_of,
)
from broker_node.evaluate.metrics import (
    Metric,
    MetricError,
    accuracy_of,
    number_of,
    perplexity_of,
)
from broker_node.evaluate.metrics import Model as Answering
from broker_node.trying.errors import TryError
from broker_node.trying.methods import Rows
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model scores on rows."""

    losses_R: torch.Tensor = field(repr=False)
    """float64: cross-entropy in nats, or squared error."""
    accuracy: float | None
    """Share of rows, or places of token rows, whose likeliest class is right; None of values."""
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
        return perplexity_of(self.loss)


@torch.inference_mode()
def score(
    architecture: Architecture,
    model: Model,
    rows: Rows,
    metric: Metric | None = None,
    *,
    runner: Runner = ON_CPU,
) -> Score:
    """Return what a model scores; a user's metric sees it on the CPU.

    Raises `TryError` if the metric gives no number.
    """
    losses_R = runner.losses(architecture, model, rows.inputs_RF, rows.targets_R)
    accuracy = None
    if not rows.targets_R.is_floating_point():
        wanted = wanted_of(architecture, rows.inputs_RF, rows.targets_R)
        accuracy = accuracy_of(runner.outputs(architecture, model, rows.inputs_RF), wanted)
    return Score(
        losses_R=losses_R,
        accuracy=accuracy,
        metric=_asked(
            metric,
            architecture,
            lambda inputs_RF: apply(architecture, tensors_of(model), inputs_RF),
            rows,
        ),
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
        logs_NRC = torch.stack([functional.log_softmax(each, dim=-1) for each in answers])
        return torch.logsumexp(logs_NRC, dim=0) - math.log(len(answers))

    return _answered(architecture, model, rows, metric)


@torch.inference_mode()
def score_scaled(
    architecture: Architecture,
    tensors: Tensors,
    factor: float,
    rows: Rows,
    metric: Metric | None = None,
) -> Score:
    """Return what `factor` times a model's own outputs scores. Raises as `score`."""

    def model(inputs_RF: torch.Tensor) -> torch.Tensor:
        return factor * outputs_of(architecture, tensors, inputs_RF)

    return _answered(architecture, model, rows, metric)


def _answered(
    architecture: Architecture, model: Answering, rows: Rows, metric: Metric | None
) -> Score:
    """Return what answers of any origin score, all rows at once."""
    outputs_RO = model(rows.inputs_RF)
    wanted = wanted_of(architecture, rows.inputs_RF, rows.targets_R)
    values = rows.targets_R.is_floating_point()
    return Score(
        losses_R=losses_of(outputs_RO, wanted),
        accuracy=None if values else accuracy_of(outputs_RO, wanted),
        metric=_asked(metric, architecture, model, rows),
    )


def _asked(
    metric: Metric | None, architecture: Architecture, model: Answering, rows: Rows
) -> float | None:
    if metric is None:
        return None
    wanted = wanted_of(architecture, rows.inputs_RF, rows.targets_R)
    try:
        # copies: whatever a plug-in does to its batch, the rows stay what was committed to
        return number_of(metric(model, (rows.inputs_RF.clone(), wanted.clone())))
    except MetricError as error:
        raise TryError(f"--metric {error}") from error
