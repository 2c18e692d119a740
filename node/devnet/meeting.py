"""Where the agents of one process wait for one another, so that all trade in one round.

Agents of a real market keep no common clock. An experiment wants one: in each round every
agent has offered before any has trials, all know what their trials came to before any bids
(a seller's ask is made of its own), and all have bought before any trains on, as in the
papers' loops. Whoever goes away is waited for no longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

STAGES: Final = ("offered", "tried", "traded")


class Meeting:
    """Holds each member at a stage of a round until all that are present have come so far."""

    def __init__(self, members: Iterable[str]) -> None:
        self._at: dict[str, tuple[int, int]] = dict.fromkeys(members, (0, 0))
        self._moved = trio.Event()

    @property
    def members(self) -> frozenset[str]:
        """Whoever has not left."""
        return frozenset(self._at)

    async def arrive(self, member: str, round_: int, stage: str) -> int:
        """Wait until every member is at this stage of this round, or further.

        Returns how many there are besides this one.
        """
        here = (round_, STAGES.index(stage))
        if member in self._at:
            self._at[member] = here
            self._tell()
        while any(place < here for place in self._at.values()):
            await self._moved.wait()
        return len(self._at) - (member in self._at)

    def leave(self, member: str) -> None:
        """Wait for a member no longer."""
        if self._at.pop(member, None) is not None:
            self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
