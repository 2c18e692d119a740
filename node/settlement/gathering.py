"""Deposits of one account that wait for one another, so that one transaction pays for all of them.

A deposit whose goods are here waits for those of the account that still fetch theirs, or are
about to be agreed on, but not for long: a seller that keeps its goods back holds up no other
trade by more than `GATHER_SECONDS`, nor past half of the time that there is to fund it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from node.clock import Clock
from node.protocol.events import Step
from node.protocol.purchase import FUND_MARGIN, PurchaseState
from node.settlement.trade import Trade

GATHER_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05


class Gathering:
    """The deposits of one account."""

    def __init__(self, trades: Callable[[], Iterable[Trade]], clock: Clock) -> None:
        """`trades`: all that are not over."""
        self._trades = trades
        self._clock = clock
        self._open = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold deposits back while more purchases are agreed on."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def wait(self, trade: Trade, step: Step) -> None:
        """Return once all deposits can be made that this one is to be made with.

        No other step waits.
        """
        quote = trade.quote
        if quote is None or step is not Step.FUND:
            return
        left = quote.fund_by - FUND_MARGIN - self._clock()
        with trio.move_on_after(max(0.0, min(GATHER_SECONDS, left / 2))):
            while True:
                if not self._open and not any(map(_fetches, self._trades())):
                    return
                await trio.sleep(POLL_SECONDS)


def _fetches(trade: Trade) -> bool:
    return trade.machine.state is PurchaseState.FETCHING
