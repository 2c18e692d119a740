"""How a buyer turns what it bought into its next parameters, byte for byte.

A recipe says how the sold model's units line up with the buyer's, how they are scaled into
the buyer's gauge, and the merge weight α. Only the sold side is ever permuted or scaled:

    merged = base·(1 − α) + T(sold)·α,   T(sold) = rescale(permute(sold))

in float32, each product and each sum rounded by itself, so that every machine arrives at
the same bytes and the merged root in a receipt can be checked by whoever holds both models.

A tensor may have a share for each of its rows (of its first axis) instead of α: row i is then
base_i·(1 − s_i) + T(sold)_i·s_i, rounded in the same way. Shares stand in the recipe only where
there are any, so that a recipe without them has the bytes and the hash that it always had.

Where only some layers are sold, the sum is taken over their tensors alone. All others are the
buyer's own, to the byte, and T is held to what may be done to the sold tensors by themselves
(`node.params.permutation.restrict`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
MAX_SHARES: Final = 1 << 18
"""Of all tensors of a recipe together."""
MAX_SCALE: Final = 2.0**64
"""Scales lie within 1 / `MAX_SCALE` … `MAX_SCALE`: no product with a sane weight overflows."""


_FIELDS: Final = {"alpha", "permutations", "scales"}


def _bad(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-recipe", detail[:300])


def _is_share(value: object) -> bool:
    return type(value) is int and 0 <= value <= ONE


def _wrong_shares(alpha: Millionths, shares: Mapping[str, Sequence[object]]) -> str:
    """Return what is wrong with shares that fit some tensors; nothing if all is well."""
    if shares and alpha == 0:
        return "shares of what is not bought: alpha is 0"
    if sum(map(len, shares.values())) > MAX_SHARES:
        return f"over {MAX_SHARES} shares"
    for name, shares_R in shares.items():
        if not shares_R or not all(map(_is_share, shares_R)):
            return f"the shares of {name!r:.80} must be 0 … {ONE} millionths, one a row"
    return ""


def _read_shares(
    alpha: Millionths, value: Mapping[str, cbor.Value]
) -> dict[str, tuple[Millionths, ...]]:
    if "shares" not in value:
        return {}
    said = value["shares"]
    if not isinstance(said, dict) or not said:
        raise _bad("shares must be a map of one tensor or more")
    lists: dict[str, list[cbor.Value]] = {}
    for name, shares_R in said.items():
        if not isinstance(shares_R, list):
            raise _bad(f"the shares of {name!r:.80} must be an array")
        lists[name] = shares_R
    wrong = _wrong_shares(alpha, lists)
    if wrong:
        raise _bad(wrong)
    return {
        name: tuple(Millionths(share) for share in shares_R if isinstance(share, int))
        for name, shares_R in lists.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to do with the sold tensors; a group that is not named is left as it is."""

    permutations: Mapping[str, tuple[int, ...]]
    """By group: unit u of the buyer meets unit ``permutation[u]`` of the sold model."""
    scales: Mapping[str, bytes]
    """By rescaling of the specification (where it takes in the whole of a group, the group's name):
    float32, little endian, one for each of the buyer's units."""
    alpha: Millionths
    shares: Mapping[str, tuple[Millionths, ...]] = field(default_factory=dict)
    """By sold tensor: the merge weight of each row, in the buyer's numbering; α for all others.
    Where α is 0 nothing is bought, and there are none."""

    def __post_init__(self) -> None:
        if not _is_share(self.alpha):
            raise LocalProtocolError(f"alpha must be 0 … {ONE} millionths, got {self.alpha!r}")
        wrong = _wrong_shares(self.alpha, self.shares)
        if wrong:
            raise LocalProtocolError(wrong)

    def encode(self) -> bytes:
        """Return the canonical CBOR of the recipe."""
        said: dict[str, cbor.Value] = {
            "alpha": self.alpha,
            "permutations": {
                group: list(permutation) for group, permutation in self.permutations.items()
            },
            "scales": dict(self.scales),
        }
        if self.shares:
            said["shares"] = {name: list(shares_R) for name, shares_R in self.shares.items()}
        return cbor.encode(said)

    @classmethod
    def decode(cls, data: bytes) -> Recipe:
        """Read a recipe as it came from a peer; it is not yet checked against a model.

        Total: raises `RemoteProtocolError` for every other byte string.
        """
        if len(data) > MAX_RECIPE_BYTES:
            raise _bad(f"{len(data)} bytes, of at most {MAX_RECIPE_BYTES}")
        value = cbor.decode(data)
        if not isinstance(value, dict) or set(value) - {"shares"} != _FIELDS:
            raise _bad("must be a map of alpha, permutations, scales and perhaps shares")
        alpha, permutations, scales = value["alpha"], value["permutations"], value["scales"]
        if not _is_share(alpha):
            raise _bad(f"alpha must be 0 … {ONE} millionths")
        assert isinstance(alpha, int)
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
        return cls(
            permutations=read_permutations,
            scales=read_scales,
            alpha=Millionths(alpha),
            shares=_read_shares(Millionths(alpha), value),
        )

    @property
    def hash(self) -> Digest:
        """SHA-256 of the encoding."""
        return Digest(hashlib.sha256(self.encode()).digest())

    @property
    def alignment_hash(self) -> Digest:
        """SHA-256 of the encoding with α = 0: names the permutations and scales alone."""
        return self.with_alpha(Millionths(0)).hash

    def with_alpha(self, alpha: Millionths) -> Recipe:
        """Return the same alignment at one merge weight for all rows."""
        return Recipe(permutations=self.permutations, scales=self.scales, alpha=alpha)

    def with_shares(self, shares: Mapping[str, tuple[Millionths, ...]]) -> Recipe:
        """Return the same alignment and α, with a merge weight for each row of these tensors."""
        return Recipe(
            permutations=self.permutations, scales=self.scales, alpha=self.alpha, shares=shares
        )


