"""Families whose models are PyTorch modules of our own: all else follows from the module.

A module is built once for each configuration and thread, on no device, and only ever called with
the tensors of a parameter set put in the place of its own. That place is the module itself: two
threads that called one module at once would answer with each other's weights.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Collection, Hashable
from typing import Final, Protocol

import torch
from torch import nn

from node.params.alone import drawing
from node.params.families.base import Affine, check_parameter_count
from node.params.permutation import Tensors
from node.protocol.parameters import Layout, TensorSpec, make_layout


class Built(Hashable, Protocol):
    """What a family says of a model, without weights."""

    def build(self) -> nn.Module:
        """Return the module, its parameters drawn by PyTorch's default initialisation."""

    def empty(self) -> nn.Module:
        """Return the module in evaluation mode and without weights, to be called with others."""

    def rows(self, inputs_RF: torch.Tensor) -> torch.Tensor:
        """Return rows of F features in the shape that the module takes."""

    def input_width(self) -> int:
        """Return F."""


class ModuleModel:
    """The part of `Model` that any module has."""

    __slots__ = ()

    def empty(self: Built) -> nn.Module:
        with torch.device("meta"):
            return self.build().eval()

    def layout(self: Built) -> Layout:
        parameters = skeleton(self).named_parameters()
        return make_layout(TensorSpec(name, "F32", tuple(p.shape)) for name, p in parameters)

    def forward(self: Built, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        call = torch.func.functional_call
        logits_RC: torch.Tensor = call(skeleton(self), dict(tensors), (self.rows(inputs_RF),))
        return logits_RC

    def values_of(
        self: Built, tensors: Tensors, inputs_RF: torch.Tensor, submodules: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """Return what each of some submodules answers to R rows, in its own shape, by name."""
        module = self.empty()  # of our own: it is watched
        found: dict[str, torch.Tensor] = {}

        def keep(name: str, _: nn.Module, __: object, output: torch.Tensor) -> None:
            found[name] = output

        for name in submodules:
            module.get_submodule(name).register_forward_hook(functools.partial(keep, name))
        torch.func.functional_call(module, dict(tensors), (self.rows(inputs_RF),))
        return found

    def affine_chain(self) -> tuple[Affine, ...]:
        return ()

    def random_init(self: Built, seed: int) -> dict[str, torch.Tensor]:
        with drawing(seed):
            module = self.build()
        return {name: p.detach().clone() for name, p in sorted(module.named_parameters())}


def check_size(model: Built) -> None:
    """Raise `ArchitectureError` for a model of more parameters than are traded."""
    check_parameter_count(sum(math.prod(p.shape) for p in skeleton(model).parameters()))


class _Kept(threading.local):
    """Modules of one thread, by what they are of."""

    def __init__(self) -> None:
        self.built = functools.lru_cache(maxsize=64)(lambda model: model.empty())


_kept: Final = _Kept()


def skeleton(model: Built) -> nn.Module:
    """Return this thread's own module of a model, without weights."""
    module: nn.Module = _kept.built(model)
    return module
