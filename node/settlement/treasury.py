"""Sends an account's transactions: saved before they are sent, and paid for once.

One transaction of the account is on its way at a time. Each attempt is journalled with its
nonce, so that after a crash, or an answer that got lost, there are only three cases: it was
mined (its receipt says so), it may still be mined (the same bytes are sent again, which is
fine wherever they are known), or it cannot be any more, since another transaction took its
nonce. Only then is a new one signed; until then a second one would be a second payment.

What is not mined for long is signed again at its own nonce, for the chain's present fees:
of two transactions with one nonce at most one is ever mined. What the pool lost below that
nonce is offered again too, or nothing after it would ever be mined.

Deposits that wait for one another are made in one transaction, which is journalled in each of
their trades: whichever is asked first, after whatever crash, finds there what may still be mined
for it. One joins only where nothing was signed for it but at that very nonce, so that no two of
these are mined. Where all together are refused, or too dear, each goes on alone.

Reveals and disputes have the first turn: each has a deadline after which its seller loses the
sale, or its buyer the money.

Before each attempt the chain is asked whether the step is needed at all: somebody else may
have finalized or refunded, and a transaction that would revert only costs gas.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import trio

from node.chain.errors import (
    AnswerLostError,
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import (
    Call,
    Escrow,
    Fund,
    FundMany,
    TransactionOutcome,
    Withdraw,
)
from node.chronicle import Saved, Sent, TransactionDelayed, TransactionMined, TransactionRefused
from node.journal import Journal, TransactionRow
from node.observe import Observer
from node.protocol.events import Step
from node.protocol.types import Digest
from node.settlement.errand import DONE_IN, NEEDED_IN, PATIENT, URGENT, Errand
from node.settlement.gaps import fill_gaps

T = TypeVar("T")

POLL_SECONDS: Final = 0.1
MINING_PATIENCE: Final = 60.0
"""After so long without being mined, the attempt is signed again with the chain's present fees."""
YIELD_SECONDS: Final = 15.0
"""So long after it was sent, what is not mined lets an urgent step have its turn."""
REOFFER_SECONDS: Final = 10.0
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0
FIRST_REVERT_BACKOFF: Final = 60.0
LONGEST_REVERT_BACKOFF: Final = 3_600.0
"""A revert was paid for: what is tried again for long must cost next to nothing."""


MOST_TOGETHER: Final = 16
"""Deposits in one transaction: what a block, and whoever passes it on, takes anywhere."""


class Ending(enum.Enum):
    """How a step ended."""

    DONE = "done"
    """Mined, or the chain shows that it was done already."""
    UNWANTED = "unwanted"
    """The caller or the chain says that it must not, or need not, happen any more."""
    REVERTED = "reverted"
    """The contract refused it."""


