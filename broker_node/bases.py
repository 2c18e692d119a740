"""What is submitted to be tried upon, and is not for sale: held for its owner, listed to nobody.

A base stands for as long as its round, so that an account needs few, and accounts cost nothing.
Of each, the newest `MAX_OF_ACCOUNT` live ones are held, by the seconds in which they were signed:
one that is said again late takes no newer one's place. All accounts share `MAX_BASES` places.
When these are taken, it is as in the market's book: there *has traded* whoever a live receipt of
a broker that the book favours names as buyer or seller, for whatever task.

- What an account that has traded said gives way to nothing, but to what is newer of its own.
- Of what the others said, the base that would stay the longest gives way (of several the one that
  came last): to anything of an account that has traded, and to what would leave sooner.

So those who have traded are kept out only by each other, when they hold all places: that takes
`MAX_BASES / MAX_OF_ACCOUNT` accounts, each named in a paid trade of the last day.

| question                                          | reason          |
|---------------------------------------------------|-----------------|
| is it canonical, every field within its bounds?   | malformed, …    |
| is it an offer?                                   | not-an-offer    |
| is it of the task that we try?                    | another-task    |
| is it of all layers?                              | partial-base    |
| has it yet to expire?                             | expired         |
| has it been issued, give or take our clocks?      | from-the-future |
| is it news?                                       | duplicate       |
| has its account a place free, or an older base?   | superseded      |
| has the store a place free, or what gives way?    | bases-full      |
| did its account sign it, and its peer?            | bad-signature … |
| then it is held                                   | good            |

What is refused is not remembered. It need not be: its signatures, which cost more than all else,
are looked at last, and the rest takes as long however much is held.

Pure: `receive(data, now)` returns the verdict and changes only what is held.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Final, TypeAlias

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

_Row: TypeAlias = tuple[UnixTime, int, Digest]
"""When a base is to be looked at, its turn, its name. Later bases have a higher turn."""


@dataclass(frozen=True, slots=True)
class _Held:
    offer: Offer
    data: bytes
    turn: int

    @property
    def age(self) -> tuple[int, int]:
        """Of two of one account, the newer has the higher."""
        return _age(self.offer)


class Bases:
    """Live bases for `task` by digest. `market` is the book whose receipts say who has traded."""

    def __init__(self, market: OfferBook, task: str) -> None:
        self._market = market
        self._task = task
        self._held: dict[Digest, _Held] = {}
        self._of: dict[Address, list[Digest]] = {}
        """By account, the newest last."""
        self._queue: list[_Row] = []
        """What may give way, by its end: the next to expire first, the next to give way last."""
        self._aside: list[_Row] = []
        """What may not, by when that may be over. Each base is in one of the two, once."""
        self._rows: dict[Digest, tuple[list[_Row], _Row]] = {}
        """Where each base is in them."""
        self._turn = 0

    def receive(self, data: bytes, now: UnixTime) -> Verdict:
        """Judge a base that was submitted, and hold it if it is good."""
        self._sweep(now)
        try:
            signed = envelope.decode(data)
            offer = signed.body
            if not isinstance(offer, Offer):
                return reject("not-an-offer")
            if offer.task != self._task:
                return reject("another-task")
            if offer.layers:
                return reject("partial-base")
            if offer.expires_at <= now:
                return ignore("expired")
            if offer.issued_at > now + MAX_CLOCK_SKEW:
                return ignore("from-the-future")
            own = [self._held[name] for name in self._of.get(offer.seller, ())]
            if any(held.data == data for held in own):
                return ignore("duplicate")
            full = len(own) >= MAX_OF_ACCOUNT
            gone = None
            held_as_other_bytes = any(held.offer == offer for held in own)
            if (full or len(self._held) >= MAX_BASES) and not held_as_other_bytes:
                gone = self._gives_way(offer, now)
                if gone is None:
                    return ignore("superseded" if full else "bases-full")
            name = envelope.check(self._market.domain, signed)
        except RemoteProtocolError as error:
            return reject(error.reason)
        if name in self._held:
            return ignore("duplicate")
        if gone is not None:
            self._forget(gone)
        self._keep(name, offer, data, now)
        return accept()

    def data_of(self, digest: Digest) -> bytes | None:
        """Return a base that is held, as it was signed."""
        held = self._held.get(digest)
        return None if held is None else held.data

    def offer(self, name: Digest, now: UnixTime) -> Offer | None:
        """Return the live base with this digest."""
        held = self._held.get(name)
        return held.offer if held is not None and held.offer.expires_at > now else None

    def _keep(self, name: Digest, offer: Offer, data: bytes, now: UnixTime) -> None:
        self._turn += 1
        self._held[name] = _Held(offer, data, self._turn)
        own = self._of.setdefault(offer.seller, [])
        own.append(name)
        own.sort(key=lambda one: self._held[one].age)
        self._enqueue(name, now)

    def _forget(self, name: Digest) -> None:
        self._dequeue(name)
        seller = self._held.pop(name).offer.seller
        self._of[seller].remove(name)
        if not self._of[seller]:
            del self._of[seller]

    # ── room ──

    def _has_traded(self, account: Address, now: UnixTime) -> bool:
        return self._market.traded_until(account) > now

    def _gives_way(self, offer: Offer, now: UnixTime) -> Digest | None:
        """Return the base whose place this one may have, when there is none to spare."""
        own = self._of.get(offer.seller, ())
        if len(own) >= MAX_OF_ACCOUNT:
            return own[0] if self._held[own[0]].age <= _age(offer) else None
        while self._queue:
            end, _, longest = self._queue[-1]
            if not self._has_traded(self._held[longest].offer.seller, now):
                sooner = offer.expires_at < end
                return longest if sooner or self._has_traded(offer.seller, now) else None
            self._dequeue(longest)  # it has traded since it was last looked at
            self._enqueue(longest, now)
        return None

    def _sweep(self, now: UnixTime) -> None:
        """Forget what has expired, and let give way what nothing shelters any more."""
        while self._queue and self._queue[0][0] <= now:
            self._forget(self._queue[0][2])
        while self._aside and self._aside[0][0] <= now:
            name = self._aside[0][2]
            if self._held[name].offer.expires_at <= now:
                self._forget(name)
            else:
                self._dequeue(name)
                self._enqueue(name, now)

    def _enqueue(self, name: Digest, now: UnixTime) -> None:
        held = self._held[name]
        line, look = self._queue, held.offer.expires_at
        if self._has_traded(held.offer.seller, now):
            line, look = self._aside, min(look, self._market.traded_until(held.offer.seller))
        row = (look, held.turn, name)
        insort(line, row)
        self._rows[name] = (line, row)

    def _dequeue(self, name: Digest) -> None:
        line, row = self._rows.pop(name)
        del line[bisect_left(line, row)]


def _age(offer: Offer) -> tuple[int, int]:
    return (offer.issued_at, offer.nonce)
