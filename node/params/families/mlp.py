"""Multilayer perceptrons: affine layers with ReLU between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from node.params.families.base import (
    MAX_TENSORS,
    Affine,
    ArchitectureError,
    check_parameter_count,
    linear_init,
    read_fields,
    read_width,
)
from node.params.permutation import Axis, Group, PermutationSpec, Role, Tensors, all_through
from node.protocol.parameters import Layout, TensorSpec, make_layout

MAX_LAYERS: Final = MAX_TENSORS // 2


@dataclass(frozen=True, slots=True)
class Mlp:
    """``widths[0]`` features in, ``widths[-1]`` logits out, ReLU after all layers but the last.

    Tensors are ``layers.{i}.weight`` (outputs x inputs) and ``layers.{i}.bias``; the hidden
    units after layer i are the group ``hidden.{i}``.
    """

    widths: tuple[int, ...]

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Mlp:
        """Read ``{"widths": [...]}``; `ArchitectureError` for anything else."""
        (widths,) = read_fields(config, "widths")
        if not isinstance(widths, list | tuple) or not 2 <= len(widths) <= MAX_LAYERS + 1:
            raise ArchitectureError(f"widths must be a list of 2 … {MAX_LAYERS + 1} integers")
        model = cls(tuple(read_width(width, "every width") for width in widths))
        check_parameter_count(sum((inputs + 1) * outputs for inputs, outputs in model._layers()))
        return model

    def _layers(self) -> list[tuple[int, int]]:
        return list(zip(self.widths, self.widths[1:], strict=False))

    def config(self) -> dict[str, object]:
        return {"widths": list(self.widths)}

    def layout(self) -> Layout:
        specs = []
        for i, (inputs, outputs) in enumerate(self._layers()):
            specs.append(TensorSpec(f"layers.{i}.weight", "F32", (outputs, inputs)))
            specs.append(TensorSpec(f"layers.{i}.bias", "F32", (outputs,)))
        return make_layout(specs)

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (f"layers.{i}.bias", f"layers.{i}.weight") for i in range(len(self.widths) - 1)
        )

    def permutation_spec(self) -> PermutationSpec:
        last = len(self.widths) - 2
        axes: dict[str, tuple[Axis | None, ...]] = {}
        for i in range(last + 1):
            writes = Axis(f"hidden.{i}", Role.WRITES) if i < last else None
            reads = Axis(f"hidden.{i - 1}", Role.READS) if i > 0 else None
            axes[f"layers.{i}.weight"] = (writes, reads)
            axes[f"layers.{i}.bias"] = (writes,)
        groups = {f"hidden.{i}": Group(size=self.widths[i + 1]) for i in range(last)}
        return PermutationSpec(groups=groups, axes=axes, rescalings=all_through(groups, axes))

    def input_width(self) -> int:
        return self.widths[0]

    def output_width(self) -> int:
        return self.widths[-1]

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        values_RU = inputs_RF
        last = len(self.widths) - 2
        for i in range(last + 1):
            values_RU = functional.linear(
                values_RU, tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]
            )
            if i < last:
                values_RU = functional.relu(values_RU)
        return values_RU

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        values_RU = inputs_RF
        for i, layer in enumerate(self.affine_chain()[:-1]):
            if layer.weight not in tensors:
                break
            values_RU = functional.relu(
                functional.linear(values_RU, tensors[layer.weight], tensors[layer.bias])
            )
            found[f"hidden.{i}"] = values_RU
        return found

    def affine_chain(self) -> tuple[Affine, ...]:
        return tuple(
            Affine(weight=f"layers.{i}.weight", bias=f"layers.{i}.bias")
            for i in range(len(self.widths) - 1)
        )

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for i, (inputs, outputs) in enumerate(self._layers()):
            weight_OI, bias_O = linear_init(outputs, inputs, generator)
            tensors[f"layers.{i}.weight"] = weight_OI
            tensors[f"layers.{i}.bias"] = bias_O
        return tensors
