"""Named tensors that compute nothing: goods for trying out settlement at any size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from node.params.families.base import (
    MAX_TENSORS,
    Affine,
    ArchitectureError,
    check_parameter_count,
    read_fields,
    read_width,
)
from node.params.permutation import PermutationSpec, Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.parameters import Layout, TensorSpec

MAX_AXES: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


@dataclass(frozen=True, slots=True)
class Shapes:
    """Tensors of the given shapes, by name; no forward pass, no symmetries."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """(name, shape), sorted by name."""

    @classmethod
    def read(cls, config: Mapping[str, object]) -> Shapes:
        """Read ``{"shapes": {name: [...]}}``; `ArchitectureError` for anything else."""
        (shapes,) = read_fields(config, "shapes")
        if not isinstance(shapes, Mapping) or not 1 <= len(shapes) <= MAX_TENSORS:
            raise ArchitectureError(f"shapes must be an object of 1 … {MAX_TENSORS} tensors")
        read = []
        count = 0
        for name, shape in shapes.items():
            if not isinstance(name, str) or _NAME.fullmatch(name) is None:
                raise ArchitectureError(f"not a tensor name: {name!r}"[:200])
            if not isinstance(shape, list | tuple) or not 1 <= len(shape) <= MAX_AXES:
                raise ArchitectureError(f"{name} must have 1 … {MAX_AXES} axes")
            sizes = tuple(read_width(size, f"every axis of {name}") for size in shape)
            count += math.prod(sizes)
            read.append((name, sizes))
        check_parameter_count(count)
        return cls(tuple(sorted(read)))

    def config(self) -> dict[str, object]:
        return {"shapes": {name: list(shape) for name, shape in self.shapes}}

    def layout(self) -> Layout:
        return tuple(TensorSpec(name, "F32", shape) for name, shape in self.shapes)

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        return ()

    def permutation_spec(self) -> PermutationSpec:
        axes = {name: (None,) * len(shape) for name, shape in self.shapes}
        return PermutationSpec(groups={}, axes=axes)

    def input_width(self) -> int:
        raise LocalProtocolError("tensors of the family `random` compute nothing")

    def output_width(self) -> int:
        raise LocalProtocolError("tensors of the family `random` compute nothing")

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        raise LocalProtocolError("tensors of the family `random` compute nothing")

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        raise LocalProtocolError("tensors of the family `random` compute nothing")

    def affine_chain(self) -> tuple[Affine, ...]:
        return ()

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in self.shapes}
