"""Calls of a clearing house: saved before they are sent, paid for once, outbid when stuck."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from node.chain.errors import (
    ChainUnavailableError,
    NonceTooLowError,
    TransactionRefusedError,
    UnfundedAccountError,
)
from node.chain.port import SignedTransaction, TransactionOutcome
from node.chain.rounds import Reclaim
from node.chronicle import TransactionDelayed, TransactionMined, TransactionRefused
from node.journal import Journal, TransactionRow
from node.observe import Event, Observer
from node.protocol.types import Digest
from node.settlement.cashier import DONE, MINING_PATIENCE, REOFFER_SECONDS, UNWANTED, Cashier
from tests.settlement.trades import BUYER

ROUND, OTHER = Digest(b"\x07" * 32), Digest(b"\x08" * 32)
CALL = Reclaim(ROUND, BUYER)
STEP = "clearing-reclaim"


@dataclass
class House:
    """One account's view of a house: a pool and its blocks, and how its transactions end."""

    base_fee: int = 10
    paused: bool = False
    revert: str | None = None
    done: bool = False
    nonce: int = 0
    pool: dict[int, bytes] = field(default_factory=dict)
    known: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    published: list[bytes] = field(default_factory=list)
    mined: dict[Digest, TransactionOutcome] = field(default_factory=dict)
    before: Callable[[str], None] = lambda _: None
    after: Callable[[str], None] = lambda _: None

    def next_nonce(self) -> int:
        self.before("next_nonce")
        nonce = self.nonce
        while nonce in self.pool:
            nonce += 1
        return nonce

    def sign(self, call: object, nonce: int) -> SignedTransaction:
        self.before("sign")
        raw = repr((call, nonce, 2 * self.base_fee)).encode()
        self.known[raw] = nonce, 2 * self.base_fee
        return SignedTransaction(named(raw), raw, nonce)

    def broadcast(self, raw: bytes) -> None:
        self.before("broadcast")
        nonce, fee = self.known[raw]
        if named(raw) not in self.mined and self.pool.get(nonce) != raw:
            if nonce < self.nonce:
                raise NonceTooLowError(f"nonce too low: {nonce}")
            held = self.pool.get(nonce)
            if held is not None and fee * 10 < self.known[held][1] * 11:
                raise TransactionRefusedError("replacement transaction underpriced")
            self.pool[nonce] = raw
            self.published.append(raw)
        self.after("broadcast")

    def outcome(self, name: Digest) -> TransactionOutcome | None:
        self.before("outcome")
        while not self.paused and self.nonce in self.pool:
            raw = self.pool[self.nonce]
            if self.known[raw][1] < self.base_fee:
                break
            self.mined[named(raw)] = TransactionOutcome(
                succeeded=self.revert is None, block=1, gas_used=50_000, revert=self.revert
            )
            self.done = self.done or self.revert is None
            del self.pool[self.nonce]
            self.nonce += 1
        return self.mined.get(name)


def named(raw: bytes) -> Digest:
    return Digest(hashlib.sha256(raw).digest())


class Node:
    """An account with a journal, which may be made anew from it."""

    def __init__(self, path: Path) -> None:
        self.path, self.house = path, House()
        self.heard: list[Event] = []
        self.wake()

    def wake(self) -> None:
        self.journal = Journal(self.path)
        observer = Observer()
        observer.subscribe(lambda record: self.heard.append(record.event))
        house: Any = self.house
        self.cashier = Cashier(house, self.journal, observer, trio.Lock())

    async def reclaim(self, wanted: Callable[[], bool] = lambda: True) -> str:
        return await self.cashier.carry_out(
            ROUND, STEP, CALL, done=lambda house: house.done, wanted=wanted  # type: ignore[attr-defined]
        )  # fmt: skip

    def attempts(self) -> list[TransactionRow]:
        return self.journal.transactions(ROUND, STEP)

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


@pytest.fixture
def node(memory: Path) -> Node:
    return Node(memory / "cashier.db")


async def test_a_call_is_in_the_journal_before_anybody_can_see_it(node: Node) -> None:
    def look(name: str) -> None:
        if name == "broadcast":
            assert [row.raw for row in node.attempts()] == list(node.house.known)

    node.house.before = look
    assert await node.reclaim() == DONE
    (row,) = node.attempts()
    assert (row.succeeded, row.gas, row.nonce) == (True, 50_000, 0)
    assert len(node.told(TransactionMined)) == 1


async def test_what_the_chain_shows_as_done_is_not_sent(node: Node) -> None:
    node.house.done = True
    assert await node.reclaim() == DONE
    assert node.attempts() == []


async def test_what_is_not_wanted_any_more_is_not_signed(node: Node) -> None:
    assert await node.reclaim(lambda: False) == UNWANTED
    assert node.attempts() == []


async def test_after_a_crash_the_same_bytes_go_out_again(node: Node) -> None:
    def die(name: str) -> None:
        if name == "broadcast":
            raise KeyboardInterrupt

    node.house.before = die
    with pytest.raises(KeyboardInterrupt):
        await node.reclaim()
    assert len(node.attempts()) == 1
    node.house.before = lambda _: None
    node.journal.close()
    node.wake()
    assert await node.reclaim() == DONE
    assert node.house.published == [row.raw for row in node.attempts()]
    assert len(node.house.mined) == 1


async def test_a_lost_answer_is_no_second_payment(node: Node) -> None:
    lost = iter([True])

    def lose(name: str) -> None:
        if next(lost, False):
            raise ChainUnavailableError("the line broke")

    node.house.after = lose
    assert await node.reclaim() == DONE
    assert len(node.house.mined) == len(node.attempts()) == 1
    assert len(node.told(TransactionDelayed)) == 1


