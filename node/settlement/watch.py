"""Tells what the escrow did, block by block, as deep as the node's confirmations.

The watermark (the last block that was told) is journalled after its events were taken in,
so a restart may tell a block twice but never skips one; machines ignore what is not news.
When the chain cannot be reached the watch says so once, backs off, and goes on.

What is not that deep yet is shown too, to whoever wants a glimpse: as often as there is a new
head, without a promise that it is shown at all, or stays.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from node.chain.errors import ChainUnavailableError
from node.chain.port import Block, Escrow, EscrowEvent
from node.chronicle import ChainAway, ChainBack
from node.journal import Journal
from node.observe import Observer

POLL_SECONDS: Final = 0.25
LONGEST_BACKOFF: Final = 5.0
BLOCKS_A_CALL: Final = 500


class ChainWatch:
    """Follows one escrow for one node."""

    def __init__(
        self, escrow: Escrow, journal: Journal, observer: Observer, *, confirmations: int
    ) -> None:
        self.escrow = escrow
        self.journal = journal
        self.observer = observer
        self.confirmations = confirmations
        self.up = trio.Event()
        """Set once the chain has answered."""
        self.anchored = trio.Event()
        """Set once it is known from which block on events are told; for good, once it is."""
        if isinstance(journal.recall("watermark"), int):
            self.anchored.set()
        self._heads: deque[Block] = deque(maxlen=4_096)
        self._glimpsed: Block | None = None
        self._rewind_by = 0
        """Blocks to tell again. Taken up between two steps: one that is under way would write
        its own watermark over it."""

    async def run(
        self,
        tell: Callable[[EscrowEvent], Awaitable[None]],
        tick: Callable[[Block], Awaitable[None]],
        glimpse: Callable[[EscrowEvent], Awaitable[None]] | None = None,
    ) -> None:
        """Tell each event in chain order, then the block up to which all was told. For ever."""
        backoff = POLL_SECONDS
        while True:
            try:
                await self._step(tell, tick, glimpse)
                if backoff != POLL_SECONDS:
                    self.observer.emit(ChainBack())
                backoff = POLL_SECONDS
                self.up.set()
            except ChainUnavailableError as error:
                if backoff == POLL_SECONDS:
                    self.observer.emit(ChainAway(reason=str(error)))
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            await trio.sleep(backoff)

    async def _step(
        self,
        tell: Callable[[EscrowEvent], Awaitable[None]],
        tick: Callable[[Block], Awaitable[None]],
        glimpse: Callable[[EscrowEvent], Awaitable[None]] | None,
    ) -> None:
        head = await trio.to_thread.run_sync(self.escrow.head)
        if not self._heads or head.number > self._heads[-1].number:
            self._heads.append(head)
        if glimpse is not None:
            await self._show(head, glimpse)
        deep = head.number - self.confirmations
        done = self._watermark(deep)
        if done > deep:
            return  # an endpoint behind the one that was asked before: nothing new is known
        while done < deep:
            upto = min(deep, done + BLOCKS_A_CALL)
            for event in await trio.to_thread.run_sync(self.escrow.events, done + 1, upto):
                await tell(event)
            done = upto
            self.journal.remember("watermark", done)
        # the chain's time at the last block that is deep enough and was told: never a later one's
        told = next((block for block in reversed(self._heads) if block.number <= done), None)
        if told is not None:
            await tick(told)

    async def _show(self, head: Block, glimpse: Callable[[EscrowEvent], Awaitable[None]]) -> None:
        """Show what is above the confirmations; an endpoint without those logs holds up nothing."""
        first = max(head.number - self.confirmations + 1, 0)
        if head == self._glimpsed or first > head.number:
            return
        with contextlib.suppress(ChainUnavailableError):
            for event in await trio.to_thread.run_sync(self.escrow.events, first, head.number):
                await glimpse(event)
            self._glimpsed = head

    def rewind(self, blocks: int) -> None:
        """Tell the last blocks once more, from the next step on."""
        self._rewind_by = max(blocks, self._rewind_by)

    def _watermark(self, deep: int) -> int:
        mark = self.journal.recall("watermark")
        if isinstance(mark, int):
            if self._rewind_by:
                mark, self._rewind_by = max(0, mark - self._rewind_by), 0
                self.journal.remember("watermark", mark)
            return mark
        self.journal.remember("watermark", max(deep, 0))
        self.anchored.set()
        return max(deep, 0)