NO_ALIGNMENT: Final = Recipe(permutations={}, scales={}, alpha=Millionths(0))
"""Units as they are numbered, in the gauge they stand in, nothing bought."""


def pack_scales(scales_U: torch.Tensor) -> bytes:
    """Return float32 little-endian bytes of a vector of scales."""
    return scales_U.detach().cpu().to(torch.float32).numpy().astype("<f4").tobytes()


def unpack_scales(packed: bytes) -> torch.Tensor:
    """Return the float32 vector that `pack_scales` wrote."""
    return torch.from_numpy(np.frombuffer(packed, dtype="<f4").astype(np.float32))


def check_recipe(spec: PermutationSpec, recipe: Recipe) -> None:
    """Raise `RemoteProtocolError("bad-recipe")` unless `recipe` is exact for models of `spec`.

    Every group is one of the specification's, of its size; permutations are permutations;
    scales are finite, positive, bounded, and only where the specification has a rescaling.
    """
    for group, permutation in recipe.permutations.items():
        if group not in spec.groups:
            raise _bad(f"permutes {group!r}, which the architecture lacks")
        if not is_permutation(permutation, spec.groups[group].size):
            raise _bad(f"not a permutation of the {spec.groups[group].size} units of {group!r}")
    for name, packed in recipe.scales.items():
        if name not in spec.rescalings:
            raise _bad(f"rescales {name!r}, which is not exact")
        if len(packed) != 4 * spec.groups[spec.rescalings[name].group].size:
            raise _bad(f"{len(packed)} bytes of scales for {name!r}")
        scales_U = unpack_scales(packed)
        if not bool(((scales_U >= 1 / MAX_SCALE) & (scales_U <= MAX_SCALE)).all()):
            raise _bad(f"scales of {name!r} outside {1 / MAX_SCALE:g} … {MAX_SCALE:g}")


