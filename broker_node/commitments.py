"""Who said first that it has a model, and who has shown it: what a broker keeps of each account.

A commitment counts from when this broker first heard of it, and of one second in the order in which
it did: whatever its seller says of the time is not asked, for a root is public as soon as it is
gossiped, and to say that one has it costs nothing. So nobody has it by saying so, either: whoever
has *shown* the bytes, from its own peer, comes before all who have not, however early those were
heard. Who would be the first of a root is asked to show them, also where they are on the shelf: the
bytes themselves, for the hashes of their leaves are given to anybody who names a trade.

All is in the journal, and bounded: of one root the earliest `MAX_OF_ROOT` are kept, and of all
`MAX_COMMITMENTS`, where those go first that cost nobody a held model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from typing import Final, TypeAlias

from node.journal import Journal
from node.protocol.types import Address, Digest

MAX_COMMITMENTS: Final = 4_096
MAX_OF_ROOT: Final = 8
"""Commitments to one root, the earliest: who comes after so many others is later than they are."""
Owned: TypeAlias = tuple[Address, Digest]
"""An account, and the root of what it offers."""
_Heard: TypeAlias = tuple[int, int]
"""The second, and a turn within it: no two commitments have one."""
Place: TypeAlias = tuple[float, int, int]
"""Shown or said, and when it was heard: the less, the earlier."""
_SHOWN, _SAID = 0, 1
_PREFIX: Final = "commitment/"


class Commitments:
    """The commitments in one broker's journal; iterated, the accounts and roots."""

    def __init__(self, journal: Journal, held: Callable[[], Container[Digest]]) -> None:
        """`held`: the roots of the models that are on the shelf now."""
        self._journal = journal
        self._held = held
        self._heard: dict[Owned, _Heard] = {}
        self._shown: set[Owned] = set()
        for name, value in journal.facts(_PREFIX).items():
            match value:
                case [int(heard), int(turn), int(said)]:
                    self._heard[owned(_PREFIX, name)] = (heard, turn)
                    self._shown |= {owned(_PREFIX, name)} if said == _SHOWN else set()
                case [int(heard), int(turn)]:  # of before bytes had to be shown
                    self._heard[owned(_PREFIX, name)] = (heard, turn)
                case int(heard):  # of before there were turns
                    self._heard[owned(_PREFIX, name)] = (heard, 0)
        self._next = 1 + max((turn for _, turn in self._heard.values()), default=0)

    def __contains__(self, key: object) -> bool:
        return key in self._heard

    def __iter__(self) -> Iterator[Owned]:
        return iter(self._heard)

    def place(self, key: Owned) -> Place:
        """Return an account's place among all that have a root; what is not kept came after all."""
        if key not in self._heard:
            return (math.inf, 0, 0)
        return (_SHOWN if key in self._shown else _SAID, *self._heard[key])

    def unshown(self, key: Owned) -> bool:
        """Whether an account has yet to show bytes that it might have been the first to have.

        Not asked of whoever comes after one that has shown them, nor where nobody else says that
        it has them.
        """
        if key not in self._heard or key in self._shown:
            return False
        rivals = [one for one in self._heard if one[1] == key[1] and one != key]
        earlier = (one for one in rivals if self._heard[one] < self._heard[key])
        return bool(rivals) and self._shown.isdisjoint(earlier)

    def note(self, key: Owned, heard: int, *, shown: bool = False) -> None:
        """Keep that an account was heard to have a root, or that it has shown it."""
        new = key not in self._heard
        if not new and (key in self._shown or not shown):
            return
        at = (heard, self._next) if new else self._heard[key]
        said = _SHOWN if shown else _SAID
        if new and not self._has_room(key[1], (said, *at)):
            return
        self._next += new
        self._heard[key] = at
        if shown:
            self._shown.add(key)
        self._journal.remember(fact(_PREFIX, key), [*at, said])

    def _has_room(self, root: Digest, place: Place) -> bool:
        """Whether a new commitment is kept, once others have given way to it."""
        same = [one for one in self._heard if one[1] == root]
        if len(same) >= MAX_OF_ROOT:
            latest = max(same, key=self.place)
            if self.place(latest) <= place:
                return False
            self._forget(latest)
        while len(self._heard) >= MAX_COMMITMENTS:
            self._forget(self._dispensable())
        return True

    def _dispensable(self) -> Owned:
        """Return the oldest that costs nobody a held model: of none, or not its first; else any."""
        held, order = self._held(), sorted(self._heard, key=self._heard.__getitem__)
        firsts: dict[Digest, Owned] = {}
        for one in sorted(order, key=self.place):
            firsts.setdefault(one[1], one)
        second = (one for one in order if firsts[one[1]] != one)
        return next((one for one in order if one[1] not in held), next(second, order[0]))

    def _forget(self, key: Owned) -> None:
        del self._heard[key]
        self._shown.discard(key)
        self._journal.forget([fact(_PREFIX, key)])


def fact(prefix: str, key: Owned) -> str:
    """Return the name in the journal of what is known of an account's model."""
    return f"{prefix}{key[0]}/{key[1].hex()}"


def owned(prefix: str, name: str) -> Owned:
    """Return of whose model a name in the journal is."""
    account, _, root = name.removeprefix(prefix).partition("/")
    return Address(account), Digest(bytes.fromhex(root))
