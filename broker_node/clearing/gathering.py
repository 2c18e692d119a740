"""Who is to be in the next round: agents that said so, until all are there or time is up."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from node.protocol.offer import Offer
from node.protocol.pooling import JoinRound
from node.protocol.types import Address, Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """An agent, with the model that it brought."""

    base_digest: Digest
    offer: Offer
    statement: bytes
    asked: JoinRound


class Gathering:
    """Collects agents, one a account, from the first one on for `seconds` or until `expected`."""

    def __init__(self, *, expected: int, seconds: float, most: int) -> None:
        """`most`: how many a round may have; whoever comes after that is for the next one."""
        self._expected, self._seconds, self._most = min(expected, most), seconds, most
        self._joined: dict[Address, Joined] = {}
        self._changed = trio.Event()

    def add(self, joined: Joined) -> bool:
        """Count an agent in, in place of what it said before; False if there is no room."""
        if joined.offer.seller not in self._joined and len(self._joined) >= self._most:
            return False
        self._joined[joined.offer.seller] = joined
        self._changed.set()
        return True

    async def complete(self) -> list[Joined]:
        """Wait for the next round's agents; return them by rising account, and begin anew."""
        while not self._joined:
            self._changed = trio.Event()
            await self._changed.wait()
        with trio.move_on_after(self._seconds):
            while len(self._joined) < self._expected:
                self._changed = trio.Event()
                await self._changed.wait()
        found = sorted(self._joined.values(), key=lambda one: one.offer.seller.lower())
        self._joined = {}
        return found
