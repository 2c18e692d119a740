"""The book: every live statement that a node has heard and found good.

A message is asked these questions in turn, cheap ones first (a signature costs ten times
more than all look-ups); the first that is answered with no gives verdict and reason.

| question                                        | reason             | verdict |
|-------------------------------------------------|--------------------|---------|
| is it short enough to be gossiped?              | oversize           | reject  |
| is it canonical, every field within its bounds? | malformed          | reject  |
| is it of a kind that we know?                   | unknown-kind       | reject  |
| has it yet to expire?                           | expired            | ignore  |
| has it been issued, give or take our clocks?    | from-the-future    | ignore  |
| is it news?                                     | duplicate          | ignore  |
| did its account sign it, for this escrow?       | bad-signature      | reject  |
| does its peer id hold a sound key?              | bad-peer-id        | reject  |
| did that peer sign it too?                      | bad-peer-signature | reject  |
| is it the first under its nonce?                | nonce-reused       | ignore  |
| has its seller not taken it back?               | revoked            | ignore  |
| do we trust its broker?                         | untrusted-broker   | ignore  |
| if it takes an offer back, is that its own?     | not-your-offer     | ignore  |
| is there room for its issuer?                   | issuer-full        | ignore  |
| is there room in the book?                      | book-full          | ignore  |
| then it is kept                                 | good               | accept  |

Replays: gossip forgets a message after two minutes, so the book itself remembers each
(issuer, nonce) until the statement has expired; after that it is *expired*. A nonce that
comes back with another body was signed twice by its issuer. Who relays it may have heard
that body first, just as a relay of a stranger's revocation may not know the offer: neither
is an offence, or one cheat could have honest nodes ban each other.

Room: whatever `favoured` and trusted accounts say (our own, the brokers that we joined by) is
kept, and takes nobody's place. All others share `MAX_STATEMENTS` places. Accounts cost nothing,
so how many of them want a place says nothing; when all are taken, this decides:

- Who is *sheltered* never gives way: an account that a live receipt of a favoured broker names
  as buyer or seller, and that says no more than `MAX_SHELTERED` things at a time. A receipt is
  a trade that was paid, and so are the places that it shelters.
- Of what the others said, the statement that would stay the longest gives way (of several the
  one that came last): to anything of a sheltered account, and to what would leave sooner.

So a flood is never paid for once: long lives give way to honest short ones, and short ones
have to be said again and again. As long as somebody does that, accounts without a receipt may
be kept out; no other statement can be.

The machine is pure: `receive(data, now)` returns the verdict and changes only the book.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from node.protocol import envelope
from node.protocol.eip712 import Domain
from node.protocol.envelope import Signed
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import (
    MAX_CLOCK_SKEW,
    BrokerNotice,
    Offer,
    Receipt,
    Revocation,
    Statement,
)
from node.protocol.types import Address, Digest, PeerId, UnixTime
from node.protocol.verdict import Judgement, Verdict, accept, ignore, reject

MAX_STATEMENTS: Final = 20_000
"""Unexpired statements of all accounts that are not favoured."""
MAX_OF_ISSUER: Final = 1_024
"""Unexpired statements of one such account; a trainer that offers each minute needs a few dozen."""
MAX_SHELTERED: Final = 64
"""So many a receipt shelters: to fill the book with them takes hundreds of paid trades a day."""
SWEEP_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """A statement in the book, with the bytes it came as."""

    digest: Digest
    signed: Signed[Statement]
    data: bytes
    heard_at: UnixTime


@dataclass
class OfferBook:
    """Live statements by digest. `trusted_brokers` empty means: any broker's notice."""

    domain: Domain
    trusted_brokers: frozenset[Address] = frozenset()
    favoured: frozenset[Address] = frozenset()
    """Accounts, besides trusted brokers, that there is always room for."""
    counts: Counter[tuple[Judgement, str]] = field(default_factory=Counter)
    _entries: dict[Digest, Entry] = field(default_factory=dict)
    _nonces: dict[tuple[Address, int], tuple[Digest, UnixTime]] = field(default_factory=dict)
    _said_by: Counter[Address] = field(default_factory=Counter)
    _revoked: dict[tuple[Address, Digest], dict[int, UnixTime]] = field(default_factory=dict)
    """By seller and offer: the nonces under which it was taken back, and until when."""
    _traded: dict[Address, UnixTime] = field(default_factory=dict)
    """Until when a receipt of a favoured broker names an account."""
    _queue: list[tuple[int, int, Address, int]] = field(default_factory=list)
    """What may give way, the next first: minus its end, minus its turn, its issuer and nonce."""
    _turn: int = 0
    _next_sweep: UnixTime = UnixTime(0)

    def receive(self, data: bytes, now: UnixTime) -> Verdict:
        """Judge a message from gossip, keep it if it is good, count the verdict."""
        verdict = self._judge(data, now)
        self.counts[verdict.judgement, verdict.reason] += 1
        return verdict

    def offers(self, now: UnixTime) -> Iterator[tuple[Digest, Offer]]:
        """Live offers, oldest first."""
        for entry in list(self._entries.values()):
            body = entry.signed.body
            if isinstance(body, Offer) and body.expires_at > now:
                yield entry.digest, body

    def latest_of_each_seller(
        self, task: str, now: UnixTime, parts: Collection[tuple[int, ...]] | None = None
    ) -> list[tuple[Digest, Offer]]:
        """For each seller the newest of its live offers for `task`.

        With `parts` the newest of each of these sets of layers, and no offer of any other.
        """
        newest: dict[tuple[Address, tuple[int, ...]], tuple[Digest, Offer]] = {}
        for digest, offer in self.offers(now):
            if offer.task != task or (parts is not None and offer.layers not in parts):
                continue
            key = (offer.seller, () if parts is None else offer.layers)
            held = newest.get(key)
            if held is None or _age(held[1]) <= _age(offer):
                newest[key] = (digest, offer)
        return list(newest.values())

    def offer(self, digest: Digest, now: UnixTime) -> Offer | None:
        """The live offer with this digest."""
        entry = self._entries.get(digest)
        if entry is None or not isinstance(entry.signed.body, Offer):
            return None
        return entry.signed.body if entry.signed.body.expires_at > now else None

    def data_of(self, digest: Digest) -> bytes | None:
        """A live statement, as it was gossiped."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.data

    def heard_at(self, digest: Digest) -> UnixTime | None:
        """When a live statement was first heard here."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.heard_at

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where the peer said, last, that it listens."""
        said: tuple[int, tuple[str, ...]] = (-1, ())
        for entry in self._entries.values():
            body = entry.signed.body
            if isinstance(body, Offer | BrokerNotice) and body.peer_id == peer:
                said = max(said, (body.issued_at, body.addresses))
        return said[1]

    def notice_of(
        self, peer: PeerId, task: str, now: UnixTime, *, account: Address | None = None
    ) -> tuple[Digest, BrokerNotice] | None:
        """The newest live notice that `peer` signed for `task`, of this account or of any."""
        found: tuple[Digest, BrokerNotice] | None = None
        for entry in self._entries.values():
            body = entry.signed.body
            if (
                isinstance(body, BrokerNotice)
                and (body.peer_id, body.task) == (peer, task)
                and account in (None, body.broker)
                and body.expires_at > now
                and (found is None or _age(found[1]) <= _age(body))
            ):
                found = (entry.digest, body)
        return found

    def receipts(self, task: str) -> list[Receipt]:
        """Receipts of live price history for `task`, oldest first."""
        bodies = (entry.signed.body for entry in self._entries.values())
        return [body for body in bodies if isinstance(body, Receipt) and body.task == task]

    def traded_until(self, account: Address) -> UnixTime:
        """Until when a receipt of a favoured broker names an account, 0 if none does; at no cost.

        What was heard of a broker before it was favoured counts from the next sweep.
        """
        return self._traded.get(account, UnixTime(0))

    def statements(self, now: UnixTime) -> list[bytes]:
        """Every live statement, as it was gossiped: favoured brokers' notices, then the newest."""
        live = [e for e in reversed(self._entries.values()) if e.signed.body.expires_at > now]
        return [entry.data for entry in sorted(live, key=self._is_mere)]

    def _is_mere(self, entry: Entry) -> bool:
        body = entry.signed.body
        return not (isinstance(body, BrokerNotice) and self._is_favoured(body.broker))

    def expire(self, now: UnixTime) -> None:
        """Forget what nobody could replay any more."""
        for digest in [d for d, e in self._entries.items() if e.signed.body.expires_at <= now]:
            del self._entries[digest]
        self._nonces = {k: v for k, v in self._nonces.items() if v[1] > now}
        self._said_by = Counter(issuer for issuer, _ in self._nonces)
        for key, taken_back in list(self._revoked.items()):
            left = {nonce: until for nonce, until in taken_back.items() if until > now}
            self._revoked[key] = left
            if not left:
                del self._revoked[key]
        self._traded = {}
        for entry in self._entries.values():
            self._shelter(entry.signed.body)
        self._queue = []
        for (issuer, nonce), (_, until) in self._nonces.items():
            self._enqueue(issuer, nonce, until)

    def _judge(self, data: bytes, now: UnixTime) -> Verdict:
        try:
            signed = envelope.decode(data)
            body = signed.body
            if body.expires_at <= now:
                return ignore("expired")
            if body.issued_at > now + MAX_CLOCK_SKEW:
                return ignore("from-the-future")
            known = self._nonces.get((body.issuer, body.nonce))
            if known is not None and known[1] <= now:
                self.expire(now)
                known = None
            if known is not None and self.data_of(known[0]) == data:
                return ignore("duplicate")
            digest = envelope.check(self.domain, signed)
        except RemoteProtocolError as error:
            return reject(error.reason)
        if known is not None:
            return ignore("duplicate" if known[0] == digest else "nonce-reused")
        return self._keep(digest, signed, data, now)

    def _keep(
        self, digest: Digest, signed: Signed[Statement], data: bytes, now: UnixTime
    ) -> Verdict:
        body = signed.body
        if isinstance(body, Offer) and (body.issuer, digest) in self._revoked:
            return ignore("revoked")
        if (
            isinstance(body, BrokerNotice | Receipt)
            and self.trusted_brokers
            and body.issuer not in self.trusted_brokers
        ):
            return ignore("untrusted-broker")
        if now >= self._next_sweep:
            self.expire(now)
            self._next_sweep = UnixTime(now + SWEEP_SECONDS)
        if isinstance(body, Revocation):
            revoked = self._entries.get(body.offer_digest)
            target = None if revoked is None else revoked.signed.body
            if target is not None and not (
                isinstance(target, Offer) and target.seller == body.seller
            ):
                return ignore("not-your-offer")
        if not self._is_favoured(body.issuer):
            if self._said_by[body.issuer] >= MAX_OF_ISSUER:
                return ignore("issuer-full")
            if not self._make_room(body, now):
                return ignore("book-full")
        if isinstance(body, Revocation):
            self._entries.pop(body.offer_digest, None)
            taken_back = self._revoked.setdefault((body.issuer, body.offer_digest), {})
            taken_back[body.nonce] = body.expires_at
        self._nonces[body.issuer, body.nonce] = (digest, body.expires_at)
        self._entries[digest] = Entry(digest, signed, data, now)
        self._said_by[body.issuer] += 1
        self._shelter(body)
        self._enqueue(body.issuer, body.nonce, body.expires_at)
        return accept()

    # ── room ──

    def _is_favoured(self, account: Address) -> bool:
        return account in self.favoured or account in self.trusted_brokers

    def _is_sheltered(self, account: Address, now: UnixTime, *, more: int = 0) -> bool:
        """Whether what an account says may stay, were there so much `more` of it."""
        traded = self.traded_until(account) > now
        return self._is_favoured(account) or (
            traded and self._said_by[account] + more <= MAX_SHELTERED
        )

    def _shelter(self, body: Statement) -> None:
        if isinstance(body, Receipt) and self._is_favoured(body.broker):
            for account in (body.buyer, body.seller):
                self._traded[account] = max(self.traded_until(account), body.expires_at)

    def _enqueue(self, issuer: Address, nonce: int, until: UnixTime) -> None:
        self._turn += 1
        if not self._is_favoured(issuer):
            heapq.heappush(self._queue, (-until, -self._turn, issuer, nonce))

    def _make_room(self, body: Statement, now: UnixTime) -> bool:
        """Have a place free for one more statement, if need be by what gives way to it."""
        favoured = self.favoured | self.trusted_brokers
        # those of revoked offers are remembered too, and have their places
        if len(self._nonces) - sum(self._said_by[a] for a in favoured) < MAX_STATEMENTS:
            return True
        while self._queue:
            ends, _, issuer, nonce = self._queue[0]
            held = self._nonces.get((issuer, nonce))
            if held is None or held[1] != -ends or self._is_sheltered(issuer, now):
                heapq.heappop(self._queue)  # gone by now, or safe until the next sweep looks
            elif body.expires_at < held[1] or self._is_sheltered(body.issuer, now, more=1):
                heapq.heappop(self._queue)
                self._evict(issuer, nonce)
                return True
            else:
                return False
        return False

    def _evict(self, issuer: Address, nonce: int) -> None:
        """Forget a statement as if it had never been said."""
        digest, _ = self._nonces.pop((issuer, nonce))
        self._said_by[issuer] -= 1
        if not self._said_by[issuer]:
            del self._said_by[issuer]
        entry = self._entries.pop(digest, None)
        if entry is not None and isinstance(entry.signed.body, Revocation):
            key = (issuer, entry.signed.body.offer_digest)
            del self._revoked[key][nonce]
            if not self._revoked[key]:
                del self._revoked[key]


def _age(body: Offer | BrokerNotice) -> tuple[int, int]:
    return (body.issued_at, body.nonce)


def body_of(data: bytes) -> Statement:
    """Return the statement in bytes that the book has accepted."""
    return envelope.decode(data).body
