"""What a model scores on rows, by name: figures for reports. Prices stand on the loss alone.

`loss`        mean cross-entropy in nats, or mean squared error
`accuracy`    share of answers whose likeliest class is right; of tokens, of all places
`perplexity`  exp of the mean cross-entropy

Any other name is a plug-in, ``module:function``, called as these are: ``metric(model, batch)``,
where `model` answers inputs with outputs and `batch` is (inputs, targets). Of rows of tokens the
targets are those of every place, targets_RT.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Final, TypeAlias

import torch

from broker_node.evaluate.curve import losses_of, wanted_of
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError

Model: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Metric: TypeAlias = Callable[[Model, Batch], object]
MAX_EXPONENT: Final = 700.0
"""The perplexity of a larger loss is infinite."""


class MetricError(LocalProtocolError):
    """A metric that there is not, that fails, or that says no number of such rows."""


def loss(model: Model, batch: Batch) -> float:
    """Return the mean loss of the rows; inf where it overflows."""
    inputs_RF, targets_R = batch
    mean = float(losses_of(model(inputs_RF).double(), targets_R).mean())
    return mean if math.isfinite(mean) else math.inf


def accuracy(model: Model, batch: Batch) -> float:
    """Return the share of right answers. Raises `MetricError` where the targets are values."""
    inputs_RF, targets_R = batch
    _require_classes("accuracy", targets_R)
    return accuracy_of(model(inputs_RF), targets_R)


def accuracy_of(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> float:
    """Return the share of answers whose largest output is that of the target."""
    return float((outputs_RO.argmax(-1) == targets_R).double().mean())


def perplexity(model: Model, batch: Batch) -> float:
    """Return exp of the mean loss. Raises `MetricError` where the targets are values."""
    _require_classes("perplexity", batch[1])
    return perplexity_of(loss(model, batch))


def perplexity_of(mean_loss: float) -> float:
    """Return exp of a mean cross-entropy in nats, inf beyond `MAX_EXPONENT`."""
    return math.exp(mean_loss) if mean_loss < MAX_EXPONENT else math.inf


METRICS: Final[dict[str, Metric]] = {
    "loss": loss,
    "accuracy": accuracy,
    "perplexity": perplexity,
}


def _require_classes(name: str, targets_R: torch.Tensor) -> None:
    if targets_R.is_floating_point():
        raise MetricError(f"{name} is of classes, and the rows have values")


def metric_named(name: str) -> Metric:
    """Return a metric of `METRICS`, or the plug-in ``module:function``, which is imported.

    What a plug-in raises, once it is called, comes as a `MetricError`, and so does a name that
    is neither.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        known = ", ".join(METRICS)
        raise MetricError(f"{name!r:.80}: write {known}, or MODULE:FUNCTION, such as mine:f1")
    try:
        metric: Metric = getattr(importlib.import_module(module), function)
    except Exception as error:  # the user's own code may raise anything
        raise MetricError(f"{name!r:.80} cannot be loaded: {_told(error)}") from error

    def asked(model: Model, batch: Batch) -> object:
        try:
            return metric(model, batch)
        except Exception as error:  # the user's own code may raise anything
            raise MetricError(f"{name!r:.80} failed: {_told(error)}") from error

    return asked


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def number_of(found: object) -> float:
    """Return what a metric said as a number. Raises `MetricError` for anything else."""
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise MetricError(f"must return one number, and returned {found!r:.60}")
    try:
        return float(found)
    except OverflowError as error:
        raise MetricError("returned a number past all floats") from error


@torch.inference_mode()
def measured(
    metric: Metric,
    architecture: Architecture,
    tensors: Tensors,
    inputs_RF: torch.Tensor,
    targets_R: torch.Tensor,
) -> float:
    """Return what `metric` says of a model on rows. Raises `MetricError`."""
    wanted = wanted_of(architecture, inputs_RF, targets_R)
    # copies: whatever a plug-in does to its batch, the rows stay what was committed to
    return number_of(
        metric(
            lambda rows_RF: apply(architecture, tensors, rows_RF),
            (inputs_RF.clone(), wanted.clone()),
        )
    )
