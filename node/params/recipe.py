"""How a buyer turns what it bought into its next parameters, byte for byte.

A recipe says how the sold model's units line up with the buyer's, how they are scaled into
the buyer's gauge, and the merge weight α. Only the sold side is ever permuted or scaled:

    merged = base·(1 − α) + T(sold)·α,   T(sold) = rescale(permute(sold))

in float32, each product and each sum rounded by itself, so that every machine arrives at
the same bytes and the merged root in a receipt can be checked by whoever holds both models.

Where only some layers are sold, the sum is taken over their tensors alone. All others are the
buyer's own, to the byte, and T is held to what may be done to the sold tensors by themselves
(`node.params.permutation.restrict`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from node.params.architecture import Architecture, permutation_spec
from node.params.families.lora import is_factor
from node.params.permutation import (
    PermutationSpec,
    Tensors,
    is_permutation,
    permute,
    rescale,
    restrict,
)
from node.protocol import cbor
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import ONE, Digest, Millionths

MAX_RECIPE_BYTES: Final = 4 * 1024 * 1024
MAX_SCALE: Final = 2.0**64
"""Scales lie within 1 / `MAX_SCALE` … `MAX_SCALE`: no product with a sane weight overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to do with the sold tensors; a group that is not named is left as it is."""

    permutations: Mapping[str, tuple[int, ...]]
    """By group: unit u of the buyer meets unit ``permutation[u]`` of the sold model."""
    scales: Mapping[str, bytes]
    """By group: float32, little endian, one for each of the buyer's units."""
    alpha: Millionths

    def __post_init__(self) -> None:
        if type(self.alpha) is not int or not 0 <= self.alpha <= ONE:
            raise LocalProtocolError(f"alpha must be 0 … {ONE} millionths, got {self.alpha!r}")

    def encode(self) -> bytes:
        """Return the canonical CBOR of the recipe."""
        return cbor.encode(
            {
                "alpha": self.alpha,
                "permutations": {
                    group: list(permutation) for group, permutation in self.permutations.items()
                },
                "scales": dict(self.scales),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Recipe:
        """Read a recipe as it came from a peer; it is not yet checked against a model.

        Total: raises `RemoteProtocolError` for every other byte string.
        """
        if len(data) > MAX_RECIPE_BYTES:
            raise _bad(f"{len(data)} bytes, of at most {MAX_RECIPE_BYTES}")
        value = cbor.decode(data)
        if not isinstance(value, dict) or set(value) != {"alpha", "permutations", "scales"}:
            raise _bad("must be a map of exactly alpha, permutations and scales")
        alpha, permutations, scales = value["alpha"], value["permutations"], value["scales"]
        if type(alpha) is not int or not 0 <= alpha <= ONE:
            raise _bad(f"alpha must be 0 … {ONE} millionths")
        if not isinstance(permutations, dict) or not isinstance(scales, dict):
            raise _bad("permutations and scales must be maps")
        read_permutations: dict[str, tuple[int, ...]] = {}
        for group, permutation in permutations.items():
            if not isinstance(permutation, list):
                raise _bad(f"the permutation of {group!r} must be an array")
            units = tuple(unit for unit in permutation if type(unit) is int)
            if not is_permutation(units, len(permutation)):
                raise _bad(f"the units of {group!r} are no permutation")
            read_permutations[group] = units
        read_scales: dict[str, bytes] = {}
        for group, packed in scales.items():
            if not isinstance(packed, bytes) or len(packed) % 4:
                raise _bad(f"the scales of {group!r} must be float32 in a byte string")
            read_scales[group] = packed
        return cls(permutations=read_permutations, scales=read_scales, alpha=Millionths(alpha))

    @property
    def hash(self) -> Digest:
        """SHA-256 of the encoding."""
        return Digest(hashlib.sha256(self.encode()).digest())

    @property
    def alignment_hash(self) -> Digest:
        """SHA-256 of the encoding with α = 0: names the permutations and scales alone."""
        return self.with_alpha(Millionths(0)).hash

    def with_alpha(self, alpha: Millionths) -> Recipe:
        """Return the same alignment at another merge weight."""
        return Recipe(permutations=self.permutations, scales=self.scales, alpha=alpha)


NO_ALIGNMENT: Final = Recipe(permutations={}, scales={}, alpha=Millionths(0))
"""Units as they are numbered, in the gauge they stand in, nothing bought."""


def _bad(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-recipe", detail[:300])


def pack_scales(scales_U: torch.Tensor) -> bytes:
    """Return float32 little-endian bytes of a vector of scales."""
    return scales_U.detach().cpu().to(torch.float32).numpy().astype("<f4").tobytes()


def unpack_scales(packed: bytes) -> torch.Tensor:
    """Return the float32 vector that `pack_scales` wrote."""
    return torch.from_numpy(np.frombuffer(packed, dtype="<f4").astype(np.float32))


def check_recipe(spec: PermutationSpec, recipe: Recipe) -> None:
    """Raise `RemoteProtocolError("bad-recipe")` unless `recipe` is exact for models of `spec`.

    Every group is one of the specification's, of its size; permutations are permutations;
    scales are finite, positive, bounded, and only where the activation is ReLU.
    """
    for group, permutation in recipe.permutations.items():
        if group not in spec.groups:
            raise _bad(f"permutes {group!r}, which the architecture lacks")
        if not is_permutation(permutation, spec.groups[group].size):
            raise _bad(f"not a permutation of the {spec.groups[group].size} units of {group!r}")
    for group, packed in recipe.scales.items():
        if group not in spec.groups or not spec.groups[group].rescalable:
            raise _bad(f"rescales {group!r}, which is not exact")
        if len(packed) != 4 * spec.groups[group].size:
            raise _bad(f"{len(packed)} bytes of scales for {group!r}")
        scales_U = unpack_scales(packed)
        if not bool(((scales_U >= 1 / MAX_SCALE) & (scales_U <= MAX_SCALE)).all()):
            raise _bad(f"scales of {group!r} outside {1 / MAX_SCALE:g} … {MAX_SCALE:g}")


def transform(spec: PermutationSpec, sold: Tensors, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return T(sold): the sold model with the buyer's numbering and scales of units."""
    check_recipe(spec, recipe)
    scales = {group: unpack_scales(packed) for group, packed in recipe.scales.items()}
    return rescale(spec, permute(spec, sold, recipe.permutations), scales)


def interpolate(base: Tensors, other: Tensors, alpha: Millionths) -> dict[str, torch.Tensor]:
    """Return base·(1 − α) + other·α in float32; exactly `base` at 0 and `other` at `ONE`.

    What `other` lacks is `base` at every α. Raises `LocalProtocolError` between the two ends for
    factors of adapters: the mean of factors is not the factors of the mean
    (`node.params.adapters.merged`).
    """
    if alpha == 0:
        return {name: tensor.clone() for name, tensor in base.items()}
    if alpha == ONE:
        return {name: other.get(name, tensor).clone() for name, tensor in base.items()}
    if any(is_factor(name) for name in other):
        raise LocalProtocolError("factors of adapters are not interpolated, only their products")
    # both weights are rounded to float32 first: left to itself, a GPU may multiply by the double
    keep = torch.tensor((ONE - alpha) / ONE, dtype=torch.float32)
    take = torch.tensor(alpha / ONE, dtype=torch.float32)
    merged = {}
    for name, tensor in base.items():
        if name in other:
            merged[name] = tensor * keep.to(tensor.device) + other[name] * take.to(tensor.device)
        else:
            merged[name] = tensor.clone()
    return merged


def apply_recipe(
    architecture: Architecture, base: Tensors, sold: Tensors, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """Return the buyer's merged parameters: a whole model, whether all or some layers are sold.

    Raises `RemoteProtocolError("bad-recipe")` if the recipe does not fit the sold tensors.
    """
    spec = restrict(permutation_spec(architecture), sold)
    return interpolate(base, transform(spec, sold, recipe), recipe.alpha)
