"""Accounts cost nothing: however many of them talk, the book stays bounded and of use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol import book, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import digest
from node.protocol.offer import MAX_LIFETIME, Receipt, Statement
from node.protocol.types import Address, UnixTime
from tests.protocol import cast
from tests.protocol.books import GOOD, NOTICE, OFFER, later, remembered, says
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, Party, seal

ROOM, ROOM_FOR_ONE, SHELTERED = 6, 4, 2
US = Party("ourselves")
CROWD = [Party(f"crowd {number}") for number in range(ROOM + 2)]
DAY = MAX_LIFETIME


@contextmanager
def small_books() -> Iterator[None]:
    """Books that are full soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "MAX_STATEMENTS", ROOM)
        patch.setattr(book, "MAX_OF_ISSUER", ROOM_FOR_ONE)
        patch.setattr(book, "MAX_SHELTERED", SHELTERED)
        yield


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_books():
        yield


def our_book() -> OfferBook:
    return OfferBook(DOMAIN, favoured=frozenset({US.account, BROKER.account}))


@pytest.fixture
def ours() -> OfferBook:
    return our_book()


def offered(by: Party, life: int = 600, nonce: int = 1, at: UnixTime = NOW) -> bytes:
    return seal(cast.offer(by, nonce=nonce, issued_at=at, expires_at=UnixTime(at + life)), by)


def receipt(by: Party = BROKER, life: int = DAY, nonce: int = 7, at: UnixTime = NOW) -> bytes:
    """Say that SELLER sold something to BUYER."""
    return seal(cast.receipt(by, nonce=nonce, issued_at=at, expires_at=UnixTime(at + life)), by)


def flood(ours: OfferBook, life: int = DAY, now: UnixTime = NOW) -> list[bytes]:
    """Fill the book with throw-away accounts."""
    said = [offered(party, life, at=now) for party in CROWD[:ROOM]]
    for data in said:
        assert ours.receive(data, now) == GOOD
    return said


# ── whom there is always room for ──


def test_no_flood_keeps_us_or_our_broker_out(ours: OfferBook) -> None:
    crowd = flood(ours)
    own = [offered(US, nonce=nonce) for nonce in range(ROOM_FOR_ONE + 2)]
    terms = [NOTICE, *(receipt(nonce=nonce) for nonce in range(10, 10 + 2 * ROOM))]
    for data in (*own, *terms):
        assert ours.receive(data, NOW) == GOOD
    assert set(ours.statements(NOW)) == {*crowd, *own, *terms}


def test_no_flood_keeps_a_trusted_broker_out() -> None:
    ours = OfferBook(DOMAIN, trusted_brokers=frozenset({BROKER.account}))
    flood(ours)
    for nonce in range(10, 10 + 2 * ROOM):
        assert ours.receive(receipt(nonce=nonce), NOW) == GOOD


def test_what_is_favoured_takes_nobodys_place(ours: OfferBook) -> None:
    for nonce in range(2 * ROOM):
        assert ours.receive(offered(US, nonce=nonce), NOW) == GOOD
    flood(ours)


def test_a_broker_that_we_join_later_is_favoured_from_then_on() -> None:
    ours = OfferBook(DOMAIN)
    flood(ours, life=600)
    assert says(ours, NOTICE) == "book-full"
    ours.favoured |= {BROKER.account}
    assert ours.receive(NOTICE, NOW) == GOOD


def test_the_terms_of_our_broker_are_listed_before_any_flood(ours: OfferBook) -> None:
    ours.receive(NOTICE, NOW)
    said = flood(ours)
    assert ours.statements(NOW) == [NOTICE, *reversed(said)]


# ── who gives way ──


def test_long_lives_give_way_to_short_ones(ours: OfferBook) -> None:
    said = flood(ours)
    assert ours.receive(OFFER, NOW) == GOOD
    assert ours.statements(NOW) == [OFFER, *reversed(said[:-1])]


