"""Weight matching: which unit of one model plays the part of which unit of the other.

Coordinate descent over the groups of a `PermutationSpec`; one group at a time is a linear
assignment problem with an exact solution (Ainsworth, Hayase and Srinivasa 2022, §3.2 and
Algorithm 1). The objective is Σ ⟨ours, permuted theirs⟩ over all tensors.

Algorithm 1 starts from the units as they are numbered, so that a seller who renumbers its
units gets another local optimum. Here a first pass in the direction of the data matches
every group by what enters it alone, and the descent starts there: of a whole model the outcome
does not depend on how either side numbers its units, and a permuted copy is found exactly, since
once what stands before is matched, the right assignment attains Cauchy-Schwarz.

Where a layer is sold without the one before it, nothing that is sold enters the group between
them. The descent is then had twice, and the better end kept: from its units in order of the sum
of their weights, which finds a permuted copy too, and from its units as they are numbered, which
is right between models that have been merged before. There the numbering has its say in the
outcome.

Groups are taken in a drawn order, one after the other, and what that comes to is had sooner, bit
for bit (`_Problem.colours`, `_Problem.around`): those that share no tensor are assigned at once,
in threads where they are large; a group is left alone until one that it meets has changed; and a
product of two tensors is kept for as long as nothing beside it has moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from broker_node.align.assignments import assign_all, threads
from node.params.permutation import Axis, PermutationSpec, Role, Tensors

MAX_SWEEPS: Final = 200
MAX_WORK: Final = 3.5e10
"""Cubes of group sizes over all assignments of one matching, every sweep and forward pass: one of n
units takes of the order of n³ steps, in a thread that nothing can stop, and a seller chooses its
weights. The slowest found take 1.25 ns a cube in one thread, so 44 s in all (42 s were seen, at
784-2596-10 by its last layer, the widest that is taken); random ones of that width take 4 s.
Ample for 85 sweeps of three groups of 512."""
RELATIVE_GAIN: Final = 1e-12
"""A reassignment must raise a group's objective by this share of its magnitude to count."""


def unentered(spec: PermutationSpec) -> tuple[str, ...]:
    """Return the groups that no tensor of `spec` writes."""
    written = {
        axis.group
        for of_tensor in spec.axes.values()
        for axis in of_tensor
        if axis is not None and axis.role is Role.WRITES
    }
    return tuple(name for name in spec.groups if name not in written)


def work_of(spec: PermutationSpec, sweeps: int) -> float:
    """Return the cubes of group sizes over all that is assigned in so many sweeps a descent."""
    skipped = unentered(spec)
    cubes = {name: float(group.size) ** 3 for name, group in spec.groups.items()}
    forward = sum(cube for name, cube in cubes.items() if name not in skipped)
    return (2 if skipped else 1) * (forward + sweeps * sum(cubes.values()))


