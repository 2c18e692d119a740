"""Sends an account's calls of a clearing house: saved before they are sent, and paid for once.

As `treasury`, for rounds without goods: each attempt is journalled with its nonce, and as long as
one may still be mined no other is signed at another nonce. What is not mined for long is signed
again at its own, for the chain's present fees: of the two one is mined at most. What the pool lost
below that nonce is offered again. One transaction of the account is on its way at a time, whoever
sends it; that is what `turn` is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from node.chain.clearing import Web3ClearingHouse
from node.chain.errors import (
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.rounds import HouseCall
from node.chronicle import Saved, Sent, TransactionDelayed, TransactionMined, TransactionRefused
from node.journal import Journal, TransactionRow
from node.observe import Observer
from node.protocol.types import Digest
from node.settlement.gaps import fill_gaps

T = TypeVar("T")
POLL_SECONDS: Final = 0.1
MINING_PATIENCE: Final = 60.0
"""After so long without being mined, the attempt is signed again with the chain's present fees."""
FIRST_BACKOFF: Final = 0.2
REOFFER_SECONDS: Final = 10.0
LONGEST_BACKOFF: Final = 5.0
TAKEN_SECONDS: Final = 3.0
"""For so long after its nonce was found taken, an attempt may yet be seen to be what took it."""
DONE: Final = ""
UNWANTED: Final = "unwanted"
"""The caller says that it must not happen any more."""
Question = Callable[[Web3ClearingHouse], T]


