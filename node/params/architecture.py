"""What a model is, by registered name and configuration. Code never travels.

An architecture's text is the canonical JSON of ``{"config": {...}, "name": "mlp"}``: keys
sorted, no spaces, ASCII, no floats. Two peers that mean the same architecture write the
same bytes, so the text itself is compared, and its SHA-256 names it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from node.params.families.base import ArchitectureError, Model
from node.params.families.gpt import Gpt
from node.params.families.linear import Linear
from node.params.families.lora import Lora
from node.params.families.mlp import Mlp
from node.params.families.own import NAME as OWN
from node.params.families.own import OwnModule
from node.params.families.resnet import ResNet
from node.params.families.shapes import Shapes
from node.params.permutation import PermutationSpec, Tensors
from node.protocol import bounded_json
from node.protocol.kinship import ADAPTERS
from node.protocol.parameters import Layout
from node.protocol.types import Digest

MAX_TEXT_BYTES: Final = 4096

FAMILIES: Final[dict[str, Callable[[Mapping[str, object]], Model]]] = {
    "mlp": Mlp.read,
    "linear": Linear.read,
    "resnet": ResNet.read,
    "gpt": Gpt.read,
    OWN: OwnModule.read,
    "random": Shapes.read,
    ADAPTERS: lambda config: Lora.read(config, Architecture),
}
"""Families by the name that architecture texts use."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checked architecture; equal to every other of the same text.

    Raises `ArchitectureError` if the name is not registered or the configuration is not
    one of its family's.
    """

    name: str
    config: Mapping[str, object] = field(compare=False)
    text: str = field(init=False, repr=False)
    model: Model = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        read = FAMILIES.get(self.name)
        if read is None:
            raise ArchitectureError(f"{self.name!r}"[:100], reason="unknown-architecture")
        model = read(self.config)
        config = model.config()
        text = _canonical({"config": config, "name": self.name})
        if len(text) > MAX_TEXT_BYTES:
            raise ArchitectureError(f"a text of {len(text)} bytes, of at most {MAX_TEXT_BYTES}")
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "text", text)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _refuse_number(text: str) -> object:
    raise ValueError(f"not an integer: {text[:20]}")


def parse_architecture(text: str) -> Architecture:
    """Read the canonical text of an architecture, as it came from a peer.

    Total: raises `ArchitectureError` for every other string.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ArchitectureError(f"a text of {len(text)} characters, of at most {MAX_TEXT_BYTES}")
    try:
        value = bounded_json.loads(text, parse_float=_refuse_number, parse_constant=_refuse_number)
    except ValueError as error:
        raise ArchitectureError(f"not JSON of integers: {error}"[:200]) from error
    if not isinstance(value, dict) or set(value) != {"config", "name"}:
        raise ArchitectureError("must be an object of exactly `config` and `name`")
    name, config = value["name"], value["config"]
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ArchitectureError("`name` must be text and `config` an object")
    architecture = Architecture(name, config)
    if architecture.text != text:
        raise ArchitectureError("not in canonical form")
    return architecture


def architecture_hash(architecture: Architecture) -> Digest:
    """Return the SHA-256 of the architecture's text."""
    return Digest(hashlib.sha256(architecture.text.encode("ascii")).digest())


def layout(architecture: Architecture, layers: Sequence[int] = ()) -> Layout:
    """Return name, dtype and shape of every tensor, or of those of `layers`, sorted by name.

    A parameter set has one name: all layers are written as none. Raises `ArchitectureError`
    ``bad-layers`` for that, for layers that the model lacks or that do not rise, and for any
    layers of a model that is sold whole.
    """
    whole = architecture.model.layout()
    if not layers:
        return whole
    names = architecture.model.layer_names()
    if not names:
        raise ArchitectureError(f"`{architecture.name}` is sold whole", reason="bad-layers")
    shown = f"{list(layers[:10])}, of 0 … {len(names) - 1}"
    if any(left >= right for left, right in itertools.pairwise(layers)):
        raise ArchitectureError(f"layers must rise: {shown}", reason="bad-layers")
    if layers[0] < 0 or layers[-1] >= len(names):
        raise ArchitectureError(f"there are no such layers: {shown}", reason="bad-layers")
    if len(layers) == len(names):
        raise ArchitectureError(f"all layers are written as none: {shown}", reason="bad-layers")
    named = {name for layer in layers for name in names[layer]}
    return tuple(spec for spec in whole if spec.name in named)


def prefixes(architecture: Architecture) -> tuple[tuple[int, ...], ...]:
    """Return every beginning of the layers, from the input side: shortest first, the whole last.

    Each as an offer names it: the whole is ``()``. A model that is sold whole has no other.
    """
    names = architecture.model.layer_names()
    return (*(tuple(range(count)) for count in range(1, len(names))), ())


def part_of(
    architecture: Architecture, tensors: Tensors, layers: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Return the tensors of `layers`, or of all if there are none; raises as `layout`."""
    return {spec.name: tensors[spec.name] for spec in layout(architecture, layers)}


def permutation_spec(architecture: Architecture) -> PermutationSpec:
    """Return which units may be permuted and rescaled."""
    return architecture.model.permutation_spec()


def apply(architecture: Architecture, tensors: Tensors, inputs_RF: torch.Tensor) -> torch.Tensor:
    """Return logits_RC of the model with these tensors on R rows of inputs."""
    return architecture.model.forward(tensors, inputs_RF)


def random_init(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Return PyTorch's default initialisation, the same for the same seed."""
    return architecture.model.random_init(seed)
