"""Which appearances of units may be scaled together: signed classes of scale variables.

Every appearance of an atom in a value stands under a scale s, one number for each unit. A class
holds variables that are equal, or inverse, to one another; some operations let only positive
scales pass, some only signs, most none at all (then s = 1 for the class, for good).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.params.derivation.terms import NO_SCALE


@dataclass(slots=True)
class Passes:
    """What the operations that a class has met let through."""

    positive: bool = True
    sign: bool = True
    linear: bool = True


class Scales:
    """Scale variables by number; a negative number is the inverse, `NO_SCALE` the scale 1."""

    def __init__(self) -> None:
        self._parent = [NO_SCALE]
        self._inverse = [False]
        self._dead = [True]
        self._passes = [Passes(positive=False, sign=False, linear=False)]

    def fresh(self) -> int:
        """Return a variable of its own."""
        self._parent.append(len(self._parent))
        self._inverse.append(False)
        self._dead.append(False)
        self._passes.append(Passes())
        return len(self._parent) - 1

    def root(self, scale: int) -> int:
        """Return the class, signed: equal roots are equal scales, opposite ones inverse."""
        inverse = scale < 0
        at = abs(scale)
        while self._parent[at] != at:
            inverse ^= self._inverse[at]
            at = self._parent[at]
        if self._dead[at]:
            return NO_SCALE
        return -at if inverse else at

    def passes(self, scale: int) -> Passes:
        """Return what may be done with a class."""
        return self._passes[abs(self.root(scale))]

    def kill(self, scale: int) -> int:
        """Allow no scale but 1; returns `NO_SCALE`."""
        self._dead[abs(self.root(scale))] = True
        return NO_SCALE

    def restrict(
        self, scale: int, *, positive: bool = True, sign: bool = True, linear: bool = True
    ) -> int:
        """Let only that through which is True; returns the scale."""
        root = abs(self.root(scale))
        if root != NO_SCALE:
            passes = self._passes[root]
            passes.positive &= positive
            passes.sign &= sign
            passes.linear &= linear
            if not passes.positive and not passes.sign:
                self._dead[root] = True
        return scale

    def same(self, one: int, other: int) -> int:
        """Make two scales equal; returns it."""
        a, b = self.root(one), self.root(other)
        if a == b:
            return a
        if NO_SCALE in {a, b} or a == -b:
            self.kill(a)
            return self.kill(b)
        low, high = sorted((abs(a), abs(b)))
        self._parent[high] = low
        self._inverse[high] = (a < 0) != (b < 0)
        mine, theirs = self._passes[low], self._passes[high]
        return self.restrict(
            one,
            positive=theirs.positive and mine.positive,
            sign=theirs.sign and mine.sign,
            linear=theirs.linear and mine.linear,
        )

    def opposite(self, one: int, other: int) -> None:
        """Make two scales inverse to one another."""
        self.same(one, -other)
