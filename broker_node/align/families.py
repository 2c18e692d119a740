"""One step of matching: a group and all that stands within it, given everything else.

Three ways, by what a family is. Plain units are one linear assignment. Units with others within
(heads), where every block has units of at most one group inside, are assigned by the values of
the assignments inside; those are solved only for the pairs that may be chosen. Where the
inner groups meet one another (grouped queries, grouped convolutions), every pair of outer
units is a matching problem of its own, of the same kind as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from broker_node.align.similarity import Similarity, assigned, best, wide
from node.params import blocks
from node.params.blocks import Dim
from node.params.symmetry import SymmetrySpec


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The same block of both models."""

    dims: tuple[Dim, ...]
    ours: torch.Tensor
    theirs: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """A block that a family's units run over, along dimension `at`."""

    pair: Pair
    at: int
    inside: tuple[int, ...]
    """Dimensions of groups within, that take their order from this one."""


@dataclass(slots=True, eq=False)
class Family:
    """A group that stands within no other, and all groups within it."""

    root: str
    members: tuple[str, ...]
    """The root and those within."""
    meetings: list[Meeting] = field(default_factory=list)
    neighbours: set[str] = field(default_factory=set)
    """Roots of the families that share a block with this one."""
    repeated: bool = False
    """Whether a block has the root twice, so that its part is not linear."""

    @property
    def chained(self) -> bool:
        """Whether groups within meet one another in a block."""
        return any(len(meeting.inside) > 1 for meeting in self.meetings)


Inner: TypeAlias = Callable[[SymmetrySpec, list[Pair]], tuple[float, dict[str, torch.Tensor]]]


def families_of(spec: SymmetrySpec, pairs: Sequence[Pair]) -> list[Family]:
    """Return the families in the order data flows through them."""
    root_of = {
        name: (group.within[0] if group.within else name) for name, group in spec.groups.items()
    }
    found = {
        root: Family(root, tuple(name for name in spec.groups if root_of[name] == root))
        for root in spec.groups
        if root_of[root] == root
    }
    for pair in pairs:
        roots = [dim.group for dim in pair.dims if dim.group in found]
        for at, dim in enumerate(pair.dims):
            if dim.group not in found:
                continue
            family = found[dim.group]
            inside = tuple(
                other
                for other in range(len(pair.dims))
                if at in blocks.around(spec, pair.dims, other)
            )
            family.meetings.append(Meeting(pair, at, inside))
            family.neighbours |= {root for root in roots if root and root != family.root}
            family.repeated |= roots.count(family.root) > 1
    return list(found.values())


def matched(
    spec: SymmetrySpec,
    family: Family,
    meetings: Sequence[Meeting],
    permutations: dict[str, torch.Tensor],
    *,
    inner: Inner,
) -> dict[str, torch.Tensor] | None:
    """Return better permutations of the family's groups, or None if there are none."""
    movable = spec.groups[family.root].movable
    held = _held(spec, meetings, permutations)
    if len(family.members) == 1:
        if not movable:
            return None
        found = _plain(held, permutations[family.root])
        candidate = None if found is None else {family.root: found}
    elif family.chained:
        return _by_pairs(spec, family, held, permutations, inner=inner)
    else:
        candidate = _nested(spec, family, held, permutations)
    if candidate is None or not family.repeated:
        return candidate
    # a block with the units on two axes is no linear function of their order
    pairs = list({id(meeting.pair): meeting.pair for meeting in meetings}.values())
    before, after = (
        sum(_value(spec, pair, joint) for pair in pairs)
        for joint in (permutations, {**permutations, **candidate})
    )
    return candidate if _better(after, before, held[0].ours) else None


def _value(spec: SymmetrySpec, pair: Pair, permutations: dict[str, torch.Tensor]) -> float:
    moved = blocks.permute_block(spec, pair.dims, pair.theirs, permutations)
    return float((wide(pair.ours) * wide(moved)).sum(dtype=torch.float64))


