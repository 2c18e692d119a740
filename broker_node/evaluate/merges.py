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
from broker_node.evaluate.residents import sent
from node.params.architecture import Architecture, apply
from node.params.device_memory import is_out_of_memory
from node.params.permutation import Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Millionths

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of merged parameters that are held at a time: about what stays in a CPU's cache."""
DEVICE_BYTES: Final = 512 * 1024 * 1024
"""The same on another device, where more at a time is faster, as far as there is room."""
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
        device: torch.device | None = None,
    ) -> None:
        """`batch` merges go through together; None is as many as `BATCH_BYTES` hold.

        `device`: where the models are put, all of them and once; None leaves them where they are.
        """
        if not standing or (batch is not None and batch < 1):
            raise LocalProtocolError(f"{len(standing)} models in batches of {batch}")
        self._architecture = architecture
        self._stack = {
            name: sent(stack, device or stack.device)
            for name in standing[0]
            for stack in [torch.stack([tensors[name] for tensors in standing])]
        }
        self._device = next(iter(self._stack.values())).device
        self._inputs_RF, self._targets_R = sent(inputs_RF, self._device), targets_R
        held = sum(stack.nbytes for stack in self._stack.values()) // len(standing)
        room = BATCH_BYTES if self._device.type == "cpu" else DEVICE_BYTES
        self.batch = batch or max(1, room // max(1, held))
        """Halved, for good, whenever the device runs out of memory."""
        self.fallbacks: tuple[str, ...] = ()
        """What could not be computed as it was meant to be, and what was done instead."""
        self.row_evaluations = 0

    def __len__(self) -> int:
        return len(self._targets_R)

    def tensors(self, model: int) -> dict[str, torch.Tensor]:
        """Return one model's tensors, as views."""
        return {name: tensor[model] for name, tensor in self._stack.items()}

    def outputs(self, rows: slice) -> torch.Tensor:
        """Return what every model answers by itself, outputs_NRO.

        Raises `LocalProtocolError` ``out-of-memory`` where there is no room for a single model.
        """
        models = range(len(next(iter(self._stack.values()))))
        return self._through(
            models,
            lambda some: {n: self._some(stack, some) for n, stack in self._stack.items()},
            rows,
        )

    def losses(
        self, buyer: int, merges: Sequence[tuple[int, Millionths]], rows: slice
    ) -> torch.Tensor:
        """Return losses_KR, in float64, of the buyer's K merges: with whom, and at which α.

        Raises `LocalProtocolError` ``out-of-memory`` where there is no room for a single merge.
        """

        def merged(some: list[int]) -> Mapping[str, torch.Tensor]:
            sellers = [merges[at][0] for at in some]
            alphas = [merges[at][1] for at in some]
            takes_K, keeps_K = (
                torch.tensor(shares, dtype=torch.float32, device=self._device)
                for shares in ([a / ONE for a in alphas], [(ONE - a) / ONE for a in alphas])
            )
            return {
                name: self._some(stack, sellers).mul_(_along(takes_K, stack))
                + stack.select(0, buyer) * _along(keeps_K, stack)
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
        """Return outputs_KRO on the CPU of all asked for, as many at a time as the device holds."""
        done: list[torch.Tensor] = []
        while len(done) < len(asked):
            some = list(asked[len(done) : len(done) + self.batch])
            try:
                done += self._answered(made(some), rows).cpu()
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # only here has the error let go of what the failed attempt held
            self._give_way(len(some))
        self.row_evaluations += len(done) * len(range(*rows.indices(len(self))))
        return torch.stack(done)

    def _some(self, stack: torch.Tensor, models: list[int]) -> torch.Tensor:
        return stack.index_select(0, torch.tensor(models, device=self._device))

    def _answered(self, stacked: Mapping[str, torch.Tensor], rows: slice) -> torch.Tensor:
        begin, end, _ = rows.indices(len(self._inputs_RF))
        inputs_RF = self._inputs_RF.narrow(0, begin, end - begin)
        loop = self._device.type == "cpu" and len(inputs_RF) > TOGETHER_ROWS
        return (one_by_one if loop else together)(self._architecture, stacked, inputs_RF)

    def _give_way(self, tried: int) -> None:
        """Try fewer than so many at once; a device that has no room for one gives up to the CPU."""
        if tried > 1:
            self.batch = tried // 2
            told = f"at most {self.batch} merges at once on {self._device}"
        elif self._device.type != "cpu":
            told = f"{self._device} is too small, the cpu evaluates"
            self._device = torch.device("cpu")
            self._inputs_RF = self._inputs_RF.cpu()
            self._stack = {name: stack.cpu() for name, stack in self._stack.items()}
        else:
            raise LocalProtocolError(
                f"out-of-memory: {self._device} has no room for one model and its answers to "
                f"{len(self._inputs_RF)} rows: fewer rows may do"
            )
        self.fallbacks = (f"out-of-memory: {told}",)


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
