"""Who has whose weights by a purchase that this broker brokered: what its receipts prove.

Of every quote that leaves, a line is kept in the journal: buyer, seller, and the roots of the base,
of what was sold and of their merge. It counts once the quote was funded, and no more if it was
disputed. Accounts are *kin* if what one of them has bought goes back to the other, or both to a
third; that says who may be alike, and not how alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.journal import Journal, JournalError
from node.protocol.brokerage import BrokerageState
from node.protocol.messages import Deal
from node.protocol.types import Address, Digest

MAX_PURCHASES: Final = 4_096
"""Remembered; the oldest go."""
_PREFIX: Final = "purchase/"
S = BrokerageState
_GAVE: Final = frozenset(
    state.value for state in (S.FUNDED, S.REVEALED, S.FINALIZING, S.CREDITED, S.PAID)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """One purchase: what was merged into what."""

    trade_id: Digest
    buyer: Address
    seller: Address
    base_root: Digest
    sold_root: Digest
    merged_root: Digest


class Kin:
    """The purchases of one broker's journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._bought: dict[Digest, Bought] = {}
        """By trade, oldest first."""
        self._paid: set[Digest] = set()
        read = []
        for name, value in journal.facts(_PREFIX).items():
            match value:
                case [int(at), str(buyer), str(seller), bytes(base), bytes(sold), bytes(merged)]:
                    trade_id = Digest(bytes.fromhex(name.removeprefix(_PREFIX)))
                    roots = (Digest(base), Digest(sold), Digest(merged))
                    read.append((at, _bought(trade_id, Address(buyer), Address(seller), *roots)))
                case _:
                    raise JournalError(f"{name} is no purchase: {value!r}"[:200])
        self._turn = 1 + max((at for at, _ in read), default=0)
        for _, one in sorted(read, key=lambda row: row[0]):
            self._bought[one.trade_id] = one

    def quoted(self, deal: Deal) -> None:
        """Remember a quote that is about to leave."""
        quote, said = deal.quote, deal.evaluation
        roots = (said.base_root, said.sold_root, said.merged_root)
        one = _bought(quote.trade_id, quote.buyer, quote.seller, *roots)
        self._journal.remember(
            _PREFIX + one.trade_id.hex(), [self._turn, one.buyer, one.seller, *roots]
        )
        self._turn += 1
        self._bought[one.trade_id] = one
        old = list(self._bought)[: max(0, len(self._bought) - MAX_PURCHASES)]
        for trade_id in old:
            del self._bought[trade_id]
            self._paid.discard(trade_id)
        if old:
            self._journal.forget(_PREFIX + trade_id.hex() for trade_id in old)

    def purchases(self, buyer: Address) -> list[Bought]:
        """Return what an account has bought and paid for, the newest first."""
        return [one for one in reversed(self._bought.values()) if one.buyer == buyer and
                self._stands(one.trade_id)]  # fmt: skip

    def related(self, one: Address, other: Address) -> bool:
        """Whether purchases lead from one account to the other, or from both to a third."""
        sources: dict[Address, set[Address]] = {}
        for bought in self._bought.values():
            if self._stands(bought.trade_id):
                sources.setdefault(bought.buyer, set()).add(bought.seller)
        return bool(_reached(sources, one) & _reached(sources, other))

    def _stands(self, trade_id: Digest) -> bool:
        if trade_id in self._paid:
            return True
        row = self._journal.trade(trade_id, "broker")
        if row is not None and row.state == S.PAID.value:
            self._paid.add(trade_id)
        return row is not None and row.state in _GAVE


def _bought(
    trade_id: Digest, buyer: Address, seller: Address, base: Digest, sold: Digest, merged: Digest
) -> Bought:
    return Bought(
        trade_id=trade_id,
        buyer=buyer,
        seller=seller,
        base_root=base,
        sold_root=sold,
        merged_root=merged,
    )


def _reached(sources: dict[Address, set[Address]], account: Address) -> set[Address]:
    known, due = {account}, [account]
    while due:
        new = sources.get(due.pop(), set()) - known
        known |= new
        due += new
    return known
