"""What every family of architectures answers, and the bounds on what a peer may describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch

from node.params.permutation import PermutationSpec, Tensors
from node.params.symmetry import SymmetrySpec
from node.protocol.errors import RemoteProtocolError
from node.protocol.parameters import Layout

MAX_PARAMETERS: Final = 2**28
"""1 GiB of float32: the largest model that this version trades."""
MAX_WIDTH: Final = 2**20
MAX_TENSORS: Final = 512


class ArchitectureError(RemoteProtocolError):
    """A text or configuration that describes no architecture that we build.

    Reasons: ``bad-architecture`` and ``unknown-architecture``.
    """

    def __init__(self, detail: str, *, reason: str = "bad-architecture") -> None:
        super().__init__(reason, detail)


@dataclass(frozen=True, slots=True)
class Affine:
    """One affine layer by the names of its tensors: weight (outputs x inputs) and bias."""

    weight: str
    bias: str


class Model(Protocol):
    """One architecture with its configuration read: immutable, comparable, without weights."""

    def config(self) -> dict[str, object]:
        """Return the JSON object that describes this model within its family."""

    def layout(self) -> Layout:
        """Return name, dtype and shape of every tensor, sorted by name."""

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of each layer's tensors; nothing for a model that is sold whole."""

    def permutation_spec(self) -> PermutationSpec:
        """Return the symmetries of the tensors."""

    def input_width(self) -> int:
        """Return F, the number of features in a row of inputs."""

    def output_width(self) -> int:
        """Return C, the number of logits of a row, or of each place in a row of tokens."""

    def forward(self, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
        """Return logits_RC for R rows; differentiable in the tensors."""

    def activations(self, tensors: Tensors, inputs_RF: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return values_RU of the units of every group that these tensors suffice for.

        Of some layers those are the groups that the input reaches through sold layers alone.
        """

    def affine_chain(self) -> tuple[Affine, ...]:
        """Return the layers, if they are nothing but affine maps with ReLU between them.

        Input side first; nothing for a model that is built otherwise.
        """

    def random_init(self, seed: int) -> dict[str, torch.Tensor]:
        """Return fresh float32 tensors, the same for the same seed."""


@runtime_checkable
class GraphModel(Protocol):
    """What a model answers besides whose graph says more than plain groups."""

    def permutation_spec(self) -> PermutationSpec:
        """Return what of the symmetries recipes can say."""

    def symmetries(self) -> SymmetrySpec:
        """Return all of them; raises `ArchitectureError` where nobody can read the graph."""


@runtime_checkable
class TokenModel(Protocol):
    """What a model of token sequences answers besides; a row is then the ids of its tokens."""

    def input_width(self) -> int:
        """Return T, the number of tokens in a row."""

    def next_tokens(self, inputs_RF: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
        """Return what follows each token of each row, targets_RT; `targets_R` after the last."""

    def random_rows(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return rows of tokens drawn evenly, as float64 numbers."""


def read_fields(config: Mapping[str, object], *names: str) -> tuple[object, ...]:
    """Return the values of exactly `names`; `ArchitectureError` for any other set of keys."""
    if set(config) != set(names):
        raise ArchitectureError(f"expected the fields {sorted(names)}, got {sorted(config)}"[:300])
    return tuple(config[name] for name in names)


def read_width(value: object, what: str) -> int:
    """Return `value` as a width in 1 … `MAX_WIDTH`; `ArchitectureError` for anything else."""
    if type(value) is not int or not 1 <= value <= MAX_WIDTH:
        raise ArchitectureError(f"{what} must be an integer in 1 … {MAX_WIDTH}")
    return value


def check_parameter_count(count: int) -> None:
    """Raise `ArchitectureError` for a model of no parameters or of too many."""
    if not 1 <= count <= MAX_PARAMETERS:
        raise ArchitectureError(f"{count} parameters, of at most {MAX_PARAMETERS}")


def linear_init(
    outputs: int, inputs: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight_OI and bias_O as `torch.nn.Linear` draws them: U(±1/√inputs)."""
    weight_OI = torch.empty(outputs, inputs)
    torch.nn.init.kaiming_uniform_(weight_OI, a=5**0.5, generator=generator)
    bound = inputs**-0.5
    bias_O = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
    return weight_OI, bias_O
