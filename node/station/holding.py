"""What we say to a broker first, and to the market once that has heard it.

A broker that was told of weights asks us for them before it answers: then it has heard, and the
statement is published, while the broker still fetches and verifies. If it does not ask, we publish
when it has answered or was given up, and whatever it does `HOLD_SECONDS` after we began.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from node.protocol.types import Digest

HOLD_SECONDS: Final = 30.0
"""How long a statement waits for a broker, from the first that is told of it.

As long as we ask a broker again that cannot fetch from us. An offer that waits is not sold: a
broker that never answers, or says for ever that it is busy, keeps no seller out of the market. But
whoever reads that offer in gossip then may be heard with its root before its seller.
"""
MAX_HEARD: Final = 64
"""Weights that were asked for and not published yet; of one more, the end of its submission."""


class HeldBack:
    """The statements of one node that wait for a broker, by the root of their weights."""

    def __init__(self, publish: Callable[[bytes], Awaitable[None]]) -> None:
        self._publish = publish
        self._by_root: dict[Digest, bytes] = {}
        self._heard, self._due = trio.open_memory_channel[Digest](MAX_HEARD)
        self._begun, self._ends = trio.open_memory_channel[tuple[float, Digest, bytes]](math.inf)
        """When a hold is over, in trio's time: all last alike, so that the first is over first."""

    def __contains__(self, data: object) -> bool:
        return data in self._by_root.values()

    @asynccontextmanager
    async def holding(self, root: Digest, data: bytes) -> AsyncIterator[None]:
        """Hold a statement back while a broker is told of it, for at most `HOLD_SECONDS`.

        It is published at the end if it was not before. Cut off, it is left to whoever says again
        what is good.
        """
        self._by_root[root] = data
        self._begun.send_nowait((trio.current_time() + HOLD_SECONDS, root, data))
        try:
            yield
        except BaseException:
            self._by_root.pop(root, None)
            raise
        await self._let_go(root)

    def asked_for(self, root: Digest) -> None:
        """Hear that a broker of ours asks for weights: it knows of them."""
        if root in self._by_root:
            try:
                self._heard.send_nowait(root)
            except trio.WouldBlock:
                return  # it is published at the end

    async def run(self) -> None:
        """Publish what was asked for, or has waited long enough. For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_overdue)
            async for root in self._due:
                await self._let_go(root)

    async def _publish_overdue(self) -> None:
        async for until, root, data in self._ends:
            await trio.sleep_until(until)
            if self._by_root.get(root) == data:  # and not a later one of the same weights
                await self._let_go(root)

    async def _let_go(self, root: Digest) -> None:
        data = self._by_root.pop(root, None)
        if data is not None:
            await self._publish(data)
