"""How an axis is laid out, as far as is known: terms, and their unification.

An *atom* stands for units that may trade places; every axis of every parameter starts as one.
As operations are read, atoms turn out to be the same (a residual sum), to be a product (heads
and what is inside of each), or to be several behind one another (a concatenation), or they are
*pinned*: their order is part of the function. Everything learned narrows the symmetries down
and nothing widens them, so that whatever cannot be expressed is pinned, and what is left over
at the end is sound.

An atom may depend on others: its units are then renumbered separately for each of theirs. Taking
a dependence away (the same renumbering for all) is narrowing, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(slots=True, eq=False)
class Atom:
    """Units that may trade places, unless it is bound to something more precise."""

    size: int
    depends: tuple[Atom, ...] | None
    """The atoms whose units it has a permutation each for; None while nothing says."""
    bound: Term | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """An atom as a value has it, with the number of the scale that its units are under."""

    atom: Atom
    scale: int

    @property
    def size(self) -> int:
        return self.atom.size


@dataclass(frozen=True, slots=True)
class Still:
    """Places whose order is part of the function."""

    size: int


@dataclass(frozen=True, slots=True)
class Free:
    """Places that all hold the same: any order is right."""

    size: int


@dataclass(frozen=True, slots=True)
class Prod:
    """Places numbered by all parts, the first one slowest."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        return math.prod(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Sum:
    """Parts behind one another."""

    parts: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


Term: TypeAlias = Atom | Leaf | Still | Free | Prod | Sum
NO_SCALE = 0


def prod(parts: list[Term] | tuple[Term, ...]) -> Term:
    """Return the normal product: flat, without parts of one place, sums outermost."""
    flat: list[Term] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Prod) else (part,):
            last = flat[-1] if flat else None
            if piece.size == 1:
                continue
            if isinstance(piece, Still) and isinstance(last, Still):
                flat[-1] = Still(last.size * piece.size)
            elif isinstance(piece, Free) and isinstance(last, Free):
                flat[-1] = Free(last.size * piece.size)
            else:
                flat.append(piece)
    if not flat:
        return Still(1)
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Sum):
        return concat([prod([part, *flat[1:]]) for part in flat[0].parts])
    return Prod(tuple(flat))


def concat(parts: list[Term] | tuple[Term, ...]) -> Term:
    """Return the normal sum: flat, without empty parts, neighbours that stay still in one."""
    flat: list[Term] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Sum) else (part,):
            last = flat[-1] if flat else None
            if piece.size == 0:
                continue
            if isinstance(piece, Still) and isinstance(last, Still):
                flat[-1] = Still(last.size + piece.size)
            else:
                flat.append(piece)
    if not flat:
        return Still(0)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def leaves(term: Term) -> Iterator[Term]:
    """Yield atoms, leaves, and places without one, in order."""
    if isinstance(term, Prod | Sum):
        for part in term.parts:
            yield from leaves(part)
    else:
        yield term