def test_what_would_stay_as_long_is_not_taken_in(ours: OfferBook) -> None:
    said = flood(ours, life=600)
    assert says(ours, OFFER) == "book-full"
    assert says(ours, offered(SELLER, 601)) == "book-full"
    assert ours.statements(NOW) == [*reversed(said)]
    assert ours.receive(offered(SELLER, 599), NOW) == GOOD


def test_the_statement_that_would_stay_the_longest_goes_first(ours: OfferBook) -> None:
    said = [
        offered(party, life)
        for party, life in zip(CROWD, (500, 900, 700, 900, 800, 600), strict=False)
    ]
    for data in said:
        ours.receive(data, NOW)
    for nonce, gone in enumerate((3, 1, 4, 2)):  # of the two that end last the later to come
        assert said[gone] in ours.statements(NOW)
        assert ours.receive(offered(SELLER, 100, nonce=nonce), NOW) == GOOD
        assert said[gone] not in ours.statements(NOW)


def test_what_gave_way_may_come_back_when_there_is_room(ours: OfferBook) -> None:
    last = flood(ours)[-1]
    ours.receive(offered(SELLER, 60), NOW)
    assert says(ours, last) == "book-full"
    assert ours.receive(last, later(60)) == GOOD


def test_a_revocation_that_gave_way_leaves_nothing_behind(ours: OfferBook) -> None:
    back = cast.revocation(cast.OFFER_DIGEST, expires_at=later(DAY))
    ours.receive(seal(back, SELLER), NOW)
    for party in CROWD[:ROOM]:
        ours.receive(offered(party, 900), NOW)
    assert len(ours.statements(NOW)) == ROOM
    assert remembered(ours) == 3 * ROOM  # statements, nonces, issuers
    assert says(ours, OFFER, later(1)) == "good"


def test_an_offer_that_was_taken_back_twice_stays_gone_while_one_of_the_two_stands(
    ours: OfferBook,
) -> None:
    for nonce, life in ((2, DAY), (3, 300)):
        back = cast.revocation(cast.OFFER_DIGEST, nonce=nonce, expires_at=later(life))
        assert ours.receive(seal(back, SELLER), NOW) == GOOD
    for party in CROWD[: ROOM - 1]:
        ours.receive(offered(party, 900), NOW)
    assert len(ours.statements(NOW)) == ROOM
    assert says(ours, OFFER) == "revoked"


# ── whom a receipt shelters ──


def test_a_seller_with_a_receipt_gets_its_place_however_long_it_wants_it(ours: OfferBook) -> None:
    ours.receive(receipt(), NOW)
    flood(ours, life=1)
    for nonce in range(SHELTERED):
        assert ours.receive(offered(SELLER, DAY, nonce=nonce), NOW) == GOOD
    assert says(ours, offered(SELLER, DAY, nonce=SHELTERED)) == "book-full"


def test_no_flood_drives_out_the_offer_of_a_seller_with_a_receipt(ours: OfferBook) -> None:
    offer = offered(SELLER, DAY)
    ours.receive(offer, NOW)
    ours.receive(receipt(), NOW)
    for life in range(30, 0, -1):
        for party in CROWD:
            ours.receive(offered(party, life, nonce=life), NOW)
    assert offer in ours.statements(NOW)
    for seconds in range(0, 600, 7):
        for party in CROWD:
            ours.receive(offered(party, 1, nonce=seconds + 100, at=later(seconds)), later(seconds))
        assert offer in ours.statements(later(seconds))


@pytest.mark.parametrize("word", [receipt(CROWD[-1]), receipt(SELLER)])
def test_a_receipt_of_nobody_that_we_trust_shelters_nobody(ours: OfferBook, word: bytes) -> None:
    offer = offered(SELLER, DAY)
    for data in (offer, word, *(offered(party, 600) for party in CROWD[:ROOM])):
        ours.receive(data, NOW)
    assert offer not in ours.statements(NOW)


def test_a_receipt_shelters_as_long_as_it_is_good(ours: OfferBook) -> None:
    offer = offered(SELLER, DAY)
    for data in (offer, receipt(life=100)):
        ours.receive(data, NOW)
    for party in CROWD[: ROOM - 1]:
        ours.receive(offered(party, 900), NOW)
    ours.receive(offered(CROWD[-1], 600), later(99))
    assert offer in ours.statements(later(99))
    ours.receive(offered(CROWD[-2], 600, at=later(111)), later(111))
    assert offer not in ours.statements(later(111))