async def test_a_call_of_which_another_took_the_nonce_is_signed_anew(node: Node) -> None:
    def meanwhile(name: str) -> None:
        if name == "broadcast" and not node.house.nonce:
            node.house.nonce = 1

    node.house.before = meanwhile
    assert await node.reclaim() == DONE
    assert [row.nonce for row in node.attempts()] == [0, 1]
    assert len(node.house.mined) == 1


async def test_a_call_mined_between_the_question_and_its_offer_is_paid_for_once(
    node: Node,
) -> None:
    ours = node.house.sign(CALL, 0)
    node.journal.save_transaction(
        TransactionRow(trade_id=ROUND, step=STEP, attempt=0, nonce=0, hash=ours.hash, raw=ours.raw)
    )
    node.house.pool[0] = ours.raw
    node.house.paused = True

    def mined_without_a_receipt_yet(name: str) -> None:
        if name == "broadcast" and not node.house.mined:
            node.house.paused = False
            node.house.outcome(ours.hash)
            raise NonceTooLowError("nonce too low: 0")

    node.house.before = mined_without_a_receipt_yet
    assert await node.reclaim() == DONE
    assert list(node.house.mined) == [ours.hash]
    assert [row.hash for row in node.attempts()] == [ours.hash]


async def test_an_empty_account_waits_for_money_until_its_call_is_unwanted(node: Node) -> None:
    def poor(name: str) -> None:
        if name == "broadcast":
            raise UnfundedAccountError("insufficient funds")

    node.house.before = poor
    until = trio.current_time() + 30
    assert await node.reclaim(lambda: trio.current_time() < until) == UNWANTED
    assert node.house.mined == {}


async def test_a_stuck_call_is_signed_again_at_its_own_nonce_for_the_present_fees(
    node: Node,
) -> None:
    def dearer(name: str) -> None:
        if name == "broadcast":
            node.house.base_fee = 50

    node.house.before = dearer
    begun = trio.current_time()
    assert await node.reclaim() == DONE
    first, second = node.attempts()
    assert first.nonce == second.nonce == 0
    assert list(node.house.mined) == [second.hash]
    assert trio.current_time() - begun < MINING_PATIENCE + 15


async def test_a_stuck_call_is_waited_for_while_fees_are_what_they_were(node: Node) -> None:
    node.house.paused = True

    async def go_on() -> None:
        await trio.sleep(3.5 * MINING_PATIENCE)
        node.house.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        assert await node.reclaim() == DONE
    assert len(node.house.published) == len(node.attempts()) == 1


async def test_a_call_that_is_a_little_too_cheap_to_replace_is_told_and_mined_after_all(
    node: Node,
) -> None:
    node.house.paused = True

    async def go_on() -> None:
        await trio.sleep(1)
        node.house.base_fee = 10.5  # type: ignore[assignment]  # five in a hundred
        await trio.sleep(MINING_PATIENCE + 5)
        node.house.paused = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        assert await node.reclaim() == DONE
    assert "underpriced" in node.told(TransactionDelayed)[0].reason
    assert list(node.house.mined) == [node.attempts()[0].hash]


async def test_what_the_pool_lost_below_a_call_is_offered_again(node: Node) -> None:
    lost = node.house.sign("something earlier", 0)
    row = TransactionRow(
        trade_id=OTHER, step="clearing-pay", attempt=0, nonce=0, hash=lost.hash, raw=lost.raw
    )
    node.journal.save_transaction(row)
    ours = node.house.sign(CALL, 1)
    node.journal.save_transaction(
        TransactionRow(trade_id=ROUND, step=STEP, attempt=0, nonce=1, hash=ours.hash, raw=ours.raw)
    )
    begun = trio.current_time()
    assert await node.reclaim() == DONE
    assert set(node.house.mined) == {lost.hash, ours.hash}
    assert trio.current_time() - begun < REOFFER_SECONDS + 5


async def test_a_revert_has_its_name_and_is_told(node: Node) -> None:
    node.house.revert = "CollectionOver"
    assert await node.reclaim() == "CollectionOver"
    assert [event.reason for event in node.told(TransactionRefused)] == ["CollectionOver"]


async def test_a_refusal_of_what_somebody_else_did_is_no_failure(node: Node) -> None:
    def refuse(name: str) -> None:
        if name == "broadcast":
            node.house.done = True
            raise TransactionRefusedError("AlreadyClaimed")

    node.house.before = refuse
    assert await node.reclaim() == DONE
    assert node.house.mined == {}


async def test_a_question_is_asked_until_the_chain_answers(node: Node) -> None:
    asked = iter([True, True, True])

    def cut(name: str) -> None:
        if next(asked, False):
            raise ChainUnavailableError("down")

    node.house.before = cut
    assert await node.cashier.ask(lambda house: house.next_nonce()) == 0


async def test_one_call_of_an_account_is_on_its_way_at_a_time(node: Node) -> None:
    node.house.paused = True
    seen = []

    async def reclaim(name: Digest) -> None:
        call = Reclaim(name, BUYER)
        await node.cashier.carry_out(name, STEP, call, done=lambda _: False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reclaim, ROUND)
        nursery.start_soon(reclaim, OTHER)
        await trio.sleep(20)
        seen.append(len(node.house.published))
        node.house.paused = False
    assert seen == [1]
    assert len(node.house.mined) == 2
