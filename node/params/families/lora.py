"""Low-rank adapters (Hu et al. 2021) of the linear layers of a model that is not traded itself.

Of a module with weight W (outputs x inputs) an adapter of rank r holds A (r x inputs) and B
(outputs x r), under the names of PEFT, and the adapted weight is W + (α/r)·B·A.

An adapter is bound to its base: its text names the base's architecture and weights root, so that
adapters of other weights are told apart, and refused, before anything is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from node.params.families.base import (
    MAX_TENSORS,
    Affine,
    ArchitectureError,
    Model,
    check_parameter_count,
    read_fields,
)
from node.params.permutation import PermutationSpec, Tensors
from node.protocol.errors import LocalProtocolError
from node.protocol.kinship import ADAPTERS
from node.protocol.parameters import Layout, TensorSpec, make_layout

MAX_RANK: Final = 1024
MAX_ALPHA: Final = 2**20
MAX_MODULES: Final = MAX_TENSORS // 2
PREFIX: Final = "base_model.model."
_ROOT: Final = re.compile(r"[0-9a-f]{64}")


class Base(Protocol):
    """What an adapter's text says of the model below; an `Architecture` is one."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Mapping[str, object]: ...
    @property
    def text(self) -> str: ...
    @property
    def model(self) -> Model: ...


@dataclass(frozen=True, slots=True, order=True)
class Adapted:
    """One module with its factors."""

    path: str
    rank: int
    alpha: int
    """PEFT's `lora_alpha`: what B·A is multiplied by, times the rank."""

    @property
    def factors(self) -> tuple[str, str]:
        """The names of A and B."""
        return factor_names(self.path)

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters of some modules of a base model; a base is needed to compute anything."""

    base: Base
    root: str
    """The base's weights root, in hex."""
    modules: tuple[Adapted, ...]
    """Sorted by path."""

    @classmethod
    def read(
        cls, config: Mapping[str, object], architect: Callable[[str, Mapping[str, object]], Base]
    ) -> Lora:
        """Read ``{"base": {"config", "name"}, "modules": {path: [rank, alpha]}, "root": hex}``.

        `architect` checks the base's name and configuration. Raises `ArchitectureError` for
        anything else, for a base of adapters, and for modules that are not linear layers of it.
        """
        base, modules, root = read_fields(config, "base", "modules", "root")
        if not isinstance(base, Mapping) or set(base) != {"config", "name"}:
            raise ArchitectureError("base must be an object of exactly `config` and `name`")
        name, inner = base["name"], base["config"]
        if not isinstance(name, str) or not isinstance(inner, Mapping) or name == ADAPTERS:
            raise ArchitectureError(f"no base of adapters: {name!r}"[:200])
        if not isinstance(root, str) or _ROOT.fullmatch(root) is None:
            raise ArchitectureError("root must be 64 hexadecimal digits in lower case")
        if not isinstance(modules, Mapping) or not 1 <= len(modules) <= MAX_MODULES:
            raise ArchitectureError(f"modules must be an object of 1 … {MAX_MODULES}")
        below = architect(name, inner)
        linear = linear_modules(below.model.layout())
        read = []
        for path, figures in modules.items():
            if path not in linear:
                raise ArchitectureError(f"{path!r} is no linear layer of the base"[:200])
            read.append(_adapted(path, figures))
        model = cls(below, root, tuple(sorted(read)))
        sides = {each.path: sum(linear[each.path]) for each in read}
        check_parameter_count(sum(each.rank * sides[each.path] for each in read))
        return model

    def config(self) -> dict[str, object]:
        return {
            "base": {"config": dict(self.base.config), "name": self.base.name},
            "modules": {each.path: [each.rank, each.alpha] for each in self.modules},
            "root": self.root,
        }

    def layout(self) -> Layout:
        linear = linear_modules(self.base.model.layout())
        specs = []
        for each in self.modules:
            outputs, inputs = linear[each.path]
            a, b = each.factors
            specs.append(TensorSpec(a, "F32", (each.rank, inputs)))
            specs.append(TensorSpec(b, "F32", (outputs, each.rank)))
        return make_layout(specs)

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        return ()

    def permutation_spec(self) -> PermutationSpec:
        """Nothing to match: any invertible M turns (A, B) into an equal (M·A, B·M⁻¹).

        So factors are never compared nor averaged, only B·A is, and a base's units are one
        numbering for all adapters of it.
        """
        axes: dict[str, tuple[None, None]] = {spec.name: (None, None) for spec in self.layout()}
        return PermutationSpec(groups={}, axes=axes)

    def input_width(self) -> int:
        return self.base.model.input_width()

    def output_width(self) -> int:
        return self.base.model.output_width()

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        raise LocalProtocolError("adapters compute nothing without the weights of their base")

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        raise LocalProtocolError("adapters compute nothing without the weights of their base")

    def affine_chain(self) -> tuple[Affine, ...]:
        return ()

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        """As PEFT draws them: A as `torch.nn.Linear` does, B zero, so that nothing is added."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for spec in self.layout():
            tensors[spec.name] = torch.zeros(spec.shape)
            if spec.name.endswith(".lora_A.weight"):
                torch.nn.init.kaiming_uniform_(tensors[spec.name], a=5**0.5, generator=generator)
        return tensors


def factor_names(path: str) -> tuple[str, str]:
    """Return PEFT's names of A and B of a module."""
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def is_factor(name: str) -> bool:
    """Whether a tensor of this name is one factor of a product, which means nothing alone."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def linear_modules(layout: Layout) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every module whose weight is a matrix, by path."""
    found = {}
    for spec in layout:
        path, _, last = spec.name.rpartition(".")
        if path and last == "weight" and len(spec.shape) == 2:
            found[path] = (spec.shape[0], spec.shape[1])
    return found


def _adapted(path: str, figures: object) -> Adapted:
    if not isinstance(figures, list | tuple) or len(figures) != 2:
        raise ArchitectureError(f"{path} must be [rank, alpha]"[:200])
    rank, alpha = figures
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise ArchitectureError(f"the rank of {path} must be 1 … {MAX_RANK}"[:200])
    if type(alpha) is not int or not 1 <= alpha <= MAX_ALPHA:
        raise ArchitectureError(f"the alpha of {path} must be 1 … {MAX_ALPHA}"[:200])
    return Adapted(path, rank, alpha)
