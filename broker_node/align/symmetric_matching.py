"""Weight matching over any `SymmetrySpec`: groups in groups, several at a time.

The objective is Σ ⟨ours, permuted theirs⟩ over all tensors (Ainsworth, Hayase and Srinivasa 2022,
§3.2), raised by coordinate ascent. A *family*, a group with all that stands within it, is
assigned at once: what two heads have in common is the best assignment of the units inside of
them, and the heads are assigned by that. Families that share no tensor have one colour and
are assigned in one go, in threads where they are large; a family is left alone while nothing
that it meets has changed.

A first pass in the direction of the data matches every family by the tensors whose other units
are already matched, so that a permuted copy is found whatever its numbering. The order of
colours in later sweeps is drawn by the seed, and there is no other chance in the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from broker_node.align.assignments import each
from broker_node.align.families import Family, Pair, families_of, matched
from broker_node.align.similarity import wide
from node.params import blocks
from node.params.permutation import Tensors
from node.params.symmetry import SymmetrySpec
from node.protocol.errors import LocalProtocolError

MAX_SWEEPS: Final = 200
SINGLE: Final = 2**22
"""Numbers in a model above which similarities are computed in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricMatching:
    """A joint permutation of theirs, the objective that it attains, and how it was come by."""

    permutations: Mapping[str, torch.Tensor]
    objective: float
    history: tuple[float, ...]
    """The objective after the first pass and after every sweep: it never falls."""


def pairs_of(
    spec: SymmetrySpec,
    ours: Tensors,
    theirs: Tensors,
    dtype: torch.dtype,
    device: torch.device | None,
) -> list[Pair]:
    """Return the blocks of both models, of numbers that are finite, on the device."""
    found = []
    for name in spec.axes:
        if name not in ours or name not in theirs:
            raise LocalProtocolError(f"{name!r} is missing from a model")
        if not ours[name].is_floating_point():
            continue
        both = (ours[name].to(device), theirs[name].to(device))
        for side in both:
            if side.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(side))).all()):
                raise LocalProtocolError(f"{name!r} is not finite")
        sides = zip(
            blocks.blocks(spec, name, both[0]),
            blocks.blocks(spec, name, both[1]),
            strict=True,
        )
        found += [Pair(dims, a.to(dtype), b.to(dtype)) for (dims, a), (_, b) in sides]
    return found


def _colours(families: Sequence[Family]) -> list[list[Family]]:
    """Return families in colours, greedily: no two of one colour meet in a tensor."""
    colours: list[list[Family]] = []
    for family in families:
        for colour in colours:
            if not any(other.root in family.neighbours for other in colour):
                colour.append(family)
                break
        else:
            colours.append([family])
    return colours


@torch.inference_mode()
def match_symmetries(
    spec: SymmetrySpec,
    ours: Tensors,
    theirs: Tensors,
    *,
    seed: int,
    device: torch.device | None = None,
    sweeps: int = MAX_SWEEPS,
) -> SymmetricMatching:
    """Return the joint permutation of `theirs` that best lines up with `ours`.

    `device`: where similarities are computed, of weights in bfloat16; assignments are the CPU's,
    and the objective is in the end that of the weights as they are. `history` is that of the
    weights in bfloat16. `sweeps` bounds the ascent; one that it cuts short is as good as it got.

    Raises `LocalProtocolError` for tensors that are not of `spec`, or not finite.
    """
    size = sum(ours[name].numel() for name in spec.axes if name in ours)
    dtype = torch.float64 if size <= SINGLE else torch.float32
    if device is None:
        return _ascend(spec, pairs_of(spec, ours, theirs, dtype, None), seed=seed, sweeps=sweeps)
    ours, theirs = (sent(spec, side, device) for side in (ours, theirs))
    rounded = pairs_of(spec, ours, theirs, torch.bfloat16, device)
    found = _ascend(spec, rounded, seed=seed, sweeps=sweeps)
    exact = pairs_of(spec, ours, theirs, torch.float32, device)
    return replace(found, objective=objective(spec, exact, found.permutations))


def sent(spec: SymmetrySpec, tensors: Tensors, device: torch.device) -> dict[str, torch.Tensor]:
    """Return what of a model is in `spec`, in float32 on the device: sent once, in half of float64.

    Raises `LocalProtocolError` for a tensor that is missing.
    """
    for name in spec.axes:
        if name not in tensors:
            raise LocalProtocolError(f"{name!r} is missing from a model")
    return {
        name: (each.float() if each.is_floating_point() else each).to(device)
        for name, each in tensors.items()
        if name in spec.axes
    }


def _ascend(
    spec: SymmetrySpec, pairs: list[Pair], *, seed: int, sweeps: int = MAX_SWEEPS
) -> SymmetricMatching:
    families = [family for family in families_of(spec, pairs) if family.meetings]
    permutations = blocks.identity(spec)
    dirty = _first_pass(spec, families, permutations)
    history = [objective(spec, pairs, permutations)]
    colours = _colours(families)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))

    def rematch(family: Family) -> dict[str, torch.Tensor] | None:
        return matched(spec, family, family.meetings, permutations, inner=_inner)

    for _ in range(sweeps):
        if not dirty:
            break
        changed = False
        for at in generator.permutation(len(colours)):
            due = [family for family in colours[at] if family.root in dirty]
            dirty.difference_update(family.root for family in due)
            # no two of a colour meet, so that none sees what the others find
            sizes = [_size(spec, family) for family in due]
            for family, found in zip(due, each(rematch, due, sizes), strict=True):
                if found is not None:
                    permutations.update(found)
                    dirty.update(family.neighbours)
                    if family.repeated:
                        dirty.add(family.root)
                    changed = True
        if changed:
            history.append(objective(spec, pairs, permutations))
    return SymmetricMatching(
        permutations=permutations, objective=history[-1], history=tuple(history)
    )


def _size(spec: SymmetrySpec, family: Family) -> int:
    """Return how many units the largest assignment of a family is over."""
    return max(spec.groups[name].size for name in family.members)


def _first_pass(
    spec: SymmetrySpec, families: Iterable[Family], permutations: dict[str, torch.Tensor]
) -> set[str]:
    """Match every family by what it shares with those before it, and with nobody.

    Returns the roots of those that meet others behind them, and are to be matched again.
    """
    known: set[str] = set()
    dirty: set[str] = set()
    for family in families:
        known |= set(family.members)
        entering = [
            meeting
            for meeting in family.meetings
            if all(dim.group is None or dim.group in known for dim in meeting.pair.dims)
        ]
        if len(entering) < len(family.meetings) or family.repeated:
            dirty.add(family.root)
        found = matched(spec, family, entering, permutations, inner=_inner) if entering else None
        if found is not None:
            permutations.update(found)
    return dirty


def _inner(spec: SymmetrySpec, pairs: list[Pair]) -> tuple[float, dict[str, torch.Tensor]]:
    """Match what stands within one unit of ours and one of theirs."""
    found = _ascend(spec, pairs, seed=0)
    return found.objective, dict(found.permutations)


def objective(
    spec: SymmetrySpec, pairs: Iterable[Pair], permutations: Mapping[str, torch.Tensor]
) -> float:
    """Return Σ ⟨ours, permuted theirs⟩."""
    return sum(
        float(
            (
                wide(pair.ours)
                * wide(blocks.permute_block(spec, pair.dims, pair.theirs, permutations))
            ).sum(dtype=torch.float64)
        )
        for pair in pairs
    )
