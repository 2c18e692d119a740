"""The loss of the merged model as a function of α, measured no more often than asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

import torch
from torch.nn import functional

from broker_node.evaluate.residents import Residence
from node.params.architecture import Architecture, apply
from node.params.families.base import TokenModel
from node.params.families.linear import Linear
from node.params.families.modules import ModuleModel
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Millionths

T = TypeVar("T")

EVERY: Final = slice(None)
"""All rows."""
MAX_PLACES: Final = 4096
"""Places of token sequences that are answered at once: a bound on memory."""
MAX_ROWS: Final = 1024
"""Rows that a module answers at once, other than affine layers: it may hold a megabyte a row."""


@torch.inference_mode()
def outputs_of(
    architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor
) -> torch.Tensor:
    """Return what a model answers to every row, outputs_RO in float64; of tokens, outputs_RTO."""
    rows = MAX_ROWS if isinstance(architecture.model, ModuleModel) else len(inputs_RF)
    answers = [
        apply(architecture, tensors, batch) for batch in torch.split(inputs_RF, max(1, rows))
    ]
    return torch.cat(answers).double()


def wanted_of(
    architecture: Architecture, inputs_RF: torch.Tensor, targets_R: torch.Tensor
) -> torch.Tensor:
    """Return what a model should answer to every row: `targets_R`, or of tokens targets_RT.

    Raises `LocalProtocolError` for rows or targets that are no tokens of such a model.
    """
    model = architecture.model
    return model.next_tokens(inputs_RF, targets_R) if isinstance(model, TokenModel) else targets_R


def losses_of(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Return the loss of every row's answer, losses_R in float64.

    Of classes (int64) that is the cross-entropy in nats, of values (float32) the squared
    error. Where a row has an answer and a class for each of T places (outputs_RTO, targets_RT) it
    is the mean over places. Raises `LocalProtocolError` for answers that the targets do not fit,
    more than one to a value among them.
    """
    if outputs_RO.shape[:-1] != targets_R.shape:
        raise LocalProtocolError(
            f"{tuple(outputs_RO.shape)} answers for {tuple(targets_R.shape)} targets"
        )
    if targets_R.ndim == 2 and not targets_R.is_floating_point():
        places_RT = functional.cross_entropy(outputs_RO.mT, targets_R, reduction="none")
        return places_RT.mean(1).cpu()
    if not targets_R.is_floating_point():
        return functional.cross_entropy(outputs_RO, targets_R, reduction="none").cpu()
    if outputs_RO.shape[1] != 1:
        raise LocalProtocolError(f"{outputs_RO.shape[1]} outputs for one value")
    return (outputs_RO.squeeze(1) - targets_R.double()).square().cpu()