def check_shares(
    shares: Mapping[str, Sequence[Millionths]], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Raise `RemoteProtocolError("bad-recipe")` unless there is one share a row of sold tensors.

    `shapes` are those of all that is sold, by name.
    """
    for name, shares_R in shares.items():
        if name not in shapes:
            raise _bad(f"shares of {name!r:.80}, which is not sold")
        rows = list(shapes[name])[:1]
        if rows != [len(shares_R)]:
            raise _bad(f"{len(shares_R)} shares for {name!r:.80} of {list(shapes[name])!r:.80}")


def transform(spec: PermutationSpec, sold: Tensors, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return T(sold): the sold model with the buyer's numbering and scales of units."""
    check_recipe(spec, recipe)
    scales = {name: unpack_scales(packed) for name, packed in recipe.scales.items()}
    return rescale(spec, permute(spec, sold, recipe.permutations), scales)


def interpolate(
    base: Tensors,
    other: Tensors,
    alpha: Millionths,
    *,
    shares: Mapping[str, Sequence[Millionths]] | None = None,
) -> dict[str, torch.Tensor]:
    """Return base·(1 − α) + other·α in float32; exactly `base` at 0 and `other` at `ONE`.

    A tensor in `shares` has one weight a row instead, and its rows are exactly those of either
    side at the ends. What `other` lacks is `base` at every α.

    Raises `RemoteProtocolError("bad-recipe")` for shares that do not fit `other`, and
    `LocalProtocolError` between the two ends for factors of adapters: the mean of factors is not
    the factors of the mean (`node.params.adapters.merged`).
    """
    by_row = shares or {}
    check_shares(by_row, {name: tensor.shape for name, tensor in other.items()})
    if (by_row or alpha not in {0, ONE}) and any(is_factor(name) for name in other):
        raise LocalProtocolError("factors of adapters are not interpolated, only their products")
    merged = {}
    for name, tensor in base.items():
        if name not in other:
            merged[name] = tensor.clone()
        elif name in by_row:
            merged[name] = _between_rows(tensor, other[name], by_row[name])
        else:
            merged[name] = _between(tensor, other[name], alpha)
    return merged


def _between(ours: torch.Tensor, theirs: torch.Tensor, alpha: Millionths) -> torch.Tensor:
    if alpha in {0, ONE}:
        return (theirs if alpha else ours).clone()
    # both weights are rounded to float32 first: left to itself, a GPU may multiply by the double
    keep = torch.tensor((ONE - alpha) / ONE, dtype=torch.float32)
    take = torch.tensor(alpha / ONE, dtype=torch.float32)
    return ours * keep.to(ours.device) + theirs * take.to(ours.device)


def _between_rows(
    ours: torch.Tensor, theirs: torch.Tensor, shares_R: Sequence[Millionths]
) -> torch.Tensor:
    along = (-1, *[1] * (ours.ndim - 1))
    whole_R = torch.tensor(list(shares_R), device=ours.device).reshape(along)
    # quotients of float64, rounded to float32 once, as for one α
    keep_R, take_R = ((part_R.double() / ONE).float() for part_R in (ONE - whole_R, whole_R))
    mixed = ours * keep_R + theirs * take_R
    # a product by 0 has lost the sign of a zero
    return torch.where(whole_R == 0, ours, torch.where(whole_R == ONE, theirs, mixed))


def apply_recipe(
    architecture: Architecture, base: Tensors, sold: Tensors, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """Return the buyer's merged parameters: a whole model, whether all or some layers are sold.

    Raises `RemoteProtocolError("bad-recipe")` if the recipe does not fit the sold tensors.
    """
    check_shares(recipe.shares, {name: tensor.shape for name, tensor in sold.items()})
    if recipe.permutations or recipe.scales:
        # asked for where units move alone: there are models whose symmetries nobody can read
        sold = transform(restrict(permutation_spec(architecture), sold), sold, recipe)
    return interpolate(base, sold, recipe.alpha, shares=recipe.shares)