def sweeps_of(spec: PermutationSpec) -> int:
    """Return how many sweeps a descent over units of these numbers is given, 1 … `MAX_SWEEPS`."""
    forward = work_of(spec, 0)
    each = max(work_of(spec, 1) - forward, 1.0)
    return int(min(MAX_SWEEPS, max(1, (MAX_WORK - forward) // each)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Permutations by group, and the objective that they attain."""

    permutations: Mapping[str, tuple[int, ...]]
    objective: float


class _Problem:
    """The tensors of `spec` in float64, with one permutation of the second for each group.

    Statistics of data are not compared: their scale is not that of weights, and outweighs it.
    """

    def __init__(self, spec: PermutationSpec, ours: Tensors, theirs: Tensors) -> None:
        self.spec = spec
        self.ours = {name: tensor.double() for name, tensor in ours.items()}
        self.theirs = {name: tensor.double() for name, tensor in theirs.items()}
        self.uses: dict[str, list[tuple[str, int, Role]]] = {group: [] for group in spec.groups}
        for name, axes in spec.axes.items():
            for dimension, axis in enumerate(axes):
                if axis is not None and name not in spec.statistics:
                    self.uses[axis.group].append((name, dimension, axis.role))
        self.neighbours = {
            group: tuple(
                dict.fromkeys(axis.group for name, at, _ in uses for axis in self._beside(name, at))
            )
            for group, uses in self.uses.items()
        }
        """By group, those whose order its similarity is of: its own, if a tensor has it twice."""
        self._products: dict[tuple[str, int], tuple[tuple[torch.Tensor, ...], torch.Tensor]] = {}

    def _beside(self, name: str, dimension: int) -> list[Axis]:
        """Return the axes over units that a tensor has beside one of them."""
        axes = enumerate(self.spec.axes[name])
        return [axis for at, axis in axes if axis is not None and at != dimension]

    def around(
        self, group: str, permutations: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Return all that a group's similarity depends on, as it stands."""
        return tuple(permutations[other] for other in self.neighbours[group])

    def colours(self, order: Sequence[str]) -> list[list[str]]:
        """Return groups in colours: colour after colour comes to what group after group does.

        Each is of the first colour behind all those before it in `order` that it shares a tensor
        with, so that no two of one colour meet, and no two that meet change places.
        """
        colour_of: dict[str, int] = {}
        colours: list[list[str]] = []
        for group in order:
            met = [colour_of[other] for other in self.neighbours[group] if other in colour_of]
            colour_of[group] = max(met, default=-1) + 1
            if colour_of[group] == len(colours):
                colours.append([])
            colours[colour_of[group]].append(group)
        return colours

    def _theirs(
        self, name: str, skip: int, permutations: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return their tensor with every axis but `skip` permuted."""
        tensor = self.theirs[name]
        for dimension, axis in enumerate(self.spec.axes[name]):
            if axis is not None and dimension != skip:
                tensor = tensor.index_select(dimension, permutations[axis.group])
        return tensor

    def similarity(
        self, group: str, permutations: Mapping[str, torch.Tensor], *, only: Role | None = None
    ) -> torch.Tensor:
        """Return similarity_UV: the objective gained by giving our unit u their unit v."""
        size = self.spec.groups[group].size
        total_UV = torch.zeros(size, size, dtype=torch.float64)
        for name, dimension, role in self.uses[group]:
            if only is None or role is only:
                total_UV += self._product(name, dimension, permutations)
        return total_UV

    def _product(
        self, name: str, dimension: int, permutations: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return product_UV: what one tensor says of the units along one of its axes.

        It is kept unless it is larger than the tensor, so that all of them take no more room than
        both models do.
        """
        beside = tuple(permutations[axis.group] for axis in self._beside(name, dimension))
        of, product_UV = self._products.get((name, dimension), (None, None))
        if product_UV is not None and _same(of, beside):
            return product_UV
        ours = self.ours[name].movedim(dimension, 0)
        ours_UF = ours.reshape(len(ours), -1)
        theirs = self._theirs(name, dimension, permutations).movedim(dimension, 0)
        product_UV = ours_UF @ theirs.reshape(len(theirs), -1).T
        if product_UV.numel() <= ours.numel():
            self._products[name, dimension] = beside, product_UV
        return product_UV

    def by_weight(self, group: str) -> torch.Tensor:
        """Return `perm_U` that gives units the same rank by the sum of all their weights.

        Whatever is permuted beside them: what is summed is sorted first, so that rounding, too,
        is the same. No assignment is solved, and what a few ranks are out the descent mends.
        """
        size = self.spec.groups[group].size
        ours_U, theirs_U = (
            torch.stack(
                [
                    tensors[name].movedim(dimension, 0).reshape(size, -1).sort(1).values.sum(1)
                    for name, dimension, _ in self.uses[group]
                ]
            ).sum(0)
            for tensors in (self.ours, self.theirs)
        )
        perm_U = torch.empty(size, dtype=torch.long)
        perm_U[ours_U.argsort(stable=True)] = theirs_U.argsort(stable=True)
        return perm_U

    def objective(self, permutations: Mapping[str, torch.Tensor]) -> float:
        return sum(
            float((tensor * self._theirs(name, -1, permutations)).sum())
            for name, tensor in self.ours.items()
            if name not in self.spec.statistics
        )

    def matched(
        self,
        groups: Sequence[str],
        permutations: Mapping[str, torch.Tensor],
        *,
        only: Role | None = None,
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield groups that do not meet, each with similarity_UV and the best `perm_U`.

        As many at a time as there are threads, so that no more similarities are held than that.
        """
        step = threads()
        for begin in range(0, len(groups), step):
            similarities = {
                group: self.similarity(group, permutations, only=only)
                for group in groups[begin : begin + step]
            }
            for group, found_U in assign_all(similarities).items():
                yield group, similarities[group], found_U

    def forward_pass(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Match every group but those `given` by what enters it, given the groups before it."""
        permutations = {name: torch.arange(g.size) for name, g in self.spec.groups.items()}
        permutations |= given
        for colour in self.colours([name for name in self.spec.groups if name not in given]):
            for group, _, found_U in self.matched(colour, permutations, only=Role.WRITES):
                permutations[group] = found_U
        return permutations

    def descend(
        self,
        permutations: dict[str, torch.Tensor],
        generator: np.random.Generator,
        *,
        sweeps: int,
    ) -> dict[str, torch.Tensor]:
        """Reassign group after group in random order until a whole sweep gains nothing.

        A group that meets what it met when it was last matched would gain nothing by another
        time. A descent that its bound cuts short is as good as it got: each sweep only gains.
        """
        groups = list(self.spec.groups)
        met: dict[str, tuple[torch.Tensor, ...]] = {}
        for _ in range(sweeps):
            gained = False
            order = [groups[index] for index in generator.permutation(len(groups))]
            for colour in self.colours(order):
                now = {group: self.around(group, permutations) for group in colour}
                due = [group for group in colour if not _same(met.get(group), now[group])]
                met.update(now)
                for group, similarity_UV, candidate_U in self.matched(due, permutations):
                    units_U = torch.arange(len(similarity_UV))
                    before = float(similarity_UV[units_U, permutations[group]].sum())
                    after = float(similarity_UV[units_U, candidate_U].sum())
                    if after > before + RELATIVE_GAIN * abs(before):
                        permutations[group] = candidate_U
                        gained = True
            if not gained:
                break
        return permutations


def _same(then: Sequence[torch.Tensor] | None, now: Sequence[torch.Tensor]) -> bool:
    """Whether these are the same permutations still: a group that changes gets a new tensor."""
    return then is not None and all(one is other for one, other in zip(then, now, strict=True))


@torch.inference_mode()
def match_units(spec: PermutationSpec, ours: Tensors, theirs: Tensors, *, seed: int) -> Matching:
    """Return the permutations of `theirs` that best line up with `ours`."""
    problem = _Problem(spec, ours, theirs)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    by_weight = {group: problem.by_weight(group) for group in unentered(spec)}
    starts = [problem.forward_pass(by_weight)]
    if by_weight:
        numbered = {group: torch.arange(len(perm_U)) for group, perm_U in by_weight.items()}
        starts.append(problem.forward_pass(numbered))
    sweeps = sweeps_of(spec)
    ends = [problem.descend(start, generator, sweeps=sweeps) for start in starts]
    objectives = [problem.objective(end) for end in ends]
    objective = max(objectives)
    found = ends[objectives.index(objective)]
    return Matching(
        permutations={group: tuple(found[group].tolist()) for group in spec.groups},
        objective=objective,
    )


@torch.inference_mode()
def improve_units(
    spec: PermutationSpec,
    ours: Tensors,
    theirs: Tensors,
    start: Mapping[str, torch.Tensor],
    *,
    seed: int,
    sweeps: int,
) -> dict[str, torch.Tensor]:
    """Return the end of a descent of so many sweeps at most that begins at `start`.

    The objective never falls, so nothing that `start` got right by other means is given up for
    less; `start` itself is left as it is.
    """
    problem = _Problem(spec, ours, theirs)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    return problem.descend(dict(start), generator, sweeps=min(sweeps, sweeps_of(spec)))


def incoming_similarity(
    spec: PermutationSpec,
    ours: Tensors,
    theirs: Tensors,
    group: str,
    permutations: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Return similarity_UV of the weights that enter the units of `group`.

    `permutations` names those of the groups that the same tensors read.
    """
    return _Problem(spec, ours, theirs).similarity(group, permutations, only=Role.WRITES)