def training_loss(outputs_RO: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Return the mean of `losses_of` as a scalar with a gradient, in the outputs' precision."""
    if targets_R.is_floating_point():
        return functional.mse_loss(outputs_RO.squeeze(1), targets_R)
    return functional.cross_entropy(outputs_RO.flatten(0, -2), targets_R.flatten())


def row_losses(
    architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor, targets_R: torch.Tensor
) -> torch.Tensor:
    """Return the loss of every row (`losses_of`), losses_R in float64."""
    wanted = wanted_of(architecture, inputs_RF, targets_R)
    if wanted.ndim == 1:
        return losses_of(outputs_of(architecture, tensors, inputs_RF), wanted)
    rows = max(1, MAX_PLACES // wanted.shape[1])
    return torch.cat(
        [
            losses_of(outputs_of(architecture, tensors, batch_RF), batch_RT)
            for batch_RF, batch_RT in zip(
                torch.split(inputs_RF, rows), torch.split(wanted, rows), strict=True
            )
        ]
    )


class Between:
    """A merge by what it is made of, base·(1 − α) + other·α: whoever runs it makes it there."""

    def __init__(
        self,
        base: Tensors,
        other: Tensors,
        alpha: Millionths,
        shares: Mapping[str, Sequence[Millionths]] | None = None,
    ) -> None:
        """`shares`: as `interpolate` takes them."""
        self.base, self.other, self.alpha, self.shares = base, other, alpha, shares or {}
        self._made: Tensors | None = None

    def tensors(self) -> Tensors:
        """Return the merged model, made once. Raises as `interpolate`."""
        if self._made is None:
            self._made = interpolate(self.base, self.other, self.alpha, shares=self.shares)
        return self._made


Model: TypeAlias = "Tensors | Between"


def tensors_of(model: Model) -> Tensors:
    """Return a model's tensors where they lie, or those that a merge makes."""
    return model.tensors() if isinstance(model, Between) else model


class Runner(Protocol):
    """What runs models: the CPU, or a device (`broker_node.evaluate.device`) for one trial.

    Rows are given whole, with which of them are meant, so that a device has them sent once.
    """

    def outputs(
        self, architecture: Architecture, model: Model, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        """Return what a model answers to every row, outputs_RO in float64 on the CPU."""

    def losses(
        self,
        architecture: Architecture,
        model: Model,
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor:
        """Return the loss of every row (`losses_of`), losses_R in float64 on the CPU."""

    def along(
        self,
        architecture: Architecture,
        ends: tuple[Tensors, Tensors],
        alphas: Sequence[Millionths],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor | None:
        """Return losses_AR at several places between two models, or None: one at a time, then."""

    def elsewhere(self, what: str, compute: Callable[[Residence], T], here: Callable[[], T]) -> T:
        """Return what `compute` finds on the device, if there is one; else what `here` finds.

        Without the memory it is `here` too, and `fallbacks` tells of `what`.
        """

    def fallbacks(self) -> tuple[str, ...]:
        """Return what could not be computed as it was meant to be, and what was done instead."""


class OnCpu:
    """Runs models where they lie: all rows at once, one model after the other."""

    def outputs(
        self, architecture: Architecture, model: Model, inputs_RF: torch.Tensor
    ) -> torch.Tensor:
        return outputs_of(architecture, tensors_of(model), inputs_RF)

    def losses(
        self,
        architecture: Architecture,
        model: Model,
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor:
        return row_losses(architecture, tensors_of(model), inputs_RF[rows], targets_R[rows])

    def along(
        self,
        architecture: Architecture,
        ends: tuple[Tensors, Tensors],
        alphas: Sequence[Millionths],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        rows: slice = EVERY,
    ) -> torch.Tensor | None:
        return None

    def elsewhere(self, what: str, compute: Callable[[Residence], T], here: Callable[[], T]) -> T:
        return here()

    def fallbacks(self) -> tuple[str, ...]:
        return ()


ON_CPU: Final = OnCpu()


class LossCurve:
    """α → mean loss over the first n of R rows.

    What was measured is kept: asking for more rows at the same α measures only the rest.
    `row_evaluations` counts forward passes of one row, the unit that a broker pays in.
    """

    def __init__(
        self,
        architecture: Architecture,
        base: Tensors,
        transformed: Tensors,
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        *,
        runner: Runner = ON_CPU,
    ) -> None:
        self._runner = runner
        self._architecture = architecture
        self._base = base
        self._transformed = transformed
        self._inputs_RF = inputs_RF
        self._targets_R = targets_R
        self._known: dict[Millionths, torch.Tensor] = {}
        self.row_evaluations = 0

    def __len__(self) -> int:
        return len(self._targets_R)

    @property
    def quadratic(self) -> bool:
        """Whether every row's loss is a parabola in α: a linear model, squared errors."""
        return isinstance(self._architecture.model, Linear) and self._targets_R.is_floating_point()

    def measure(self, alphas: Sequence[Millionths], rows: int) -> None:
        """Measure several α on the first `rows` rows at once, where the runner can.

        Nothing is lost where it cannot: what is lacking is measured when it is asked for.
        """
        lacking: dict[int, list[Millionths]] = {}
        for alpha in alphas:
            known = len(self._known.get(alpha, ()))
            if known < rows:
                lacking.setdefault(known, []).append(alpha)
        for known, group in lacking.items():
            rest = slice(known, rows)
            fresh_AR = self._runner.along(
                self._architecture,
                (self._base, self._transformed),
                group,
                self._inputs_RF,
                self._targets_R,
                rest,
            )
            if fresh_AR is None:
                return
            self.row_evaluations += fresh_AR.numel()
            for alpha, fresh_R in zip(group, fresh_AR, strict=True):
                known_R = self._known.get(alpha, fresh_R[:0])
                self._known[alpha] = torch.cat((known_R, fresh_R))

    def seen(self) -> dict[Millionths, float]:
        """Return the mean loss at every α that was measured, on the rows that all of them have."""
        rows = min((len(losses_R) for losses_R in self._known.values()), default=0)
        return {
            alpha: float(losses_R[:rows].mean()) for alpha, losses_R in sorted(self._known.items())
        }

    def know(self, alpha: Millionths, losses_R: torch.Tensor) -> None:
        """Take the losses of the first rows from who has measured them already."""
        self._known[alpha] = losses_R

    def losses(self, alpha: Millionths, rows: int) -> torch.Tensor:
        """Return the losses of the first `rows` rows, losses_R in float64."""
        self.measure((alpha,), rows)
        known_R = self._known.get(alpha, torch.empty(0, dtype=torch.float64))
        if len(known_R) < rows:
            merged = Between(self._base, self._transformed, alpha)
            rest = slice(len(known_R), rows)
            fresh_R = self._runner.losses(
                self._architecture, merged, self._inputs_RF, self._targets_R, rest
            )
            self.row_evaluations += len(fresh_R)
            known_R = torch.cat((known_R, fresh_R))
            self._known[alpha] = known_R
        return known_R[:rows]

    def loss(self, alpha: Millionths, rows: int) -> float:
        """Return the mean loss over the first `rows` rows; inf where it overflows."""
        mean = float(self.losses(alpha, rows).mean())
        return mean if math.isfinite(mean) else math.inf
