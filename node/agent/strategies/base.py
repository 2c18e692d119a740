"""What a strategy is asked, where an agent says what it alone knows.

| method    | asked by   | for                                                        |
|-----------|------------|------------------------------------------------------------|
| `goods`   | `Offering` | what to put on offer in place of what was trained          |
| `reserve` | `Offering` | the reserve under which it is offered                      |
| `favours` | `Session`  | whether an offer is bought before others, for what it is   |
| `bid`     | `Buyer`    | the valuation that is signed, of a trial that is worth so much |
| `ask`     | `Seller`   | the ask that is signed                                     |

A strategy keeps no state, and draws nothing: asked twice it says the same, also after a restart.
It says what it likes and can do no more than that. The protocol, the cash and the gates on what
is bought are the agent's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.params.architecture import Architecture
from node.params.permutation import Tensors
from node.protocol.offer import Offer
from node.protocol.types import Address, Digest, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a seller knows as it is asked for its price; to whom it sells is not told."""

    usual: Wei
    """What the agent's ask policy says, of the same facts."""
    own_gain_value: Wei | None
    """What its own latest trial as a buyer was worth to it."""
    prices: tuple[Wei, ...]
    """Of the task's recent trades, by receipts of brokers that it joined; oldest first."""
    cost: Wei
    """The reserve of what is sold."""
    fee_basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What an agent has, as it is about to offer something."""

    architecture: Architecture
    root: Digest
    """Of what it has trained; decides whatever a strategy draws."""
    own: Callable[[], Tensors]
    bought: Callable[[], tuple[Digest, Tensors] | None]
    """The trade and the weights of its latest purchase of a whole such model, if it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goods:
    """Other weights than those that were trained."""

    kind: str
    """One word for the log."""
    tensors: Tensors
    copied: Digest | None = None
    """The trade that they were bought in, if they are a copy."""


class Strategy(Protocol):
    """How an agent speaks for itself in the market. Amounts are whole wei."""

    def goods(self, stock: Stock, /) -> Goods | None:
        """Return what to offer in place of what was trained; None for just that."""

    def reserve(self, reserve: Wei, seller: Address, /) -> Wei:
        """Return the reserve of an offer of ours, at least `reserve`."""

    def favours(self, offer: Offer, /) -> bool:
        """Whether `offer` is bought before all others, if only its trial shows a gain."""

    def bid(self, worth: Wei, offer: Offer, /) -> Wei:
        """Return what is bid for `offer`, whose trial is worth `worth` = κ·Δ to us."""

    def ask(self, asked: Asked, /) -> Wei:
        """Return the ask, in what must reach us; under our reserve it is raised to that."""


class Usual:
    """What an agent does where nobody says otherwise: true bids and goods, the policy's asks."""

    def goods(self, stock: Stock, /) -> Goods | None:
        return None

    def reserve(self, reserve: Wei, seller: Address, /) -> Wei:
        return reserve

    def favours(self, offer: Offer, /) -> bool:
        return False

    def bid(self, worth: Wei, offer: Offer, /) -> Wei:
        return worth

    def ask(self, asked: Asked, /) -> Wei:
        return asked.usual
