"""What is submitted to be tried upon: a few of each account, and those of traders to the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker_node import bases
from broker_node.bases import Bases
from node.protocol.book import OfferBook
from node.protocol.eip712 import digest
from node.protocol.offer import MAX_CLOCK_SKEW, MAX_LIFETIME, NOT_FOR_SALE, Offer
from node.protocol.types import UnixTime
from tests.protocol import cast
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, TASK, Party, seal

ROOM, OF_ONE = 6, 2
CROWD = [Party(f"crowd {number}") for number in range(ROOM + 1)]


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "MAX_BASES", ROOM)
        patch.setattr(bases, "MAX_OF_ACCOUNT", OF_ONE)
        yield


@pytest.fixture
def market() -> OfferBook:
    return OfferBook(DOMAIN, favoured=frozenset({BROKER.account}))


@pytest.fixture
def ours(market: OfferBook) -> Bases:
    return Bases(market, TASK)


def base(by: Party, nonce: int = 1, life: int = 600, at: int = 0) -> Offer:
    return cast.offer(
        by,
        reserve=NOT_FOR_SALE,
        nonce=nonce,
        issued_at=UnixTime(NOW + at),
        expires_at=UnixTime(NOW + at + life),
    )


def says(ours: Bases, offer: Offer, by: Party, now: int = 0) -> str:
    return ours.receive(seal(offer, by), UnixTime(NOW + now)).reason


def holds(ours: Bases, offer: Offer, now: int = 0) -> bool:
    return ours.offer(digest(DOMAIN, offer), UnixTime(NOW + now)) == offer


def flood(ours: Bases, life: int = 60) -> list[Offer]:
    """Take all places, by accounts that cost nothing."""
    said = [base(party, life=life) for party in CROWD[:ROOM]]
    for offer, party in zip(said, CROWD, strict=False):
        assert says(ours, offer, party) == "good"
    return said


def traded(market: OfferBook, by: Party = BROKER, life: int = MAX_LIFETIME) -> None:
    """Say that SELLER sold something to BUYER."""
    receipt = cast.receipt(by, expires_at=UnixTime(NOW + life))
    assert market.receive(seal(receipt, by), NOW).accepted


def test_of_an_account_the_newest_few_are_held(ours: Bases) -> None:
    said = [base(SELLER, nonce=nonce) for nonce in range(1, 8)]
    for offer in said:
        assert says(ours, offer, SELLER) == "good"
    assert [holds(ours, offer) for offer in said] == [False] * 5 + [True] * OF_ONE


def test_the_newest_are_those_signed_last_whenever_they_come(ours: Bases) -> None:
    old, *newer = [base(SELLER, nonce=nonce, at=at) for nonce, at in ((9, -60), (3, 0), (2, 30))]
    for offer in reversed(newer):
        assert says(ours, offer, SELLER) == "good"
    assert says(ours, old, SELLER) == "superseded"
    assert all(holds(ours, offer) for offer in newer)


def test_one_account_takes_a_few_places_of_all(ours: Bases) -> None:
    for nonce in range(1, 20):
        assert says(ours, base(BUYER, nonce=nonce, life=60), BUYER) == "good"
    for party in CROWD[: ROOM - OF_ONE]:
        assert says(ours, base(party), party) == "good"
    assert says(ours, base(CROWD[ROOM]), CROWD[ROOM]) == "bases-full"


def test_whoever_has_traded_gets_a_place_however_many_short_lived_ones_there_are(
    ours: Bases, market: OfferBook
) -> None:
    crowd = flood(ours)
    assert says(ours, base(SELLER), SELLER) == "bases-full"
    traded(market)
    for party in (SELLER, BUYER):
        assert says(ours, base(party), party) == "good"
        assert holds(ours, base(party))
    assert sum(holds(ours, offer) for offer in crowd) == ROOM - 2


def test_no_flood_drives_out_the_base_of_one_who_has_traded(ours: Bases, market: OfferBook) -> None:
    traded(market)
    long = base(SELLER, life=MAX_LIFETIME)
    assert says(ours, long, SELLER) == "good"
    for life in (60, 50, 40):
        for party in CROWD:
            says(ours, base(party, nonce=life, life=life), party)
    assert holds(ours, long)


@pytest.mark.parametrize("life", [300, 600])
def test_a_receipt_shelters_a_base_as_long_as_it_is_good(
    ours: Bases, market: OfferBook, life: int
) -> None:
    traded(market, life=life)
    flood(ours, life=500)
    assert says(ours, base(SELLER), SELLER, now=400) == ("good" if life > 400 else "bases-full")


def test_a_receipt_of_a_broker_that_nobody_joined_shelters_no_base(
    ours: Bases, market: OfferBook
) -> None:
    traded(market, by=Party("another broker"))
    flood(ours)
    assert says(ours, base(SELLER), SELLER) == "bases-full"


def test_of_the_others_the_base_that_would_stay_the_longest_gives_way(ours: Bases) -> None:
    crowd = flood(ours, life=700)
    assert says(ours, base(SELLER, life=700), SELLER) == "bases-full"
    assert says(ours, base(SELLER), SELLER) == "good"
    assert [holds(ours, offer) for offer in crowd] == [True] * (ROOM - 1) + [False]


def test_places_of_what_has_expired_are_free(ours: Bases) -> None:
    flood(ours)
    assert says(ours, base(SELLER), SELLER, now=59) == "bases-full"
    assert says(ours, base(SELLER), SELLER, now=60) == "good"
    assert not holds(ours, base(SELLER), now=600)


def test_what_no_book_would_take_is_no_base_either(ours: Bases) -> None:
    good = base(SELLER)
    forged = cast.forge(good, account=BUYER, peer=SELLER)
    elsewhere = cast.forge(good, account=SELLER, peer=BUYER)
    early = base(SELLER, at=MAX_CLOCK_SKEW + 1)
    refused = [
        (ours.receive(data, UnixTime(now)).reason, reason)
        for data, now, reason in (
            (b"\x00", NOW, "malformed"),
            (seal(cast.NOTICE, BROKER), NOW, "not-an-offer"),
            (seal(good, SELLER), NOW + 600, "expired"),
            (seal(early, SELLER), NOW, "from-the-future"),
            (forged, NOW, "bad-signature"),
            (elsewhere, NOW, "bad-peer-signature"),
        )
    ]
    assert [found for found, _ in refused] == [reason for _, reason in refused]
    assert not holds(ours, good)
    assert says(ours, good, SELLER) == "good"
    assert says(ours, good, SELLER) == "duplicate"
    assert holds(ours, good)