class Store:
    """All that is known about atoms; `version` rises whenever that becomes more."""

    def __init__(self) -> None:
        self.version = 0
        self.made: dict[int, tuple[str, int]] = {}
        """Atoms (by id) that a view made → the node and the axis of the result."""
        self._all: list[Atom] = []

    def atom(self, size: int, depends: tuple[Atom, ...] | None = None) -> Term:
        """Return a fresh atom, or a place that is alone."""
        if size <= 1:
            return Still(size)
        self._all.append(Atom(size, depends))  # kept, so that no id is used twice
        return self._all[-1]

    def normal(self, term: Term) -> Term:
        """Return `term` with every atom replaced by what it is bound to."""
        match term:
            case Leaf(atom, scale):
                if atom.bound is None:
                    return term
                bound = self.normal(atom)
                # a scale is only known of an atom as a whole
                return Leaf(bound, scale) if isinstance(bound, Atom) else self.dressed(bound)
            case Atom():
                root = term
                while isinstance(root.bound, Atom):
                    root = root.bound
                while term is not root:  # later look-ups are short
                    term.bound, term = root, term.bound
                return root if root.bound is None else self.normal(root.bound)
            case Prod(parts):
                return prod([self.normal(part) for part in parts])
            case Sum(parts):
                return concat([self.normal(part) for part in parts])
            case _:
                return term

    def dressed(self, term: Term) -> Term:
        """Return `term` with every atom a leaf without a scale."""
        match term:
            case Atom():
                return Leaf(term, NO_SCALE)
            case Prod(parts):
                return Prod(tuple(self.dressed(part) for part in parts))
            case Sum(parts):
                return Sum(tuple(self.dressed(part) for part in parts))
            case _:
                return term

    def bare(self, term: Term) -> Term:
        """Return the normal form of `term` without scales."""
        match term:
            case Leaf(atom):
                return self.normal(atom)
            case Prod(parts):
                return prod([self.bare(part) for part in parts])
            case Sum(parts):
                return concat([self.bare(part) for part in parts])
            case _:
                return self.normal(term)

    def atoms(self, term: Term) -> list[Atom]:
        """Return the atoms of `term` in order, each once."""
        found: dict[int, Atom] = {}
        for leaf in leaves(self.bare(term)):
            if isinstance(leaf, Atom):
                found.setdefault(id(leaf), leaf)
        return list(found.values())

    def depends(self, atom: Atom) -> tuple[Atom, ...]:
        """Return what an unbound atom depends on: no sums, not itself, outermost first."""
        found: list[Atom] = []
        for outer in atom.depends or ():
            term = self.bare(outer)
            if not isinstance(term, Sum):
                found += [a for a in self.atoms(term) if a is not atom and a not in found]
        return tuple(found)

    def _restrict(self, atom: Atom, allowed: tuple[Atom, ...]) -> None:
        """Take every dependence away that is not `allowed`."""
        if atom.depends is None:
            atom.depends = allowed
            self.version += 1
            return
        before = self.depends(atom)
        kept = tuple(outer for outer in before if outer in allowed)
        if kept != before:
            self.version += 1
        atom.depends = kept

    def forget(self, atom: Atom, outer: Atom) -> None:
        """Renumber the units of `atom` alike for all units of `outer`."""
        kept = tuple(
            other
            for other in self.depends(atom)
            if other is not outer and outer not in self.depends(other)
        )
        self._restrict(atom, kept)

    def pin(self, term: Term) -> None:
        """Keep the order of all places of `term`."""
        for atom in self.atoms(term):
            if not atom.pinned:
                atom.pinned = True
                self.version += 1

    def _bind(self, atom: Atom, term: Term) -> Term:
        """Make `atom` the `term` of its size; returns what it is now."""
        if isinstance(term, Atom):
            if term.depends is None:
                term.depends = atom.depends
            elif atom.depends is not None:
                self._restrict(term, self.depends(atom))
            term.pinned |= atom.pinned
            atom.bound = term
            self.version += 1
            return term
        if atom in self.atoms(term):
            self.pin(term)
            return term
        outer = None if atom.depends is None else self.depends(atom)
        inner = self.atoms(term)
        atom.bound = term
        self.version += 1
        if outer is not None:
            for part in inner:
                if part.depends is not None:
                    self._restrict(part, (*outer, *inner))
                else:
                    part.depends = outer
        if atom.pinned:
            self.pin(term)
        return term

    def _thawed(self, term: Term, depends: tuple[Atom, ...] | None) -> Term:
        """Return `term` with units in place of free places: something must carry them."""
        match term:
            case Free(size):
                return self.atom(size, depends)
            case Prod(parts):
                made: list[Term] = []
                before = list(depends or ())
                for part in parts:
                    made.append(self._thawed(part, tuple(before)))
                    before += self.atoms(part)
                return prod(made)
            case Sum(parts):
                return concat([self._thawed(part, depends) for part in parts])
            case _:
                return term

    def join(self, one: Term, other: Term) -> Term:
        """Make both the same; returns the term, without scales, that holds for both."""
        a, b = self.bare(one), self.bare(other)
        if a is b or a == b:
            return a
        if a.size != b.size:
            raise AssertionError(f"{a.size} places cannot be {b.size}")
        if isinstance(a, Free):
            return b
        if isinstance(b, Free):
            return a
        if isinstance(a, Still):
            self.pin(b)
            return self.bare(b)
        if isinstance(b, Still):
            self.pin(a)
            return self.bare(a)
        if isinstance(a, Atom):
            return self._bind(a, b if isinstance(b, Atom) else self._thawed(b, a.depends))
        if isinstance(b, Atom):
            return self._bind(b, self._thawed(a, b.depends))
        if isinstance(a, Sum) or isinstance(b, Sum):
            whole, parted = (b, a) if isinstance(a, Sum) else (a, b)
            assert isinstance(parted, Sum)
            first = parted.parts[0]
            left, right = self.cut(whole, first.size)
            rest = concat(parted.parts[1:])
            joined = self.join(first, left), self.join(rest, right)
            return self.bare(concat(joined))
        assert isinstance(a, Prod)
        assert isinstance(b, Prod)
        lead = min(a.parts[0].size, b.parts[0].size)
        (a_first, a_rest), (b_first, b_rest) = self.factor(a, lead), self.factor(b, lead)
        first, rest = self.join(a_first, b_first), self.join(a_rest, b_rest)
        return self.bare(prod([first, rest]))

    def factor(self, term: Term, lead: int) -> tuple[Term, Term]:
        """Return `term` as a product whose first part has `lead` places; they must divide it.

        What is no such product stays still.
        """
        term = self.normal(term)
        total = term.size
        if lead == 1:
            return Still(1), term
        if lead == total:
            return term, Still(1)
        match term:
            case Free():
                return Free(lead), Free(total // lead)
            case Leaf(atom) | (Atom() as atom):
                outer = self.depends(atom) if atom.depends is not None else None
                first = self.atom(lead, outer)
                assert isinstance(first, Atom)
                rest = self.atom(total // lead, (*(outer or ()), first))
                self._bind(atom, prod([first, rest]))
                return (first, rest) if term is atom else (self.dressed(first), self.dressed(rest))
            case Prod(parts):
                head, tail = parts[0], prod(parts[1:])
                if lead == head.size:
                    return head, tail
                if lead % head.size == 0:
                    more, rest = self.factor(tail, lead // head.size)
                    return prod([head, more]), rest
                if head.size % lead == 0:
                    first, more = self.factor(head, lead)
                    return first, prod([more, tail])
        self.pin(term)
        return Still(lead), Still(total // lead)

    def cut(self, term: Term, at: int) -> tuple[Term, Term]:
        """Return the first `at` places and the others; what cannot be cut there stays still."""
        term = self.normal(term)
        total = term.size
        if at == 0:
            return Still(0), term
        if at == total:
            return term, Still(0)
        match term:
            case Free():
                return Free(at), Free(total - at)
            case Leaf(atom) | (Atom() as atom):
                outer = self.depends(atom) if atom.depends is not None else None
                left, right = self.atom(at, outer), self.atom(total - at, outer)
                self._bind(atom, concat([left, right]))
                if term is atom:
                    return left, right
                return self.dressed(left), self.dressed(right)
            case Sum(parts):
                head, tail = parts[0], concat(parts[1:])
                if at >= head.size:
                    more, rest = self.cut(tail, at - head.size)
                    return concat([head, more]), rest
                left, right = self.cut(head, at)
                return left, concat([right, tail])
            case Prod(parts):
                inner = total // parts[0].size
                if at % inner == 0:
                    left, right = self.cut(parts[0], at // inner)
                    return prod([left, *parts[1:]]), prod([right, *parts[1:]])
        self.pin(term)
        return Still(at), Still(total - at)
