"""What the pool has lost below a nonce that waits: nothing after it is mined before it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import trio

from node.chain.errors import NonceTooLowError, TransactionRefusedError, UnfundedAccountError
from node.journal import Journal
from node.protocol.events import Step


async def fill_gaps(
    journal: Journal, free: int, nonce: int, broadcast: Callable[[bytes], None]
) -> None:
    """Offer again what was signed for the nonces from `free` on and below `nonce`.

    Of secrets nothing leaves here: whoever sends them sees to the time first. Raises
    `ChainUnavailableError`.
    """
    for row in journal.unmined_transactions(free, nonce):
        if row.step == Step.REVEAL.value:
            continue
        with contextlib.suppress(NonceTooLowError, TransactionRefusedError, UnfundedAccountError):
            await trio.to_thread.run_sync(broadcast, row.raw)
