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
| is there room in the book?                      | book-full          | ignore  |
| is there room for its issuer?                   | issuer-full        | ignore  |
| if it takes an offer back, is that its own?     | not-your-offer     | ignore  |
| then it is kept                                 | good               | accept  |

Replays: gossip forgets a message after two minutes, so the book itself remembers each
(issuer, nonce) until the statement has expired; after that it is *expired*. A nonce that
comes back with another body was signed twice by its issuer. Who relays it may have heard
that body first, just as a relay of a stranger's revocation may not know the offer: neither
is an offence, or one cheat could have honest nodes ban each other.

The machine is pure: `receive(data, now)` returns the verdict and changes only the book.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
MAX_OF_ISSUER: Final = 1_024
"""Unexpired statements of one account; a trainer that offers each minute needs a few dozen."""


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
    counts: Counter[tuple[Judgement, str]] = field(default_factory=Counter)
    _entries: dict[Digest, Entry] = field(default_factory=dict)
    _nonces: dict[tuple[Address, int], tuple[Digest, UnixTime]] = field(default_factory=dict)
    _said_by: Counter[Address] = field(default_factory=Counter)
    _revoked: dict[tuple[Address, Digest], UnixTime] = field(default_factory=dict)
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

    def latest_of_each_seller(self, task: str, now: UnixTime) -> list[tuple[Digest, Offer]]:
        """For each seller the newest of its live offers for `task`."""
        newest: dict[Address, tuple[Digest, Offer]] = {}
        for digest, offer in self.offers(now):
            held = newest.get(offer.seller)
            if offer.task == task and (held is None or _age(held[1]) <= _age(offer)):
                newest[offer.seller] = (digest, offer)
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

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where the peer said, last, that it listens."""
        said: tuple[int, tuple[str, ...]] = (-1, ())
        for entry in self._entries.values():
            body = entry.signed.body
            if isinstance(body, Offer | BrokerNotice) and body.peer_id == peer:
                said = max(said, (body.issued_at, body.addresses))
        return said[1]

    def notice_of(
        self, peer: PeerId, task: str, now: UnixTime
    ) -> tuple[Digest, BrokerNotice] | None:
        """The newest live notice that `peer` signed for `task`."""
        found: tuple[Digest, BrokerNotice] | None = None
        for entry in self._entries.values():
            body = entry.signed.body
            if (
                isinstance(body, BrokerNotice)
                and (body.peer_id, body.task) == (peer, task)
                and body.expires_at > now
                and (found is None or _age(found[1]) <= _age(body))
            ):
                found = (entry.digest, body)
        return found

    def receipts(self, task: str) -> list[Receipt]:
        """Receipts of live price history for `task`, oldest first."""
        bodies = (entry.signed.body for entry in self._entries.values())
        return [body for body in bodies if isinstance(body, Receipt) and body.task == task]

    def statements(self, now: UnixTime) -> list[bytes]:
        """Every live statement, newest first, as it was gossiped."""
        live = (e for e in self._entries.values() if e.signed.body.expires_at > now)
        return [entry.data for entry in reversed(list(live))]

    def expire(self, now: UnixTime) -> None:
        """Forget what nobody could replay any more."""
        for digest in [d for d, e in self._entries.items() if e.signed.body.expires_at <= now]:
            del self._entries[digest]
        self._nonces = {k: v for k, v in self._nonces.items() if v[1] > now}
        self._said_by = Counter(issuer for issuer, _ in self._nonces)
        self._revoked = {k: until for k, until in self._revoked.items() if until > now}

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
            self._next_sweep = UnixTime(now + 10)
        if len(self._nonces) >= MAX_STATEMENTS:  # those of revoked offers are remembered too
            return ignore("book-full")
        if self._said_by[body.issuer] >= MAX_OF_ISSUER:
            return ignore("issuer-full")
        if isinstance(body, Revocation):
            revoked = self._entries.get(body.offer_digest)
            if revoked is not None:
                target = revoked.signed.body
                if not isinstance(target, Offer) or target.seller != body.seller:
                    return ignore("not-your-offer")
                del self._entries[body.offer_digest]
            self._revoked[body.issuer, body.offer_digest] = body.expires_at
        self._nonces[body.issuer, body.nonce] = (digest, body.expires_at)
        self._entries[digest] = Entry(digest, signed, data, now)
        self._said_by[body.issuer] += 1
        return accept()


def _age(body: Offer | BrokerNotice) -> tuple[int, int]:
    return (body.issued_at, body.nonce)


def body_of(data: bytes) -> Statement:
    """Return the statement in bytes that the book has accepted."""
    return envelope.decode(data).body
