"""What we say to a broker first, and to the market once that has heard it.

A broker that was told of weights asks us for them before it answers: then it has heard, and the
statement is published, while the broker still fetches and verifies. If it does not ask, we publish
when it has answered, or was given up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from node.protocol.types import Digest

MAX_HEARD: Final = 64
"""Weights that were asked for and not published yet; of one more, the end of its submission."""


class HeldBack:
    """The statements of one node that wait for a broker, by the root of their weights."""

    def __init__(self, publish: Callable[[bytes], Awaitable[None]]) -> None:
        self._publish = publish
        self._by_root: dict[Digest, bytes] = {}
        self._heard, self._due = trio.open_memory_channel[Digest](MAX_HEARD)

    def __contains__(self, data: object) -> bool:
        return data in self._by_root.values()

    @asynccontextmanager
    async def holding(self, root: Digest, data: bytes) -> AsyncIterator[None]:
        """Hold a statement back while a broker is told of it; publish it at the end, at the latest.

        Cut off, it is left to whoever says again what is good.
        """
        self._by_root[root] = data
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
        """Publish what was asked for. For ever."""
        async for root in self._due:
            await self._let_go(root)

    async def _let_go(self, root: Digest) -> None:
        data = self._by_root.pop(root, None)
        if data is not None:
            await self._publish(data)