def test_the_book_says_until_when_somebody_has_traded(ours: OfferBook) -> None:
    assert ours.traded_until(SELLER.account) == 0
    for life, nonce in ((300, 7), (100, 8)):
        ours.receive(receipt(life=life, nonce=nonce), NOW)
    ours.receive(receipt(CROWD[-1]), NOW)  # of a broker that nobody joined
    for account in (SELLER.account, BUYER.account):
        assert ours.traded_until(account) == later(300)
    assert ours.traded_until(CROWD[-1].account) == 0
    ours.expire(later(300))
    assert ours.traded_until(SELLER.account) == 0


# ── whatever is said, in whatever order ──

TALKERS = [US, BROKER, SELLER, *CROWD]
_saying = st.tuples(
    st.sampled_from(["offer", "offer", "offer", "receipt", "take back"]),
    st.sampled_from(TALKERS),
    st.integers(1, 5),
    st.sampled_from([1, 30, 600, DAY]),
    st.sampled_from([0, 0, 0, 1, 11, 700]),
)


def spoken(script: list[tuple[str, Party, int, int, int]]) -> Iterator[tuple[bytes, UnixTime]]:
    """Turn a script into statements and the moments at which they are heard."""
    now = NOW
    for kind, by, nonce, life, pause in script:
        now = UnixTime(now + pause)
        if kind == "receipt":
            yield receipt(by, life, nonce + 20, now), now
        elif kind == "take back":
            of = envelope.decode(offered(by, DAY, nonce, now)).body
            back = cast.revocation(
                digest(DOMAIN, of), by=by, nonce=nonce + 10,
                issued_at=now, expires_at=UnixTime(now + life),
            )  # fmt: skip
            yield seal(back, by), now
            yield offered(by, DAY, nonce, now), now
        else:
            yield offered(by, life, nonce, now), now


FAVOURED = {US.account, BROKER.account}
KNOWN = {"duplicate", "nonce-reused", "revoked"}


@settings(max_examples=150, deadline=None)
@given(script=st.lists(_saying, max_size=40))
def test_the_book_is_bounded_and_hears_us_and_our_brokers_whatever_the_crowd_says(
    script: list[tuple[str, Party, int, int, int]],
) -> None:
    with small_books():
        ours, again = our_book(), our_book()
        for data, now in spoken(script):
            body = envelope.decode(data).body
            sheltered = {b for b in bodies(ours, now) if is_sheltered(ours, b.issuer, now)}
            verdict = ours.receive(data, now)
            assert again.receive(data, now) == verdict
            assert again.statements(now) == ours.statements(now)
            if body.issuer in FAVOURED:
                assert verdict == GOOD or verdict.reason in KNOWN
            taken_back = getattr(body, "offer_digest", None)
            for held in sheltered:
                assert held in bodies(ours, now) or digest(DOMAIN, held) == taken_back
            favoured = sum(issuer in FAVOURED for issuer, _ in ours._nonces)
            assert len(ours._nonces) <= ROOM + favoured
            for table in (ours._entries, ours._said_by, ours._revoked, ours._traded):
                assert len(table) <= 2 * (ROOM + favoured)
            assert len(ours._queue) <= 2 * ROOM + SHELTERED


def bodies(ours: OfferBook, now: UnixTime) -> set[Statement]:
    return {envelope.decode(data).body for data in ours.statements(now)}


def is_sheltered(ours: OfferBook, account: Address, now: UnixTime) -> bool:
    """Whether a live receipt of our broker names it, and it says little; told from outside."""
    said = [body for body in bodies(ours, now) if body.issuer == account]
    receipts = [b for b in bodies(ours, now) if isinstance(b, Receipt) and b.broker in FAVOURED]
    traded = any(account in (b.buyer, b.seller) for b in receipts)
    return account in FAVOURED or (traded and len(said) <= SHELTERED)