class Treasury:
    """The one sender of transactions of `escrow.account`."""

    def __init__(self, escrow: Escrow, journal: Journal, observer: Observer) -> None:
        self.escrow = escrow
        self.journal = journal
        self.observer = observer
        self._turn = trio.Lock()
        self._urgent_waiting = 0
        self._gathered: dict[Digest, Errand] = {}
        """Deposits that may be made with others."""

    @property
    def turn(self) -> trio.Lock:
        """Held while a transaction of the account is on its way, whoever sends it."""
        return self._turn

    async def ask(self, question: Callable[[Escrow], T]) -> T:
        """Ask the chain in a thread. Raises `ChainUnavailableError` when it is down."""
        return await trio.to_thread.run_sync(question, self.escrow)

    async def carry_out(
        self,
        trade_id: Digest,
        step: Step,
        call: Call,
        *,
        wanted: Callable[[], bool],
        sent: Callable[[], None] = lambda: None,
        gather: Callable[[], Awaitable[None]] | None = None,
    ) -> Ending:
        """Do `step` of a trade, however often the chain or this process goes away meanwhile.

        `wanted` is asked right before each send; a caller uses it to hold back a secret.
        `sent` is called each time that a transaction of the step has left. A deposit is made with
        others that wait, once `gather` returns, or they are made with it before.
        """
        errand = Errand(trade_id, step, call, wanted, sent)
        try:
            if step is Step.FUND and gather is not None:
                self._gathered[trade_id] = errand
                await gather()
            return await self._see_to(errand)
        finally:
            self._gathered.pop(trade_id, None)

    async def _see_to(self, errand: Errand) -> Ending:
        step, wanted = errand.step, errand.wanted
        backoff = FIRST_BACKOFF
        after_revert = FIRST_REVERT_BACKOFF
        while True:
            try:
                async with self._turn_for(step):
                    ending = await self._attempt(errand)
                if ending is Ending.REVERTED and step in PATIENT:
                    await trio.sleep(after_revert)
                    after_revert = min(2 * after_revert, LONGEST_REVERT_BACKOFF)
                elif ending is not None:
                    return ending
            except NonceTooLowError:
                pass  # the next attempt finds these bytes dead, and signs others
            except TransactionRefusedError as error:
                self._refused(errand, error)
                standing = await self._until_up(lambda: self._standing(errand))
                if standing is not None:
                    return standing
                # a secret is tried to be told for as long as it may be: an endpoint can lag
                if step not in PATIENT and not (step is Step.REVEAL and wanted()):
                    return Ending.REVERTED
            except (ChainUnavailableError, UnfundedAccountError) as error:
                if not wanted():
                    return Ending.UNWANTED
                self._delayed(errand, error)
            await trio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    @contextlib.asynccontextmanager
    async def _turn_for(self, step: Step) -> AsyncIterator[None]:
        """Hold the account's lock; who gets it while an urgent step waits goes to the end again."""
        if step in URGENT:
            self._urgent_waiting += 1
            try:
                await self._turn.acquire()
            finally:
                self._urgent_waiting -= 1
        else:
            await self._turn.acquire()
            while self._urgent_waiting:
                self._turn.release()
                await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    async def _attempt(self, errand: Errand) -> Ending | None:
        """One try under the account's lock; None asks for another."""
        standing = await self._standing(errand)
        if standing is not None:
            return standing
        if not errand.wanted():
            return Ending.UNWANTED
        waiting, unfunded = await self._send_again(errand)
        if not waiting:
            if not errand.wanted():
                return Ending.UNWANTED
            if unfunded is not None:  # at its own nonce: of the two one is mined at most
                nonce = unfunded.nonce
            else:
                nonce = await self.ask(lambda escrow: escrow.next_nonce())
            row = await self._sign(errand, nonce)
            if not errand.wanted():  # signing asked the chain for its fees: time has passed
                return Ending.UNWANTED
            try:
                await self._send(errand, row)
            except TransactionRefusedError as error:
                if not self._part(row):
                    raise
                self._refused(errand, error)
                return None
            waiting = [row]
        ending = await self._see_mined(errand, waiting)
        if ending is None and errand.wanted():
            await self._replace(errand, waiting[-1])
        return ending

    async def _send_again(
        self, errand: Errand
    ) -> tuple[list[TransactionRow], TransactionRow | None]:
        """Send what was signed before.

        Returns what the chain took, and may still mine; and the last that was too dear for the
        account, to be signed anew: an urgent step does not wait for money while fees fall, or a
        smaller limit of gas would do, nor a deposit for what others cost. Others raise
        `UnfundedAccountError`.
        """
        waiting, unfunded = [], None
        for row in self._unresolved(errand):
            if not errand.wanted():
                break
            try:
                await self._send(errand, row)
            except NonceTooLowError:
                continue
            except TransactionRefusedError:
                self._part(row)
                continue
            except UnfundedAccountError:
                if errand.step not in URGENT and not self._part(row):
                    raise
                unfunded = row
                continue
            waiting.append(row)
        return waiting, unfunded

    async def _replace(self, errand: Errand, stuck: TransactionRow) -> None:
        """Outbid our own stuck transaction, if the chain's fees have risen enough for that."""
        row = await self._sign(errand, stuck.nonce)
        if row.hash == stuck.hash or not errand.wanted():
            return
        try:
            await self._send(errand, row)
        except (NonceTooLowError, TransactionRefusedError) as error:
            self._delayed(errand, error)

    async def _send(self, errand: Errand, row: TransactionRow) -> None:
        try:
            await self.ask(lambda escrow: escrow.broadcast(row.raw))
        except AnswerLostError:
            errand.sent()  # for all we know
            raise
        errand.sent()
        self.observer.emit(Sent(trade_id=row.trade_id, step=row.step))

    async def _fill_gaps(self, nonce: int) -> None:
        free = await self.ask(lambda escrow: escrow.next_nonce())
        await fill_gaps(self.journal, free, nonce, self.escrow.broadcast)

    async def _look(self, row: TransactionRow) -> TransactionOutcome | None:
        outcome = await self.ask(lambda escrow: escrow.receipt(row.hash))
        if outcome is not None:
            self._note(row, outcome)
        return outcome

    async def _see_mined(self, errand: Errand, waiting: list[TransactionRow]) -> Ending | None:
        began = trio.current_time()
        looked_for_gaps = began
        while (now := trio.current_time()) < began + MINING_PATIENCE:
            for row in waiting:
                outcome = await self._look(row)
                if outcome is not None and outcome.succeeded:
                    return Ending.DONE
                if outcome is not None:  # of several, each is tried alone
                    return None if self._part(row) else Ending.REVERTED
            if self._urgent_waiting and now > began + YIELD_SECONDS:
                return None
            if now > looked_for_gaps + REOFFER_SECONDS:
                looked_for_gaps = now
                await self._fill_gaps(min(row.nonce for row in waiting))
            await trio.sleep(POLL_SECONDS)
        return None

    async def _standing(self, errand: Errand) -> Ending | None:
        """What the chain already says of this step; None if it is still to be done."""
        trade_id, step, call = errand.trade_id, errand.step, errand.call
        for row in self._unresolved(errand):
            await self._look(row)
        if isinstance(call, Withdraw):
            account = call.account
            owed = await self.ask(lambda escrow: escrow.credit(account))
            return Ending.DONE if owed == 0 else None
        state = (await self.ask(lambda escrow: escrow.trade_state(trade_id))).state
        if state is NEEDED_IN[step]:
            return None
        return Ending.DONE if state in DONE_IN[step] else Ending.UNWANTED

    async def _sign(self, errand: Errand, nonce: int) -> TransactionRow:
        """Sign and journal an attempt; the same bytes as before are the same attempt."""
        step, call = errand.step, errand.call
        together = await self._together(errand, nonce)
        if len(together) > 1:
            call = FundMany(tuple(e.call for e in together if isinstance(e.call, Fund)))
        signed = await self.ask(lambda escrow: escrow.sign(call, nonce))
        if known := [row for row in self._rows(errand) if row.hash == signed.hash]:
            return known[0]
        made = {
            each.trade_id: TransactionRow(
                trade_id=each.trade_id,
                step=step.value,
                attempt=len(self._rows(each)),
                nonce=nonce,
                hash=signed.hash,
                raw=signed.raw,
                shared=len(together),
            )
            for each in together
        }
        self.journal.save_transaction(*made.values())
        self.observer.emit(Saved(trade_id=errand.trade_id, step=step.value))
        return made[errand.trade_id]

    async def _together(self, errand: Errand, nonce: int) -> list[Errand]:
        """Return whose deposits one transaction at `nonce` may make, with this errand's; in order.

        Nothing else that pays for one of them may still be mined: what was signed for it, if
        anything, has this nonce too. One whose transaction has failed stays alone.
        """
        found, failed = [errand], any(r.succeeded is False for r in self._rows(errand))
        if failed or errand.trade_id not in self._gathered:
            return found
        for each in list(self._gathered.values()):
            fresh = all(r.succeeded is None and r.nonce == nonce for r in self._rows(each))
            if each is errand or not fresh or len(found) == MOST_TOGETHER or not each.wanted():
                continue
            if await self._standing(each) is None:
                found.append(each)
        return sorted(found, key=lambda one: one.trade_id)

    def _part(self, row: TransactionRow) -> bool:
        """Have each go on alone whose deposit `row` was to make; returns whether it is of several.

        A restart may forget that, and try them together once more.
        """
        for trade_id in self.journal.sharers(row.hash):
            self._gathered.pop(trade_id, None)
        return row.shared > 1

    def _unresolved(self, errand: Errand) -> list[TransactionRow]:
        """Attempts that were not seen mined, oldest first."""
        return [row for row in self._rows(errand) if row.succeeded is None]

    def _rows(self, errand: Errand) -> list[TransactionRow]:
        return self.journal.transactions(errand.trade_id, errand.step.value)

    def _note(self, row: TransactionRow, outcome: TransactionOutcome) -> None:
        succeeded, gas = outcome.succeeded, outcome.gas_used
        self.journal.mark_mined(row.hash, gas=gas, block=outcome.block, succeeded=succeeded)
        self.observer.emit(
            TransactionMined(
                trade_id=row.trade_id,
                step=row.step,
                hash=row.hash,
                succeeded=succeeded,
                gas=gas,
                revert=outcome.revert,
                values=outcome.values,
            )
        )

    def _refused(self, errand: Errand, error: Exception) -> None:
        self.observer.emit(
            TransactionRefused(trade_id=errand.trade_id, step=errand.step.value, reason=str(error))
        )

    def _delayed(self, errand: Errand, error: Exception) -> None:
        self.observer.emit(
            TransactionDelayed(trade_id=errand.trade_id, step=errand.step.value, reason=str(error))
        )

    async def _until_up(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask until the chain answers."""
        backoff = FIRST_BACKOFF
        while True:
            try:
                return await question()
            except ChainUnavailableError:
                await trio.sleep(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