def _better(after: float, before: float, like: torch.Tensor) -> bool:
    share = 1e-12 if like.dtype == torch.float64 else 1e-6
    return after > before + share * abs(before)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A meeting's block with the family's units first, those inside next, all else in place."""

    dims: tuple[Dim, ...]
    ours: torch.Tensor
    theirs: torch.Tensor

    @property
    def inside(self) -> str | None:
        return self.dims[1].group if len(self.dims) > 1 else None

    def rows(self, side: torch.Tensor) -> torch.Tensor:
        """Return one row a unit, or a unit with one inside."""
        count = self.ours.shape[0] * (self.ours.shape[1] if self.inside else 1)
        return side.reshape(count, -1)


def _held(
    spec: SymmetrySpec, meetings: Sequence[Meeting], permutations: dict[str, torch.Tensor]
) -> list[_Held]:
    found = []
    for meeting in meetings:
        own = (meeting.at, *meeting.inside)
        theirs = blocks.permute_block(
            spec, meeting.pair.dims, meeting.pair.theirs, permutations, skip=own
        )
        order = [*own, *(at for at in range(len(meeting.pair.dims)) if at not in own)]
        dims = tuple(
            dim if at in own else replace(dim, group=None, leaf=-1)
            for at, dim in enumerate(meeting.pair.dims)
        )
        found.append(
            _Held(
                tuple(dims[at] for at in order),
                meeting.pair.ours.permute(order),
                theirs.permute(order),
            )
        )
    return found


def _similarity(held: Sequence[_Held]) -> Similarity:
    return Similarity([(block.rows(block.ours), block.rows(block.theirs)) for block in held])


def _plain(held: Sequence[_Held], current_U: torch.Tensor) -> torch.Tensor | None:
    similarity = _similarity(held)
    certified = similarity.certified()
    if certified is not None:
        return None if torch.equal(certified, current_U) else certified
    candidate_U = assigned(similarity.total_UV)
    units = torch.arange(len(candidate_U))
    before, after = (
        float(similarity.total_UV[units, perm].sum(dtype=torch.float64))
        for perm in (current_U, candidate_U)
    )
    return candidate_U if _better(after, before, similarity.total_UV) else None


def _nested(
    spec: SymmetrySpec,
    family: Family,
    held: Sequence[_Held],
    permutations: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor] | None:
    """Assign units by the best assignments inside of them, all groups inside independent."""
    count = spec.groups[family.root].size
    inside: dict[str, list[_Held]] = {}
    for block in held:
        if block.inside is not None:
            inside.setdefault(block.inside, []).append(block)
    direct = [block for block in held if block.inside is None]
    similarities = {group: _similarity(of_group) for group, of_group in inside.items()}
    settled = {group: s.certified() for group, s in similarities.items()}
    if not direct:
        whole = _agreeing(family.root, settled, count, movable=spec.groups[family.root].movable)
        if whole is not None:
            return None if _same(whole, permutations) else whole
    value_UV = wide(held[0].ours.new_zeros(count, count))
    if direct:
        complete = _similarity(direct)
        complete.certified(checks=False)
        value_UV += complete.total_UV
    table: dict[str, torch.Tensor] = {}
    for group, similarity in similarities.items():
        if settled[group] is not None:
            similarity = _similarity(inside[group])
            similarity.certified(checks=False)
        size = spec.groups[group].size
        table[group] = similarity.total_UV.reshape(count, size, count, size).transpose(1, 2)
    root = permutations[family.root]
    before = _nested_value(value_UV, table, {**permutations, family.root: root}, family.root)
    found = _choose(value_UV, table, movable=spec.groups[family.root].movable)
    candidate = {family.root: found[0], **found[1]}
    after = _nested_value(value_UV, table, candidate, family.root)
    return candidate if _better(after, before, value_UV) else None


def _agreeing(
    root: str, settled: dict[str, torch.Tensor | None], count: int, *, movable: bool
) -> dict[str, torch.Tensor] | None:
    """Return the joint optimum if each group's best units lie in blocks, the same for all."""
    found: dict[str, torch.Tensor] = {}
    for group, perm in settled.items():
        if perm is None:
            return None
        perm_UI = perm.reshape(count, -1)
        size = perm_UI.shape[1]
        outer_U = perm_UI[:, 0] // size
        if not bool((perm_UI // size == outer_U[:, None]).all()):
            return None
        if root in found and not torch.equal(found[root], outer_U):
            return None
        found[root] = outer_U
        found[group] = perm_UI % size
    if not found or (not movable and not torch.equal(found[root], torch.arange(count))):
        return None
    return found


def _same(found: dict[str, torch.Tensor], permutations: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(perm, permutations[group]) for group, perm in found.items())


def _nested_value(
    value_UV: torch.Tensor,
    table: dict[str, torch.Tensor],
    joint: dict[str, torch.Tensor],
    root: str,
) -> float:
    units = torch.arange(len(value_UV))
    total = float(value_UV[units, joint[root]].sum(dtype=torch.float64))
    for group, similarity in table.items():
        chosen_UIJ = similarity[units, joint[root]]
        inside = joint[group][..., None].to(chosen_UIJ.device)
        total += float(chosen_UIJ.gather(2, inside).sum(dtype=torch.float64))
    return total


def _choose(
    value_UV: torch.Tensor, table: dict[str, torch.Tensor], *, movable: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the best units and those inside them.

    A pair's value is bounded by the best of its rows, or of its columns; the assignments inside
    are solved for the pairs that the bounds choose, until all that are chosen are exact.
    """
    count = len(value_UV)
    bound_UV = value_UV.clone()
    for similarity in table.values():
        rows = similarity.max(3).values.sum(2)
        columns = similarity.max(2).values.sum(2)
        bound_UV += torch.minimum(rows, columns)
    solved: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    while True:
        perm_U = best(bound_UV) if movable else torch.arange(count)
        new = [(u, v) for u, v in enumerate(perm_U.tolist()) if (u, v) not in solved]
        for u, v in new:
            solved[u, v] = {group: best(similarity[u, v]) for group, similarity in table.items()}
            bound_UV[u, v] = value_UV[u, v]
            for group, similarity in table.items():
                inside = solved[u, v][group].to(similarity.device)
                bound_UV[u, v] += similarity[u, v].gather(1, inside[:, None]).sum()
        if not new or not movable:
            break
    chosen = [solved[u, v] for u, v in enumerate(perm_U.tolist())]
    return perm_U, {group: torch.stack([one[group] for one in chosen]) for group in table}


def _by_pairs(
    spec: SymmetrySpec,
    family: Family,
    held: Sequence[_Held],
    permutations: dict[str, torch.Tensor],
    *,
    inner: Inner,
) -> dict[str, torch.Tensor] | None:
    """Match what is inside for every pair of units, by the whole method again."""
    count = spec.groups[family.root].size
    movable = spec.groups[family.root].movable
    within = {
        name: replace(
            spec.groups[name],
            within=tuple(o for o in spec.groups[name].within if o != family.root),
        )
        for name in family.members
        if name != family.root
    }
    part = SymmetrySpec(groups=within, axes={})
    value_UV = torch.full((count, count), -torch.inf, dtype=torch.float64)
    solved: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for u in range(count):
        for v in range(count) if movable else (u,):
            pairs = [Pair(block.dims[1:], block.ours[u], block.theirs[v]) for block in held]
            value, solved[u, v] = inner(part, pairs)
            value_UV[u, v] = value
    perm_U = best(value_UV) if movable else torch.arange(count)
    candidate = {family.root: perm_U}
    for name in within:
        candidate[name] = torch.stack([solved[u, v][name] for u, v in enumerate(perm_U.tolist())])
    current = {name: permutations[name] for name in family.members}
    before, after = (
        sum(_held_value(spec, block, joint) for block in held) for joint in (current, candidate)
    )
    return candidate if _better(after, before, held[0].ours) else None


def _held_value(spec: SymmetrySpec, block: _Held, joint: dict[str, torch.Tensor]) -> float:
    moved = blocks.permute_block(spec, block.dims, block.theirs, joint)
    return float((wide(block.ours) * wide(moved)).sum(dtype=torch.float64))
