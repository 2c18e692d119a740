"""Sends an account's transactions: saved before they are sent, and paid for once.

One transaction of the account is on its way at a time. Each attempt is journalled with its
nonce, so that after a crash, or an answer that got lost, there are only three cases: it was
mined (its receipt says so), it may still be mined (the same bytes are sent again, which is
fine wherever they are known), or it cannot be any more, since another transaction took its
nonce. Only then is a new one signed; until then a second one would be a second payment.

What is not mined for long is signed again at its own nonce, for the chain's present fees:
of two transactions with one nonce at most one is ever mined.

Before each attempt the chain is asked whether the step is needed at all: somebody else may
have finalized or refunded, and a transaction that would revert only costs gas.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from node.chain.errors import (
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import (
    Call,
    Escrow,
    EscrowState,
    SignedTransaction,
    TransactionOutcome,
    Withdraw,
)
from node.chronicle import Saved, Sent, TransactionDelayed, TransactionMined, TransactionRefused
from node.journal import Journal, TransactionRow
from node.observe import Observer
from node.protocol.events import Step
from node.protocol.types import Digest

T = TypeVar("T")

POLL_SECONDS: Final = 0.1
MINING_PATIENCE: Final = 60.0
"""After so long without being mined, the attempt is signed again with the chain's present fees."""
FIRST_BACKOFF: Final = 0.2
LONGEST_BACKOFF: Final = 5.0


class Ending(enum.Enum):
    """How a step ended."""

    DONE = "done"
    """Mined, or the chain shows that it was done already."""
    UNWANTED = "unwanted"
    """The caller or the chain says that it must not, or need not, happen any more."""
    REVERTED = "reverted"
    """The contract refused it."""


_NEEDED_IN: Final = {
    Step.FUND: EscrowState.NONE,
    Step.REVEAL: EscrowState.FUNDED,
    Step.FINALIZE: EscrowState.REVEALED,
    Step.REFUND: EscrowState.FUNDED,
}
_DONE_IN: Final = {
    Step.FUND: {EscrowState.FUNDED, EscrowState.REVEALED, EscrowState.PAID, EscrowState.REFUNDED},
    Step.REVEAL: {EscrowState.REVEALED, EscrowState.PAID},
    Step.FINALIZE: {EscrowState.PAID},
    Step.REFUND: {EscrowState.REFUNDED},
}
_PATIENT: Final = frozenset({Step.FINALIZE, Step.REFUND, Step.WITHDRAW})
"""Steps that are only ever too early: they are tried again until they are done."""


