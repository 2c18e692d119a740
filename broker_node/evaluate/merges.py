"""Losses of many merges of one buyer at once: one batched forward pass for all of them.

All models stand in one numbering and gauge (`broker_node.align.universe`), so that a merge is
a weighted sum and none of them needs a recipe. A merge's rows are counted one by one, however
many go through together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch

from broker_node.evaluate.curve import losses_of
from node.params.architecture import Architecture, apply
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Millionths

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of merged parameters that are held at a time: about what stays in a CPU's cache."""
TOGETHER_ROWS: Final = 256
"""On a CPU batched products win up to here, by a fifth, and lose to a loop at twice as many
rows (`scripts/bench.py market` prints both); on another device they always serve."""


class MergeStack:
    """N models of one architecture and the rows that their merges are measured on."""

    def __init__(
        self,
        architecture: Architecture,
        standing: Sequence[Tensors],
        inputs_RF: torch.Tensor,
        targets_R: torch.Tensor,
        *,
        batch: int | None = None,
    ) -> None:
        """`batch` merges go through together; None is as many as `BATCH_BYTES` hold."""
        if not standing or (batch is not None and batch < 1):
            raise LocalProtocolError(f"{len(standing)} models in batches of {batch}")
        self._architecture = architecture
        self._stack = {
            name: torch.stack([tensors[name] for tensors in standing]) for name in standing[0]
        }
        self._inputs_RF = inputs_RF
        self._targets_R = targets_R
        held = sum(tensor[0].numel() * tensor.element_size() for tensor in self._stack.values())
        self.batch = batch or max(1, BATCH_BYTES // held)
        """Halved, for good, whenever the device runs out of memory."""
        self.row_evaluations = 0

    def __len__(self) -> int:
        return len(self._targets_R)

    def tensors(self, model: int) -> dict[str, torch.Tensor]:
        """Return one model's tensors, as views."""
        return {name: tensor[model] for name, tensor in self._stack.items()}

    def outputs(self, rows: slice) -> torch.Tensor:
        """Return what every model answers by itself, outputs_NRO.

        Raises `torch.OutOfMemoryError` where the device cannot hold a single model.
        """
        models = range(len(next(iter(self._stack.values()))))
        return self._through(
            models, lambda some: {name: stack[some] for name, stack in self._stack.items()}, rows
        )

    def losses(
        self, buyer: int, merges: Sequence[tuple[int, Millionths]], rows: slice
    ) -> torch.Tensor:
        """Return losses_KR, in float64, of the buyer's K merges: with whom, and at which α.

        Raises `torch.OutOfMemoryError` where the device cannot hold a single merge.
        """

        def merged(some: list[int]) -> Mapping[str, torch.Tensor]:
            sellers = [merges[at][0] for at in some]
            takes_K = torch.tensor([merges[at][1] / ONE for at in some], dtype=torch.float32)
            keeps_K = torch.tensor(
                [(ONE - merges[at][1]) / ONE for at in some], dtype=torch.float32
            )
            return {
                name: stack[sellers].mul_(_along(takes_K, stack))
                + stack[buyer] * _along(keeps_K, stack)
                for name, stack in self._stack.items()
            }

        outputs_KRO = self._through(range(len(merges)), merged, rows)
        return torch.stack(
            [losses_of(outputs_RO.double(), self._targets_R[rows]) for outputs_RO in outputs_KRO]
        )

    @torch.inference_mode()
    def _through(
        self,
        asked: Sequence[int],
        made: Callable[[list[int]], Mapping[str, torch.Tensor]],
        rows: slice,
    ) -> torch.Tensor:
        """Return outputs_KRO of all that are asked for, as many at a time as the device holds."""
        inputs_RF = self._inputs_RF[rows]
        loop = inputs_RF.device.type == "cpu" and len(inputs_RF) > TOGETHER_ROWS
        answered = one_by_one if loop else together
        done: list[torch.Tensor] = []
        while len(done) < len(asked):
            some = list(asked[len(done) : len(done) + self.batch])
            try:
                done += answered(self._architecture, made(some), inputs_RF)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                self.batch = len(some) // 2
        self.row_evaluations += len(done) * len(inputs_RF)
        return torch.stack(done)


def _along(factors_K: torch.Tensor, stack: torch.Tensor) -> torch.Tensor:
    return factors_K.view(-1, *(1,) * (stack.ndim - 1))


def together(
    architecture: Architecture, stacked: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
) -> torch.Tensor:
    """Return outputs_KRO of K models, stacked tensor by tensor, in batched products."""
    return torch.func.vmap(lambda tensors: apply(architecture, tensors, inputs_RF))(dict(stacked))


def one_by_one(
    architecture: Architecture, stacked: Mapping[str, torch.Tensor], inputs_RF: torch.Tensor
) -> torch.Tensor:
    """Return the same, a model at a time."""
    models = range(len(next(iter(stacked.values()))))
    return torch.stack(
        [
            apply(architecture, {name: stack[k] for name, stack in stacked.items()}, inputs_RF)
            for k in models
        ]
    )
