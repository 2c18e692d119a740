"""What is submitted to be tried upon, and is not for sale: held for its owner, listed to nobody.

A base stands for as long as its round, so that an account needs few, and accounts cost nothing.
Of each, the newest `MAX_OF_ACCOUNT` are held, by the seconds in which they were signed: one that
is said again late takes no newer one's place. All accounts share `MAX_BASES` places. When these
are taken, it is as in the market's book: whoever a live receipt there names as buyer or seller,
of a broker that the book favours, gets a place and never gives way; of the others the base that
would stay the longest gives way, to anything of those who have traded, and to what would leave
sooner.

| question                                          | reason          |
|---------------------------------------------------|-----------------|
| is it canonical, every field within its bounds?   | malformed, …    |
| is it an offer?                                   | not-an-offer    |
| has it yet to expire?                             | expired         |
| has it been issued, give or take our clocks?      | from-the-future |
| is it news?                                       | duplicate       |
| did its account sign it, and its peer?            | bad-signature … |
| are all that we hold of its account older?        | superseded      |
| is there room?                                    | bases-full      |
| then it is held                                   | good            |

Pure: `receive(data, now)` returns the verdict and changes only what is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.protocol import envelope
from node.protocol.book import OfferBook
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import MAX_CLOCK_SKEW, Offer
from node.protocol.types import Address, Digest, UnixTime
from node.protocol.verdict import Verdict, accept, ignore, reject

MAX_BASES: Final = 4_096
"""Live bases of all accounts together."""
MAX_OF_ACCOUNT: Final = 4
"""Live bases of one account: a round has one, and trials on the last may still be under way."""


@dataclass(frozen=True, slots=True)
class _Held:
    offer: Offer
    data: bytes
    turn: int
    """Later ones have a higher one."""

    @property
    def age(self) -> tuple[int, int]:
        """Of two of one account, the newer has the higher."""
        return (self.offer.issued_at, self.offer.nonce)


class Bases:
    """Live bases by digest. `market` is the book whose receipts say who has traded."""

    def __init__(self, market: OfferBook, task: str) -> None:
        self._market = market
        self._task = task
        self._held: dict[Digest, _Held] = {}
        self._of: dict[Address, list[Digest]] = {}
        """By account, the newest last."""
        self._turn = 0

    def receive(self, data: bytes, now: UnixTime) -> Verdict:
        """Judge a base that was submitted, and hold it if it is good."""
        try:
            signed = envelope.decode(data)
            offer = signed.body
            if not isinstance(offer, Offer):
                return reject("not-an-offer")
            if offer.expires_at <= now:
                return ignore("expired")
            if offer.issued_at > now + MAX_CLOCK_SKEW:
                return ignore("from-the-future")
            if any(self._held[name].data == data for name in self._of.get(offer.seller, ())):
                return ignore("duplicate")
            name = envelope.check(self._market.domain, signed)
        except RemoteProtocolError as error:
            return reject(error.reason)
        if name in self._held:
            return ignore("duplicate")
        return self._keep(name, offer, data, now)

    def offer(self, name: Digest, now: UnixTime) -> Offer | None:
        """Return the live base with this digest."""
        held = self._held.get(name)
        return held.offer if held is not None and held.offer.expires_at > now else None

    def _keep(self, name: Digest, offer: Offer, data: bytes, now: UnixTime) -> Verdict:
        self._turn += 1
        held = _Held(offer, data, self._turn)
        own = self._of.get(offer.seller, [])
        if len(own) >= MAX_OF_ACCOUNT:
            if held.age < self._held[own[0]].age:
                return ignore("superseded")
            self._forget(own[0])
        elif not self._make_room(offer, now):
            return ignore("bases-full")
        self._held[name] = held
        own = self._of.setdefault(offer.seller, [])
        own.append(name)
        own.sort(key=lambda one: self._held[one].age)
        return accept()

    def _make_room(self, offer: Offer, now: UnixTime) -> bool:
        """Have a place free for one more base, if need be by one that gives way to it."""
        if len(self._held) < MAX_BASES:
            return True
        for name in [name for name, held in self._held.items() if held.offer.expires_at <= now]:
            self._forget(name)
        if len(self._held) < MAX_BASES:
            return True
        traded = self._traded(now)
        mere = [name for name, held in self._held.items() if held.offer.seller not in traded]
        if not mere:
            return False
        longest = max(mere, key=self._stay)
        sooner = offer.expires_at < self._held[longest].offer.expires_at
        if not (sooner or offer.seller in traded):
            return False
        self._forget(longest)
        return True

    def _stay(self, name: Digest) -> tuple[int, int]:
        held = self._held[name]
        return (held.offer.expires_at, held.turn)

    def _traded(self, now: UnixTime) -> set[Address]:
        """Return whom a live receipt names, of a broker that the market's book favours."""
        believed = self._market.favoured | self._market.trusted_brokers
        return {
            account
            for receipt in self._market.receipts(self._task)
            if receipt.broker in believed and receipt.expires_at > now
            for account in (receipt.buyer, receipt.seller)
        }

    def _forget(self, name: Digest) -> None:
        seller = self._held.pop(name).offer.seller
        self._of[seller].remove(name)
        if not self._of[seller]:
            del self._of[seller]
