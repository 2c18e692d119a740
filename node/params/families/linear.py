"""One affine layer: linear and logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from node.params.families.base import (
    Affine,
    check_parameter_count,
    linear_init,
    read_fields,
    read_width,
)
from node.params.permutation import PermutationSpec, Tensors
from node.protocol.parameters import Layout, TensorSpec


@dataclass(frozen=True, slots=True)
class Linear:
    """``weight`` (outputs x inputs) and ``bias``; no hidden units, so no symmetries."""

    inputs: int
    outputs: int

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Linear:
        """Read ``{"inputs": n, "outputs": m}``; `ArchitectureError` for anything else."""
        inputs, outputs = read_fields(config, "inputs", "outputs")
        model = cls(read_width(inputs, "inputs"), read_width(outputs, "outputs"))
        check_parameter_count((model.inputs + 1) * model.outputs)
        return model

    def config(self) -> dict[str, object]:
        return {"inputs": self.inputs, "outputs": self.outputs}

    def layout(self) -> Layout:
        return (
            TensorSpec("bias", "F32", (self.outputs,)),
            TensorSpec("weight", "F32", (self.outputs, self.inputs)),
        )

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        return ()

    def permutation_spec(self) -> PermutationSpec:
        return PermutationSpec(groups={}, axes={"bias": (None,), "weight": (None, None)})

    def input_width(self) -> int:
        return self.inputs

    def output_width(self) -> int:
        return self.outputs

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs_RF, tensors["weight"], tensors["bias"])

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def affine_chain(self) -> tuple[Affine, ...]:
        return (Affine(weight="weight", bias="bias"),)

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight_OI, bias_O = linear_init(self.outputs, self.inputs, generator)
        return {"weight": weight_OI, "bias": bias_O}
