"""Values in the graph as the derivation sees them, and the few moves that all operations make.

A value has a term for each axis. Every move narrows the `Store` until equivariance holds: what
is summed away must be numbered alike on both sides, what is broadcast must not depend on what it
meets, and where units are renumbered within others, it must be plain at each value which axis
those others run over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from node.params.derivation.scales import Scales
from node.params.derivation.terms import (
    NO_SCALE,
    Atom,
    Free,
    Leaf,
    Prod,
    Still,
    Store,
    Sum,
    Term,
    leaves,
    prod,
)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: the layout of its axes, and whether the parameters have a say in it."""

    axes: tuple[Term, ...]
    varies: bool
    learned: bool = False
    """Made of parameters alone: no data have met it yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Stack:
    """Values of one shape side by side along a new axis, each with a layout of its own."""

    axis: int
    parts: tuple[Value, ...]

    @property
    def varies(self) -> bool:
        return any(part.varies for part in self.parts)


Tracked: TypeAlias = Value | Stack


@dataclass(frozen=True, slots=True)
class Combine:
    """The scale of what comes of two places, by theirs."""

    both: Callable[[int, int], int]
    broadcast: Callable[[int], int]
    """Where the other side holds the same for all units."""
    still: Callable[[int], int]
    """Where the other side's places keep their order, and stand under no scale."""


Anchors: TypeAlias = dict[tuple[int, int, int], frozenset[int]]
"""(axis, atom, what it depends on) → the axes that may be meant by that."""


def pieces(term: Term) -> list[list[Atom]]:
    """Return the atoms of every part of a sum, nested ones too."""
    match term:
        case Sum(parts):
            return [piece for part in parts for piece in pieces(part)]
        case Prod(parts):
            found: list[list[Atom]] = [[]]
            for part in parts:
                found = [before + more for before in found for more in pieces(part)]
            return found
        case Atom():
            return [[term]]
        case Leaf(atom):
            return [[atom]]
        case _:
            return [[]]


