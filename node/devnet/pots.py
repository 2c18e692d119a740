"""The books of a clearing house, from the chain's own events: wei in = wei out, round by round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from node.chain.clearing import Web3ClearingHouse
from node.protocol.types import Address, Digest


@dataclass
class Pot:
    """One round, wei by account."""

    paid: Counter[Address] = field(default_factory=Counter)
    claimed: Counter[Address] = field(default_factory=Counter)
    reclaimed: Counter[Address] = field(default_factory=Counter)

    @property
    def held(self) -> int:
        """What is neither claimed nor taken back."""
        return self.paid.total() - self.claimed.total() - self.reclaimed.total()

    @property
    def net(self) -> dict[Address, int]:
        """What each account got more than it paid; sums to less what is still held."""
        accounts = {**self.paid, **self.claimed, **self.reclaimed}
        return {a: self.claimed[a] + self.reclaimed[a] - self.paid[a] for a in accounts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Everything that one house ever moved, in wei."""

    pots: dict[Digest, Pot]
    withdrawn: int
    balance: int
    """What the house held at the block of the last event."""

    @property
    def paid_in(self) -> int:
        return sum(pot.paid.total() for pot in self.pots.values())

    @property
    def claimed(self) -> int:
        return sum(pot.claimed.total() for pot in self.pots.values())

    @property
    def reclaimed(self) -> int:
        return sum(pot.reclaimed.total() for pot in self.pots.values())

    @property
    def held(self) -> int:
        return sum(pot.held for pot in self.pots.values())

    @property
    def credited(self) -> int:
        """What was credited and not drawn yet."""
        return self.claimed + self.reclaimed - self.withdrawn

    @property
    def stuck(self) -> int:
        """What the house holds beyond what its events say, or lacks."""
        return abs(self.balance - self.held - self.credited)

    @property
    def balances(self) -> bool:
        """Whether all that came in went out, to the wei."""
        return self.stuck == 0 and self.held == 0 and self.credited == 0

    def document(self) -> dict[str, Any]:
        """Return the books as JSON: wei as decimal strings."""
        names = ("paid_in", "claimed", "reclaimed", "withdrawn", "held", "credited", "stuck")
        amounts: dict[str, Any] = {name: str(getattr(self, name)) for name in names}
        return {**amounts, "balances": self.balances}


def read_books(house: Web3ClearingHouse, since: int = 0) -> Books:
    """Add up every event of a house, and hold it against what it held at that very block.

    `since`: a block before which the house was not there. Raises `ChainUnavailableError`.
    """
    pots: dict[Digest, Pot] = {}
    withdrawn = 0
    last, _ = house.now()
    for event in house.moved(since, last):
        if event.round is None:
            withdrawn += event.amount
            continue
        pot = pots.setdefault(event.round, Pot())
        book = {"PaidIn": pot.paid, "Claimed": pot.claimed, "Reclaimed": pot.reclaimed}
        book[event.what][event.account] += event.amount
    return Books(pots=pots, withdrawn=withdrawn, balance=house.balance(block=last))
