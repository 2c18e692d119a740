"""A line between two models whose every point is made over before it is measured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from broker_node.evaluate.curve import LossCurve, row_losses
from broker_node.merge.stages import Rows
from broker_node.verify.stages import Verified
from node.params.permutation import Tensors
from node.params.recipe import interpolate
from node.protocol.types import Millionths

Make = Callable[[Tensors, Millionths], dict[str, torch.Tensor]]
"""The plain merge at α, and α → what is made of it."""


class MadeCurve(LossCurve):
    """α → mean loss of what is made of the merge; looking at rows is counted as running them."""

    def __init__(
        self,
        buyer: Verified,
        ends: tuple[Tensors, Tensors],
        rows: Rows,
        make: Make,
        *,
        cost: Callable[[Millionths], int],
    ) -> None:
        """`cost`: the rows that making one model of α runs."""
        super().__init__(buyer.architecture, *ends, rows.inputs_RF, rows.targets_R)
        self._ends = ends
        self._make, self._cost = make, cost
        self._models: dict[Millionths, dict[str, torch.Tensor]] = {}
        self._measured: dict[Millionths, torch.Tensor] = {}

    def model(self, alpha: Millionths) -> dict[str, torch.Tensor]:
        """Return what is made at α."""
        if alpha not in self._models:
            self._models[alpha] = self._make(interpolate(*self._ends, alpha), alpha)
            self.row_evaluations += self._cost(alpha)
        return self._models[alpha]

    def losses(self, alpha: Millionths, rows: int) -> torch.Tensor:
        """Return the losses of the first `rows` rows, losses_R in float64."""
        known_R = self._measured.get(alpha, torch.empty(0, dtype=torch.float64))
        if len(known_R) < rows:
            rest = slice(len(known_R), rows)
            fresh_R = row_losses(
                self._architecture, self.model(alpha), self._inputs_RF[rest], self._targets_R[rest]
            )
            self.row_evaluations += len(fresh_R)
            known_R = torch.cat((known_R, fresh_R))
            self._measured[alpha] = known_R
        return known_R[:rows]