class Treasury:
    """The one sender of transactions of `escrow.account`."""

    def __init__(self, escrow: Escrow, journal: Journal, observer: Observer) -> None:
        self.escrow = escrow
        self.journal = journal
        self.observer = observer
        self._turn = trio.Lock()
        self._told: set[Digest] = set()
        """Trades whose secret this process has sent, and the chain has taken."""

    async def ask(self, question: Callable[[Escrow], T]) -> T:
        """Ask the chain in a thread. Raises `ChainUnavailableError` when it is down."""
        return await trio.to_thread.run_sync(question, self.escrow)

    async def carry_out(
        self, trade_id: Digest, step: Step, call: Call, *, wanted: Callable[[], bool]
    ) -> Ending:
        """Do `step` of a trade, however often the chain or this process goes away meanwhile.

        `wanted` is asked right before each send; a caller uses it to hold back a secret.
        """
        if step is Step.REVEAL:
            wanted = self._or_public(trade_id, wanted)
        backoff = FIRST_BACKOFF
        while True:
            try:
                async with self._turn:
                    ending = await self._attempt(trade_id, step, call, wanted)
                if ending is not None and not (ending is Ending.REVERTED and step in _PATIENT):
                    return ending
            except NonceTooLowError:
                pass  # the next attempt finds these bytes dead, and signs others
            except TransactionRefusedError as error:
                self.observer.emit(
                    TransactionRefused(trade_id=trade_id, step=step.value, reason=str(error))
                )
                standing = await self._until_up(lambda: self._standing(trade_id, step, call))
                if standing is not None:
                    return standing
                if step not in _PATIENT:
                    return Ending.REVERTED
            except (ChainUnavailableError, UnfundedAccountError) as error:
                if not wanted():
                    return Ending.UNWANTED
                self.observer.emit(
                    TransactionDelayed(trade_id=trade_id, step=step.value, reason=str(error))
                )
            await trio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    def _or_public(self, trade_id: Digest, wanted: Callable[[], bool]) -> Callable[[], bool]:
        """A secret that has left cannot be held back: from then on its payment is pursued.

        The escrow takes a late reveal until somebody has refunded.
        """
        return lambda: wanted() or trade_id in self._told

    async def _attempt(
        self, trade_id: Digest, step: Step, call: Call, wanted: Callable[[], bool]
    ) -> Ending | None:
        """One try under the account's lock; None asks for another."""
        standing = await self._standing(trade_id, step, call)
        if standing is not None:
            return standing
        if not wanted():
            return Ending.UNWANTED
        waiting = await self._send_again(trade_id, step, wanted)
        if not waiting:
            if not wanted():
                return Ending.UNWANTED
            nonce = await self.ask(lambda escrow: escrow.next_nonce())
            row = await self._sign(trade_id, step, call, nonce)
            if not wanted():  # signing asked the chain for its fees: time has passed
                return Ending.UNWANTED
            await self._send(row)
            waiting = [row]
        ending = await self._see_mined(waiting)
        if ending is None and wanted():
            await self._replace(trade_id, step, call, waiting[-1], wanted)
        return ending

    async def _send_again(
        self, trade_id: Digest, step: Step, wanted: Callable[[], bool]
    ) -> list[TransactionRow]:
        """Send what was signed before; returns what the chain took, and may still mine."""
        waiting = []
        for row in self._unresolved(trade_id, step):
            if not wanted():
                break
            try:
                await self._send(row)
            except (NonceTooLowError, TransactionRefusedError):
                continue
            waiting.append(row)
        return waiting

    async def _replace(
        self,
        trade_id: Digest,
        step: Step,
        call: Call,
        stuck: TransactionRow,
        wanted: Callable[[], bool],
    ) -> None:
        """Outbid our own stuck transaction, if the chain's fees have risen enough for that."""
        row = await self._sign(trade_id, step, call, stuck.nonce)
        if row.hash == stuck.hash or not wanted():
            return
        try:
            await self._send(row)
        except (NonceTooLowError, TransactionRefusedError) as error:
            self.observer.emit(
                TransactionDelayed(trade_id=trade_id, step=step.value, reason=str(error))
            )

    async def _send(self, row: TransactionRow) -> None:
        await self.ask(lambda escrow: escrow.broadcast(row.raw))
        if row.step == Step.REVEAL.value:
            self._told.add(row.trade_id)
        self.observer.emit(Sent(trade_id=row.trade_id, step=row.step))

    async def _look(self, row: TransactionRow) -> TransactionOutcome | None:
        outcome = await self.ask(lambda escrow: escrow.receipt(row.hash))
        if outcome is not None:
            self._note(row, outcome.succeeded, outcome.block, outcome.gas_used)
        return outcome

    async def _see_mined(self, waiting: list[TransactionRow]) -> Ending | None:
        patience = trio.current_time() + MINING_PATIENCE
        while trio.current_time() < patience:
            for row in waiting:
                outcome = await self._look(row)
                if outcome is not None:
                    return Ending.DONE if outcome.succeeded else Ending.REVERTED
            await trio.sleep(POLL_SECONDS)
        return None

    async def _standing(self, trade_id: Digest, step: Step, call: Call) -> Ending | None:
        """What the chain already says of this step; None if it is still to be done."""
        for row in self._unresolved(trade_id, step):
            await self._look(row)
        if isinstance(call, Withdraw):
            account = call.account
            owed = await self.ask(lambda escrow: escrow.credit(account))
            return Ending.DONE if owed == 0 else None
        state = (await self.ask(lambda escrow: escrow.trade_state(trade_id))).state
        if state is _NEEDED_IN[step]:
            return None
        return Ending.DONE if state in _DONE_IN[step] else Ending.UNWANTED

    async def _sign(self, trade_id: Digest, step: Step, call: Call, nonce: int) -> TransactionRow:
        """Sign and journal an attempt; the same bytes as before are the same attempt."""
        signed: SignedTransaction = await self.ask(lambda escrow: escrow.sign(call, nonce))
        rows = self.journal.transactions(trade_id, step.value)
        known = next((row for row in rows if row.hash == signed.hash), None)
        if known is not None:
            return known
        row = TransactionRow(
            trade_id=trade_id,
            step=step.value,
            attempt=len(rows),
            nonce=nonce,
            hash=signed.hash,
            raw=signed.raw,
        )
        self.journal.save_transaction(row)
        self.observer.emit(Saved(trade_id=trade_id, step=step.value))
        return row

    def _unresolved(self, trade_id: Digest, step: Step) -> list[TransactionRow]:
        """Attempts that were not seen mined, oldest first."""
        rows = self.journal.transactions(trade_id, step.value)
        return [row for row in rows if row.succeeded is None]

    def _note(self, row: TransactionRow, succeeded: bool, block: int, gas: int) -> None:
        self.journal.mark_mined(row.hash, gas=gas, block=block, succeeded=succeeded)
        self.observer.emit(
            TransactionMined(
                trade_id=row.trade_id, step=row.step, hash=row.hash, succeeded=succeeded, gas=gas
            )
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
