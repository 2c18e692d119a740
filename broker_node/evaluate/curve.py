"""The loss of the merged model as a function of α, measured no more often than asked for."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import Millionths


@torch.inference_mode()
def row_losses(
    architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor, labels_R: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy of every row in nats, losses_R in float64."""
    logits_RC = apply(architecture, tensors, inputs_RF)
    return functional.cross_entropy(logits_RC.double(), labels_R, reduction="none").cpu()


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
        labels_R: torch.Tensor,
    ) -> None:
        self._architecture = architecture
        self._base = base
        self._transformed = transformed
        self._inputs_RF = inputs_RF
        self._labels_R = labels_R
        self._known: dict[Millionths, torch.Tensor] = {}
        self.row_evaluations = 0

    def __len__(self) -> int:
        return len(self._labels_R)

    def losses(self, alpha: Millionths, rows: int) -> torch.Tensor:
        """Return the losses of the first `rows` rows in nats, losses_R in float64."""
        known_R = self._known.get(alpha, torch.empty(0, dtype=torch.float64))
        if len(known_R) < rows:
            merged = interpolate(self._base, self._transformed, alpha)
            rest = slice(len(known_R), rows)
            fresh_R = row_losses(
                self._architecture, merged, self._inputs_RF[rest], self._labels_R[rest]
            )
            self.row_evaluations += len(fresh_R)
            known_R = torch.cat((known_R, fresh_R))
            self._known[alpha] = known_R
        return known_R[:rows]

    def loss(self, alpha: Millionths, rows: int) -> float:
        """Return the mean loss over the first `rows` rows; inf where it overflows."""
        mean = float(self.losses(alpha, rows).mean())
        return mean if math.isfinite(mean) else math.inf
