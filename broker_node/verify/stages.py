"""The first two stages of a model at the broker: Received, then Verified.

Only `broker_node.verify.checks.verify` makes a `Verified`, and everything that computes
takes `Verified`, so that unchecked tensors cannot reach it without a type error. (An engine whose
workers are other processes makes one again, of bytes whose root says that they were verified.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from node.params.adapters import Base
from node.params.architecture import Architecture
from node.protocol.types import Digest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Received:
    """Tensors as they came, with what their sender says of them."""

    weights_root: Digest
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    layers: tuple[int, ...] = ()
    """Which layers these are the tensors of; empty means all."""
    base: Base | None = field(default=None, repr=False)
    """What adapters are of; None for whatever computes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verified:
    """Tensors that are exactly those of `layers`, finite, and hash to `weights_root`."""

    weights_root: Digest
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    layers: tuple[int, ...] = ()
    """Which layers these are the tensors of; empty means all."""
    base: Base | None = field(default=None, repr=False)
    """What adapters are of; None for whatever computes by itself."""
