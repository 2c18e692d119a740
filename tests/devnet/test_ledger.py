"""A ledger is of one block: what the market does while it is read makes nothing look stuck."""

from __future__ import annotations

from typing import Any

import pytest

from node.chain.port import (
    Block,
    EscrowEvent,
    EscrowState,
    FundedEvent,
    PaidEvent,
    RefundedEvent,
    RevealedEvent,
    WithdrawnEvent,
)
from node.devnet.ledger import read_ledger
from node.protocol.types import NO_ADDRESS, Address, Digest, UnixTime, Wei
from tests.protocol.cast import BUYER, DOMAIN, SELLER

A, B, C = (Digest(bytes([number]) * 32) for number in (1, 2, 3))
TRANSACTION = Digest(bytes(32))


def funded(block: int, trade: Digest, price: int) -> FundedEvent:
    return FundedEvent(block, TRANSACTION, trade, BUYER.account, SELLER.account, Wei(price))


def drawn(block: int, account: Address, amount: int) -> WithdrawnEvent:
    return WithdrawnEvent(block, TRANSACTION, NO_ADDRESS, account, account, Wei(amount))


class Escrow:
    """Mines one more block whenever it is asked anything."""

    domain = DOMAIN

    def __init__(self, mined: list[list[EscrowEvent]], balances: list[int]) -> None:
        self.mined, self.balances = mined, balances
        self.at = 4

    def _next(self) -> None:
        self.at = min(self.at + 1, len(self.mined) - 1)

    def head(self) -> Block:
        found = Block(self.at, UnixTime(self.at))
        self._next()
        return found

    def events(self, first: int, last: int) -> list[EscrowEvent]:
        self._next()
        return [event for block in self.mined[first : last + 1] for event in block]

    def balance(self, account: Address, *, block: int | None = None) -> Wei:
        assert account == DOMAIN.escrow
        return Wei(self.balances[self.at if block is None else block])


@pytest.fixture
def escrow() -> Any:
    mined: list[list[EscrowEvent]] = [
        [],
        [funded(1, A, 100), funded(1, B, 70)],
        [RevealedEvent(2, TRANSACTION, A, bytes(32))],
        [PaidEvent(3, TRANSACTION, A, Wei(98), Wei(2)), RefundedEvent(3, TRANSACTION, B, Wei(70))],
        [drawn(4, SELLER.account, 98)],
        [funded(5, C, 1_000)],
        [drawn(6, BUYER.account, 70)],
    ]
    return Escrow(mined, [0, 170, 170, 170, 72, 1_072, 1_002])


def test_a_deposit_that_comes_while_it_is_read_is_not_stuck(escrow: Any) -> None:
    ledger = read_ledger(escrow)
    assert ledger.stuck == 0
    assert (ledger.deposited, ledger.paid_out, ledger.fees, ledger.refunded) == (170, 98, 2, 70)
    assert (ledger.credited, ledger.held, ledger.open_trades) == (72, 0, 0)
    assert ledger.states == {A: EscrowState.PAID, B: EscrowState.REFUNDED}


def test_money_in_an_open_trade_is_held_and_not_stuck(escrow: Any) -> None:
    escrow.at = 5
    ledger = read_ledger(escrow)
    assert (ledger.stuck, ledger.held, ledger.open_trades) == (0, 1_000, 1)
    assert not ledger.balances


def test_what_no_event_explains_is_stuck_whether_it_is_too_much_or_too_little(escrow: Any) -> None:
    for wrong in (71, 73):
        escrow.at, escrow.balances[4] = 4, wrong
        assert read_ledger(escrow).stuck == 1
