"""What a buyer may still bid: its ether, less what its open purchases may still cost it.

A purchase costs its price and the gas of its deposit, and, where the goods are garbage, the gas
of a dispute: who cannot pay for that pays the price for nothing. So each open purchase has the
gas of what it may still send kept back, at the chain's present fees and with headroom, since
fees rise. They are looked at twice: before a bid, and right before the deposit. Then more is
asked of the same purse than was, if fees rose; less headroom is wanted then, or a small rise
would end a trade that can be paid for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

from node.chain.errors import UnfundedAccountError
from node.chain.port import Dispute, Escrow, EscrowState, Fund
from node.journal import Journal
from node.protocol.purchase import Purchase, PurchaseRecord, PurchaseState
from node.protocol.types import Address, Digest, Wei
from node.settlement.desk import TradeDesk
from node.settlement.treasury import Treasury

GAS_RESERVE: Final = Wei(10**15)
"""Kept back for all else that the account sends: reveals of its sales, and withdrawals."""
BID_HEADROOM: Final = 3
"""A bid leaves the gas of a deposit and a dispute at so many times the present fees."""
FUND_HEADROOM: Final = 2
"""A deposit is begun only if its gas and a dispute's can be paid at so many times the fees."""
_PROMISED: Final = frozenset({PurchaseState.FETCHING, PurchaseState.FUNDING})
_DISPUTABLE: Final = frozenset(
    {
        PurchaseState.FUNDED,
        PurchaseState.REFUNDING,
        PurchaseState.REVEALED,
        PurchaseState.DISPUTING,
    }
)
_UNSPENT: Final = frozenset({PurchaseState.ABANDONED, PurchaseState.REFUNDED})
_Open = tuple[tuple[PurchaseRecord, PurchaseState], ...]


class Purse:
    """The money of one account, as its purchases see it."""

    def __init__(
        self, treasury: Treasury, desk: TradeDesk, journal: Journal, *, budget: Wei | None
    ) -> None:
        """`budget`: most to spend on purchases in all; None for what the account holds."""
        self._treasury = treasury
        self._desk = desk
        self._journal = journal
        self._budget = budget

    async def left(self, *encryptors: Address) -> Wei:
        """Return the most that may be bid now for goods of each of `encryptors`, for all together.

        0 where the account could not pay for the gas of each deposit, and of a dispute of each,
        besides. Raises `ChainUnavailableError`.
        """
        purchases, seen = await self._look(*encryptors)
        cost = sum(seen.cost(*one, BID_HEADROOM) for one in purchases)
        gas = sum(seen.gas(encryptor, BID_HEADROOM) for encryptor in encryptors)
        left = seen.held - cost - gas - GAS_RESERVE
        if self._budget is not None:
            left = min(left, self._budget - self._spent())
        return Wei(max(0, left))

    async def require(self, purchase: PurchaseRecord) -> None:
        """Return if the account can pay for a purchase that it has promised, dispute included.

        Other purchases come first if their deposit is begun, or their money away; those that
        still fetch ask for themselves. On return nothing has begun since this was looked at, as
        long as the caller does not wait before it begins its deposit. Raises
        `UnfundedAccountError`, and `ChainUnavailableError` if nobody can tell.
        """
        encryptor = purchase.quote.encryptor
        purchases, seen = await self._look(encryptor)
        others = [
            seen.cost(record, state, FUND_HEADROOM)
            for record, state in purchases
            if record.trade_id != purchase.trade_id and state is not PurchaseState.FETCHING
        ]
        gas = seen.gas(encryptor, FUND_HEADROOM)
        needed = purchase.quote.price + gas + sum(others)
        if seen.held < needed:
            raise UnfundedAccountError(
                f"the account holds {seen.held} wei and needs {needed}: the price, {gas} for the "
                f"gas of its deposit and a dispute, {sum(others)} for other purchases"
            )

    async def _look(self, *encryptors: Address) -> tuple[_Open, _Seen]:
        """Ask the chain, until no purchase began, ended or went on meanwhile."""
        while True:
            purchases = self._open()
            seen = await self._treasury.ask(functools.partial(_ask, purchases, encryptors))
            if self._open() == purchases:
                return purchases, seen

    def _open(self) -> _Open:
        machines = (trade.machine for trade in self._desk.open_trades())
        return tuple((m.record, m.state) for m in machines if isinstance(m, Purchase))

    def _spent(self) -> int:
        """Add up every purchase whose money is away, or about to be."""
        total = 0
        for row in self._journal.trades(role="buyer"):
            trade = self._desk.find(row.trade_id, "buyer")
            if trade is not None and isinstance(trade.machine, Purchase):
                state = trade.machine.state
                total += 0 if state in _UNSPENT else trade.machine.record.quote.price
        return total


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the chain said, all at about one time."""

    held: Wei
    max_fee: Wei
    """For a unit of gas."""
    fund_gas: int
    dispute_gas: dict[Address, int]
    """By encryptor."""
    deposited: frozenset[Digest]
    """Trades whose price is away already, which their machine was not told yet."""

    def gas(self, encryptor: Address, headroom: int) -> int:
        """Return what a deposit and a dispute may cost, in wei."""
        return (self.fund_gas + self.dispute_gas[encryptor]) * self.max_fee * headroom

    def cost(self, record: PurchaseRecord, state: PurchaseState, headroom: int) -> int:
        """Return what a purchase may still cost, in wei."""
        quote = record.quote
        if state in _PROMISED and record.trade_id not in self.deposited:
            return quote.price + self.gas(quote.encryptor, headroom)
        if state in _PROMISED or state in _DISPUTABLE:
            return self.dispute_gas[quote.encryptor] * self.max_fee * headroom
        return 0


def _ask(purchases: _Open, encryptors: tuple[Address, ...], escrow: Escrow) -> _Seen:
    """Ask for the balance last: a deposit that is mined meanwhile may count twice."""
    sellers = {*encryptors, *(record.quote.encryptor for record, _ in purchases)}
    return _Seen(
        max_fee=escrow.fees().max_fee,
        fund_gas=escrow.gas_limit(Fund, escrow.account),
        dispute_gas={each: escrow.gas_limit(Dispute, each) for each in sellers},
        deposited=frozenset(
            record.trade_id
            for record, state in purchases
            if state is PurchaseState.FUNDING
            and escrow.trade_state(record.trade_id).state is not EscrowState.NONE
        ),
        held=escrow.balance(escrow.account),
    )