class Cashier:
    """The one sender of calls of `house` by its account."""

    def __init__(
        self, house: Web3ClearingHouse, journal: Journal, observer: Observer, turn: trio.Lock
    ) -> None:
        self.house: Final = house
        self._journal = journal
        self._observer = observer
        self._turn = turn
        self._taken: dict[int, float] = {}
        """When a nonce of an attempt was first found taken, by nonce."""

    async def ask(self, question: Question[T]) -> T:
        """Ask the chain in a thread, again and again until it answers."""
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await trio.to_thread.run_sync(question, self.house)
            except ChainUnavailableError:
                await trio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def carry_out(
        self,
        round_id: Digest,
        step: str,
        call: HouseCall,
        *,
        done: Question[bool],
        wanted: Callable[[], bool] = lambda: True,
    ) -> str:
        """Do a step of a round, however often the chain or this process goes away meanwhile.

        `done` asks the chain whether the step is needed no more, `wanted` the caller whether it may
        still be sent. Returns `DONE`, `UNWANTED`, or the name of the house's refusal.
        """
        backoff = FIRST_BACKOFF
        while True:
            try:
                async with self._turn:
                    ended = await self._attempt(round_id, step, call, done, wanted)
                if ended is not None:
                    return ended
            except NonceTooLowError:
                pass  # the next attempt finds these bytes dead, and signs others
            except TransactionRefusedError as error:
                self._refused(round_id, step, str(error))
                return DONE if await self.ask(done) else error.reason
            except (ChainUnavailableError, UnfundedAccountError) as error:
                if not wanted():
                    return UNWANTED
                self._observer.emit(
                    TransactionDelayed(trade_id=round_id, step=step, reason=str(error))
                )
            await trio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _attempt(
        self,
        round_id: Digest,
        step: str,
        call: HouseCall,
        done: Question[bool],
        wanted: Callable[[], bool],
    ) -> str | None:
        """One try under the account's lock; None asks for another."""
        for row in self._unresolved(round_id, step):
            await self._look(row)
        if await trio.to_thread.run_sync(done, self.house):
            return DONE
        if not wanted():
            return UNWANTED
        waiting = []
        for row in self._unresolved(round_id, step):
            try:
                await self._send(row)
            except NonceTooLowError:
                # by this very attempt, perhaps, mined since we looked: its receipt may come later
                if not self._taken_for_long(row.nonce):
                    return None
                continue
            except TransactionRefusedError:
                continue  # it can be mined no more
            waiting.append(row)
        if not waiting:
            nonce = await trio.to_thread.run_sync(self.house.next_nonce)
            row = await self._sign(round_id, step, call, nonce)
            if not wanted():
                return UNWANTED
            await self._send(row)
            waiting = [row]
        ended = await self._see_mined(waiting)
        if ended is None and wanted():
            await self._replace(waiting[-1], call, wanted)
        return ended

    def _taken_for_long(self, nonce: int) -> bool:
        """Note that a nonce is taken; whether the chain had time to tell by which of ours."""
        now = trio.current_time()
        return now - self._taken.setdefault(nonce, now) >= TAKEN_SECONDS

    async def _replace(
        self, stuck: TransactionRow, call: HouseCall, wanted: Callable[[], bool]
    ) -> None:
        """Outbid our own stuck transaction, if the chain's fees have risen enough for that."""
        row = await self._sign(stuck.trade_id, stuck.step, call, stuck.nonce)
        if row.hash == stuck.hash or not wanted():
            return
        try:
            await self._send(row)
        except (NonceTooLowError, TransactionRefusedError) as error:
            self._observer.emit(
                TransactionDelayed(trade_id=row.trade_id, step=row.step, reason=str(error))
            )

    async def _fill_gaps(self, nonce: int) -> None:
        free = await trio.to_thread.run_sync(self.house.next_nonce)
        await fill_gaps(self._journal, free, nonce, self.house.broadcast)

    async def _see_mined(self, waiting: list[TransactionRow]) -> str | None:
        began = offered = trio.current_time()
        while (now := trio.current_time()) < began + MINING_PATIENCE:
            for row in waiting:
                ended = await self._look(row)
                if ended is not None:
                    return ended
            if now > offered + REOFFER_SECONDS:
                offered = now
                await self._fill_gaps(min(row.nonce for row in waiting))
            await trio.sleep(POLL_SECONDS)
        return None

    async def _look(self, row: TransactionRow) -> str | None:
        """Return how a transaction ended, None while it has not been mined."""
        found = await trio.to_thread.run_sync(self.house.outcome, row.hash)
        if found is None:
            return None
        self._journal.mark_mined(
            row.hash, gas=found.gas_used, block=found.block, succeeded=found.succeeded
        )
        self._observer.emit(
            TransactionMined(
                trade_id=row.trade_id,
                step=row.step,
                hash=row.hash,
                succeeded=found.succeeded,
                gas=found.gas_used,
            )
        )
        if found.succeeded:
            return DONE
        self._refused(row.trade_id, row.step, found.revert or "reverted")
        return found.revert or "reverted"

    async def _send(self, row: TransactionRow) -> None:
        await trio.to_thread.run_sync(self.house.broadcast, row.raw)
        self._observer.emit(Sent(trade_id=row.trade_id, step=row.step))

    async def _sign(
        self, round_id: Digest, step: str, call: HouseCall, nonce: int
    ) -> TransactionRow:
        """Sign and journal an attempt; the same bytes as before are the same attempt."""
        signed = await trio.to_thread.run_sync(self.house.sign, call, nonce)
        rows = self._journal.transactions(round_id, step)
        known = next((row for row in rows if row.hash == signed.hash), None)
        if known is not None:
            return known
        row = TransactionRow(
            trade_id=round_id,
            step=step,
            attempt=len(rows),
            nonce=nonce,
            hash=signed.hash,
            raw=signed.raw,
        )
        self._journal.save_transaction(row)
        self._observer.emit(Saved(trade_id=round_id, step=step))
        return row

    def _unresolved(self, round_id: Digest, step: str) -> list[TransactionRow]:
        rows = self._journal.transactions(round_id, step)
        return [row for row in rows if row.succeeded is None]

    def _refused(self, round_id: Digest, step: str, reason: str) -> None:
        self._observer.emit(TransactionRefused(trade_id=round_id, step=step, reason=reason))
