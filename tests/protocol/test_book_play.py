"""However statements come, late, twice, bent, or out of order, the book holds only good ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from node.protocol import book, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import Domain, digest
from node.protocol.offer import MAX_CLOCK_SKEW, BrokerNotice, Offer, Receipt, Revocation, Statement
from node.protocol.types import UnixTime, Wei
from node.protocol.verdict import Judgement
from tests.protocol import cast
from tests.protocol.books import VERDICTS
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, STRANGER, Party

ROOM, ROOM_FOR_ONE = 8, 3
PARTIES = st.sampled_from([SELLER, STRANGER, BROKER, BUYER])
NONCES = st.integers(1, 6)
LIVES = st.sampled_from([1, 5, 30, 600])
AGES = st.integers(-MAX_CLOCK_SKEW - 20, 40)
ELSEWHERE = Domain(chain_id=1, escrow=DOMAIN.escrow)


class BookPlay(RuleBasedStateMachine):
    """One book, and everything that was ever said to it."""

    said = Bundle("said")

    def __init__(self) -> None:
        super().__init__()
        self.bounds = (book.MAX_STATEMENTS, book.MAX_OF_ISSUER)
        # a small book is full soon
        book.MAX_STATEMENTS, book.MAX_OF_ISSUER = ROOM, ROOM_FOR_ONE  # type: ignore[misc]
        self.now = NOW
        self.accepted: dict[bytes, UnixTime] = {}
        self.revoked: set[tuple[str, bytes]] = set()
        self.heard: Counter[tuple[Judgement, str]] = Counter()
        self.ours = OfferBook(DOMAIN)

    def teardown(self) -> None:
        book.MAX_STATEMENTS, book.MAX_OF_ISSUER = self.bounds  # type: ignore[misc]

    @initialize(picky=st.booleans())
    def begin(self, picky: bool) -> None:
        trusted = frozenset({BROKER.account}) if picky else frozenset()
        self.ours = OfferBook(DOMAIN, trusted_brokers=trusted)

    # ── what is said ──

    def times(self, age: int, life: int) -> dict[str, Any]:
        issued = UnixTime(self.now - age)
        return {"issued_at": issued, "expires_at": UnixTime(issued + life)}

    @rule(target=said, by=PARTIES, nonce=NONCES, age=AGES, life=LIVES, price=st.integers(1, 2))
    def offer(self, by: Party, nonce: int, age: int, life: int, price: int) -> Any:
        body = cast.offer(by, nonce=nonce, reserve=Wei(price), **self.times(age, life))
        return self.hear(cast.seal(body, by))

    @rule(target=said, by=PARTIES, nonce=NONCES, age=AGES, life=LIVES)
    def notice(self, by: Party, nonce: int, age: int, life: int) -> Any:
        return self.hear(cast.seal(cast.notice(by, nonce=nonce, **self.times(age, life)), by))

    @rule(target=said, by=PARTIES, nonce=NONCES, life=LIVES)
    def receipt(self, by: Party, nonce: int, life: int) -> Any:
        return self.hear(cast.seal(cast.receipt(by, nonce=nonce, **self.times(0, life)), by))

    @rule(target=said, of=said, nonce=NONCES, life=LIVES, by=st.one_of(st.none(), PARTIES))
    def take_back(self, of: bytes, nonce: int, life: int, by: Party | None) -> Any:
        body = envelope.decode(of).body
        who = by or next(p for p in (SELLER, STRANGER, BROKER, BUYER) if p.account == body.issuer)
        back = cast.revocation(digest(DOMAIN, body), by=who, nonce=nonce, **self.times(0, life))
        return self.hear(cast.seal(back, who))

    @rule(target=said, by=PARTIES, first=NONCES, then=NONCES, life=LIVES)
    def take_back_what_was_never_heard(self, by: Party, first: int, then: int, life: int) -> Any:
        body = cast.offer(by, nonce=then, **self.times(0, 600))
        back = cast.revocation(digest(DOMAIN, body), by=by, nonce=first, **self.times(0, life))
        return multiple(self.hear(cast.seal(back, by)), self.hear(cast.seal(body, by)))

    @rule(data=said)
    def again(self, data: bytes) -> None:
        self.hear(data)

    @rule(data=said, at=st.integers(0, 2_000), bit=st.integers(0, 7))
    def bent(self, data: bytes, at: int, bit: int) -> None:
        changed = bytearray(data)
        changed[at % len(data)] ^= 1 << bit
        self.hear(bytes(changed), forged=True)

    @rule(by=PARTIES, account=PARTIES, peer=PARTIES, nonce=NONCES)
    def forged(self, by: Party, account: Party, peer: Party, nonce: int) -> None:
        body = cast.offer(by, nonce=nonce, **self.times(0, 600))
        sound = by == account == peer
        self.hear(cast.forge(body, account=account, peer=peer), forged=not sound)

    @rule(by=PARTIES, nonce=NONCES)
    def from_elsewhere(self, by: Party, nonce: int) -> None:
        body = cast.offer(by, nonce=nonce, **self.times(0, 600))
        self.hear(cast.seal(body, by, ELSEWHERE), forged=True)

    @rule(seconds=st.sampled_from([0, 1, 4, 9, 11, 60, 601]))
    def time_passes(self, seconds: int) -> None:
        self.now = UnixTime(self.now + seconds)

    @rule()
    def sweep(self) -> None:
        before = self.ours.statements(self.now)
        self.ours.expire(self.now)
        assert self.ours.statements(self.now) == before

    def hear(self, data: bytes, *, forged: bool = False) -> Any:
        """Have the book judge a message, and hold the verdict against what may be."""
        held = self.ours.statements(self.now)
        verdict = self.ours.receive(data, self.now)
        self.heard[verdict] += 1
        assert verdict.judgement.value == VERDICTS[verdict.reason]
        if forged:
            # a forgery is never taken in; where it is stale or known nobody looks closer
            assert not verdict.accepted
            return multiple()
        assert verdict.judgement is not Judgement.REJECT
        body = envelope.decode(data).body
        name = digest(DOMAIN, body)
        if verdict.accepted:
            assert self.may_be_kept(body, data not in held)
            self.accepted[data] = body.expires_at
            if isinstance(body, Revocation):
                self.revoked.add((body.seller, body.offer_digest))
        if verdict.reason == "revoked":
            assert (body.issuer, name) in self.revoked
        if verdict.reason == "duplicate":
            assert any(
                (envelope.decode(old).body.issuer, envelope.decode(old).body) == (body.issuer, body)
                for old in self.accepted
            )
        if verdict.reason in {"expired", "from-the-future"}:
            assert not body.issued_at - MAX_CLOCK_SKEW <= self.now < body.expires_at
        return data

    def may_be_kept(self, body: Statement, new: bool) -> bool:
        in_time = body.issued_at <= self.now + MAX_CLOCK_SKEW and self.now < body.expires_at
        trusted = (
            not isinstance(body, BrokerNotice | Receipt)
            or not self.ours.trusted_brokers
            or body.broker in self.ours.trusted_brokers
        )
        return in_time and trusted and new

    # ── what holds throughout ──

    @invariant()
    def all_that_is_kept_is_signed_by_both_keys_and_in_time(self) -> None:
        for data in self.ours.statements(self.now):
            signed = envelope.decode(data)
            envelope.check(DOMAIN, signed)
            assert signed.body.expires_at > self.now
            assert data in self.accepted

    @invariant()
    def no_issuer_has_two_statements_under_one_nonce(self) -> None:
        bodies = [envelope.decode(d).body for d in self.ours.statements(self.now)]
        used = [(body.issuer, body.nonce) for body in bodies]
        assert len(used) == len(set(used))

    @invariant()
    def no_offer_stands_that_its_seller_took_back(self) -> None:
        taken_back = {
            (b.seller, b.offer_digest)
            for b in (envelope.decode(d).body for d in self.ours.statements(self.now))
            if isinstance(b, Revocation)
        }
        for name, offer in self.ours.offers(self.now):
            assert isinstance(offer, Offer)
            assert (offer.seller, name) not in taken_back
            assert self.ours.offer(name, self.now) == offer

    @invariant()
    def the_book_is_bounded(self) -> None:
        bodies = [envelope.decode(d).body for d in self.ours.statements(self.now)]
        said = Counter(b.issuer for b in bodies if b.issuer not in self.ours.trusted_brokers)
        assert said.total() <= ROOM
        assert max(said.values(), default=0) <= ROOM_FOR_ONE
        room = ROOM + self.ours._said_by[BROKER.account]
        assert len(self.ours._entries) <= len(self.ours._nonces) <= room
        assert len(self.ours._revoked) <= room

    @invariant()
    def every_verdict_is_counted(self) -> None:
        assert self.ours.counts == self.heard


def test_whatever_is_said_the_book_holds_only_what_is_signed_unexpired_and_said_once() -> None:
    run_state_machine_as_test(
        BookPlay, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