class Tracker:
    """The store and the scales, with the moves on values."""

    def __init__(self, store: Store, scales: Scales) -> None:
        self.store = store
        self.scales = scales
        self.contracted: set[int] = set()
        """Scale variables of parameters' axes that are summed over: those read their units."""
        self.kept: set[int] = set()
        """Scale variables of parameters' axes that are still there once data have met them."""
        kill = scales.kill
        self.sums = Combine(scales.same, kill, kill)
        """Terms of a sum stand under one scale, and constants under none."""
        self.products = Combine(
            self._multiplied,
            lambda scale: scale,
            lambda scale: scales.restrict(scale, linear=False),
        )
        self.unscalable = Combine(lambda a, b: kill(a) + kill(b), kill, kill)
        self.cancelling = Combine(self._cancelled, kill, kill)
        """What is summed over is written under a scale and read under its inverse."""

    # ------------------------------------------------------------------ values as such

    def still(self, shape: Sequence[int], *, varies: bool = False) -> Value:
        """Return a value whose every place is its own."""
        return Value(tuple(Still(size) for size in shape), varies)

    def plain(self, value: Tracked) -> Value:
        """Return a stack as one value: what its parts have in common."""
        if isinstance(value, Value):
            return value
        first, *rest = value.parts
        for part in rest:
            first = self.elementwise(first, part, self.sums)
        axes = (*first.axes[: value.axis], Still(len(value.parts)), *first.axes[value.axis :])
        return self.settled(Value(axes, value.varies))

    def mapped(self, term: Term, change: Callable[[int], int]) -> Term:
        """Return `term` in normal form with `change` made to each leaf's scale."""
        term = self.store.normal(term)
        match term:
            case Leaf(atom, scale):
                return Leaf(atom, change(scale))
            case Atom():
                return Leaf(term, change(NO_SCALE))
            case Prod(parts):
                return Prod(tuple(self.mapped(part, change) for part in parts))
            case Sum(parts):
                return Sum(tuple(self.mapped(part, change) for part in parts))
            case _:
                return term

    def rescaled(self, value: Value, change: Callable[[int], int]) -> Value:
        """Return `value` with `change` made to every scale."""
        return Value(tuple(self.mapped(axis, change) for axis in value.axes), value.varies)

    def unscaled(self, value: Value) -> Value:
        """Return `value` where no scale is exact: all of its are 1 for good."""
        return self.rescaled(value, self.scales.kill)

    def variables(self, *axes: Term) -> set[int]:
        """Return the scale variables that the units on these axes stand under."""
        found = (leaf for axis in axes for leaf in leaves(self.store.normal(axis)))
        return {leaf.scale for leaf in found if isinstance(leaf, Leaf)}

    # ------------------------------------------------------------- who depends on whom

    def anchors(self, axes: Sequence[Term]) -> Anchors:
        """Return the axes on which each dependence of each atom can be read off."""
        by_axis = [pieces(self.store.normal(axis)) for axis in axes]
        found: dict[tuple[int, int, int], frozenset[int]] = {}
        for at, of_axis in enumerate(by_axis):
            for piece in of_axis:
                for atom in piece:
                    for outer in self.store.depends(atom):
                        key = (at, id(atom), id(outer))
                        found[key] = found.get(key, frozenset()) | _meant(by_axis, at, piece, outer)
        return found

    def settled(self, value: Value) -> Value:
        """Return `value` once it is plain what every atom in it depends on."""
        changed = True
        while changed:
            changed = False
            for axis in value.axes:
                for atom in self.store.atoms(axis):
                    for outer in self.store.depends(atom):
                        where = [
                            meant
                            for (_, inner, o), meant in self.anchors(value.axes).items()
                            if inner == id(atom) and o == id(outer)
                        ]
                        if any(len(meant) != 1 or -1 in meant for meant in where):
                            self.store.forget(atom, outer)
                            changed = True
        return value

    def require_independent(self, axes: Sequence[Term], kept: set[int]) -> None:
        """Renumber alike whatever, on the axes `kept`, depends on an axis that is not."""
        anchors = self.anchors(axes)
        for at in kept:
            for atom in self.store.atoms(axes[at]):
                for outer in self.store.depends(atom):
                    meant = anchors.get((at, id(atom), id(outer)), frozenset())
                    if not meant <= kept:
                        self.store.forget(atom, outer)

    def require_same_anchors(self, one: Sequence[Term], other: Sequence[Term]) -> None:
        """Renumber alike whatever depends on one axis here and on another there."""
        a, b = self.anchors(one), self.anchors(other)
        for at, axis in enumerate(one):
            for atom in self.store.atoms(axis):
                for outer in self.store.depends(atom):
                    key = (at, id(atom), id(outer))
                    if key in a and key in b and a[key] != b[key]:
                        self.store.forget(atom, outer)

    # -------------------------------------------------------------------------- moves

    def combined(self, one: Term, other: Term, scale: Combine) -> Term:
        """Make two terms the same, and their scales what `scale` says of each pair."""
        self.store.join(one, other)
        return self._zipped(self.store.normal(one), self.store.normal(other), scale)

    def _zipped(self, a: Term, b: Term, scale: Combine) -> Term:
        for fixed, other in ((a, b), (b, a)):
            if isinstance(fixed, Free):
                return other if isinstance(other, Free) else self.mapped(other, scale.broadcast)
        for fixed, other in ((a, b), (b, a)):
            if isinstance(fixed, Still):
                return self.mapped(other, scale.still)
        if isinstance(a, Leaf | Atom) and isinstance(b, Leaf | Atom):
            atom = a.atom if isinstance(a, Leaf) else a
            first, second = (t.scale if isinstance(t, Leaf) else NO_SCALE for t in (a, b))
            return Leaf(atom, scale.both(first, second))
        for kind in (Prod, Sum):
            if isinstance(a, kind) and isinstance(b, kind):
                sizes = [tuple(part.size for part in t.parts) for t in (a, b)]
                if sizes[0] == sizes[1]:
                    parts = zip(a.parts, b.parts, strict=True)
                    return kind(tuple(self._zipped(x, y, scale) for x, y in parts))
        self.mapped(a, self.scales.kill)
        self.mapped(b, self.scales.kill)
        return self.store.dressed(self.store.bare(a))

    def elementwise(self, one: Value, other: Value, scale: Combine) -> Value:
        """Return what comes of two values, place by place, broadcast as torch does."""
        rank = max(len(one.axes), len(other.axes))
        a, b = ([Still(1)] * (rank - len(v.axes)) + list(v.axes) for v in (one, other))
        axes: list[Term] = []
        for x, y in zip(a, b, strict=True):
            if x.size == 1 and y.size != 1:
                axes.append(self.mapped(y, scale.broadcast))
            elif y.size == 1 and x.size != 1:
                axes.append(self.mapped(x, scale.broadcast))
            else:
                axes.append(self.combined(x, y, scale))
        for side in (a, b):
            self.require_same_anchors(axes, side)
        return self.settled(Value(tuple(axes), one.varies or other.varies))

    def _multiplied(self, one: int, other: int) -> int:
        """A product carries the scale of one factor; where both have one, the other's is 1.

        What is multiplied unit by unit is not linear in the units' basis.
        """
        a, b = self.scales.root(one), self.scales.root(other)
        if NO_SCALE not in {a, b}:
            b = self.scales.kill(b)
        return self.scales.restrict(a or b, linear=False)

    def _cancelled(self, one: int, other: int) -> int:
        self.scales.opposite(one, other)
        return one

    def contract(
        self,
        one: Value,
        other: Value,
        *,
        batch: Sequence[tuple[int, int]] = (),
        summed: Sequence[tuple[int, int]],
    ) -> tuple[list[Term], list[Term], list[Term]]:
        """Sum products over pairs of axes; returns what is left: shared, of one, of other."""
        shared = [self.combined(one.axes[i], other.axes[j], self.products) for i, j in batch]
        for i, j in summed:
            for value, at in ((one, i), (other, j)):
                if value.learned:
                    self.contracted |= self.variables(value.axes[at])
            self.combined(one.axes[i], other.axes[j], self.cancelling)
        for value, mine in ((one, 0), (other, 1)):
            paired = {pair[mine] for pair in (*batch, *summed)}
            bound = {pair[mine] for pair in batch}
            gone = {pair[mine] for pair in summed}
            self.require_independent(value.axes, set(range(len(value.axes))) - gone)
            self.require_independent(value.axes, paired)
            self.require_independent(value.axes, bound)
        self._require_same_partners(one, other, [*batch, *summed])
        alone = [
            [
                self.store.normal(axis)
                for at, axis in enumerate(value.axes)
                if at not in {pair[mine] for pair in (*batch, *summed)}
            ]
            for value, mine in ((one, 0), (other, 1))
        ]
        return shared, alone[0], alone[1]

    def _require_same_partners(
        self, one: Value, other: Value, pairs: Sequence[tuple[int, int]]
    ) -> None:
        """What depends on an axis must depend on that axis' partner on the other side."""
        here = [one.axes[i] for i, _ in pairs]
        there = [other.axes[j] for _, j in pairs]
        self.require_same_anchors(here, there)
        for atom in {id(a): a for axis in (*here, *there) for a in self.store.atoms(axis)}.values():
            for outer in self.store.depends(atom):
                for axes in (here, there):
                    anchors = self.anchors(axes)
                    if any(
                        inner == id(atom) and o == id(outer) and (len(meant) != 1 or -1 in meant)
                        for (_, inner, o), meant in anchors.items()
                    ):
                        self.store.forget(atom, outer)

    def viewed(self, value: Value, shape: Sequence[int], picked: frozenset[int]) -> Tracked:
        """Return `value` reshaped; axes `picked` of the result become those of a `Stack`.

        Reshaping regroups runs of axes with equal products, and keeps row-major order.
        """
        axes: list[Term] = [Still(1)] * len(shape)
        stacked: tuple[int, list[int], list[list[Term]]] | None = None
        source = [self.store.normal(axis) for axis in value.axes if axis.size != 1]
        target = [at for at, size in enumerate(shape) if size != 1]
        while target:
            taken, block = [source.pop(0)], [target.pop(0)]
            while (have := size_of([t.size for t in taken])) != (
                want := size_of([shape[at] for at in block])
            ):
                if have < want:
                    taken.append(source.pop(0))
                else:
                    block.append(target.pop(0))
            rest = prod(taken)
            for done, at in enumerate(block):
                if at in picked and stacked is None:
                    after = block[done + 1 :]
                    parts = self._sliced(rest, shape[at])
                    inner = [self._factored(part, [shape[n] for n in after]) for part in parts]
                    stacked = at, after, inner
                    break
                axes[at], rest = self.store.factor(rest, shape[at])
        if stacked is None:
            return self.settled(Value(tuple(axes), value.varies))
        axis, after, alternatives = stacked
        made = []
        for alternative in alternatives:
            layout = list(axes)
            for at, term in zip(after, alternative, strict=True):
                layout[at] = term
            del layout[axis]
            made.append(self.settled(Value(tuple(layout), value.varies)))
        return Stack(axis, tuple(made))

    def _factored(self, term: Term, sizes: Sequence[int]) -> list[Term]:
        found = []
        for size in sizes:
            first, term = self.store.factor(term, size)
            found.append(first)
        return found

    def _sliced(self, term: Term, count: int) -> list[Term]:
        """Return `term` cut into so many equal parts."""
        each = term.size // count
        parts = []
        for _ in range(count):
            left, term = self.store.cut(term, each)
            parts.append(left)
        return parts


def size_of(shape: Sequence[int]) -> int:
    """Return the number of elements."""
    return math.prod(shape)


def _meant(
    by_axis: list[list[list[Atom]]], at: int, piece: list[Atom], outer: Atom
) -> frozenset[int]:
    """The axes that `outer` may be read from, for an atom of `piece` on axis `at`; -1: none."""
    own = sum(atom is outer for atom in piece)
    if own:
        return frozenset({at}) if own == 1 else frozenset({at, -1})
    found: set[int] = set()
    for other, of_axis in enumerate(by_axis):
        if other == at:
            continue
        counts = {sum(atom is outer for atom in piece) for piece in of_axis}
        if counts != {0}:
            # on that axis every part must have it, once, or a block would lack it
            found |= {other} if counts == {1} else {other, -1}
    return frozenset(found) or frozenset({-1})
