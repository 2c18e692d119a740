"""What is submitted to be tried upon: a few of each account, and those of traders to the last."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node import bases
from broker_node.bases import Bases
from node.protocol import envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import digest
from node.protocol.offer import MAX_CLOCK_SKEW, MAX_LIFETIME, NOT_FOR_SALE, Offer
from node.protocol.types import UnixTime
from tests.protocol import cast
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, TASK, Party, seal

ROOM, OF_ONE = 6, 2
CROWD = [Party(f"crowd {number}") for number in range(ROOM + 1)]


@contextmanager
def small_stores(room: int = ROOM) -> Iterator[None]:
    """Stores that are full soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "MAX_BASES", room)
        patch.setattr(bases, "MAX_OF_ACCOUNT", OF_ONE)
        yield


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_stores():
        yield


def a_market() -> OfferBook:
    return OfferBook(DOMAIN, favoured=frozenset({BROKER.account}))


@pytest.fixture
def market() -> OfferBook:
    return a_market()


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


def test_what_has_expired_of_an_account_is_none_of_its_few(ours: Bases) -> None:
    lasting = base(SELLER, nonce=1, at=-30)
    for offer in (lasting, base(SELLER, nonce=2, life=20)):
        assert says(ours, offer, SELLER) == "good"
    newer = base(SELLER, nonce=3, at=20)
    assert says(ours, newer, SELLER, now=20) == "good"
    assert holds(ours, lasting, now=20)
    assert holds(ours, newer, now=20)


def test_what_has_expired_supersedes_nothing(ours: Bases) -> None:
    for nonce in range(OF_ONE):
        assert says(ours, base(SELLER, nonce=nonce, life=20), SELLER) == "good"
    older = base(SELLER, nonce=9, at=-30)
    assert says(ours, older, SELLER, now=19) == "superseded"
    assert says(ours, older, SELLER, now=20) == "good"


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


def test_those_who_have_traded_are_kept_out_only_by_each_other(market: OfferBook) -> None:
    with small_stores(room=OF_ONE):
        ours = Bases(market, TASK)
        traded(market)
        for nonce in range(OF_ONE):
            assert says(ours, base(SELLER, nonce=nonce), SELLER) == "good"
        assert says(ours, base(BUYER, life=60), BUYER) == "bases-full"
        assert says(ours, base(SELLER, nonce=OF_ONE), SELLER) == "good"


def test_a_base_gives_way_again_when_the_receipt_has_expired(
    ours: Bases, market: OfferBook
) -> None:
    traded(market, life=100)
    long = base(SELLER, life=MAX_LIFETIME)
    for offer, party in ((long, SELLER), *((base(party), party) for party in CROWD[: ROOM - 1])):
        assert says(ours, offer, party) == "good"
    for now, last in ((99, CROWD[-1]), (100, CROWD[-2])):
        assert says(ours, base(last, life=300, at=now), last, now=now) == "good"
        assert holds(ours, long, now=now) == (now < 100)


def test_a_base_gives_way_no_more_when_its_account_has_traded(
    ours: Bases, market: OfferBook
) -> None:
    long = base(SELLER, life=MAX_LIFETIME)
    for offer, party in ((long, SELLER), *((base(party), party) for party in CROWD[: ROOM - 1])):
        assert says(ours, offer, party) == "good"
    traded(market)
    assert says(ours, base(CROWD[-1], life=300), CROWD[-1]) == "good"
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"layers": (0, 1)}, "partial-base"), ({"task": "faces"}, "another-task")],
)
def test_what_can_never_be_tried_upon_takes_no_place(
    ours: Bases, market: OfferBook, change: dict[str, Any], reason: str
) -> None:
    traded(market)
    crowd = flood(ours)
    assert says(ours, dataclasses.replace(base(SELLER), **change), SELLER) == reason
    assert all(holds(ours, offer) for offer in crowd)


def test_a_base_that_was_never_signed_has_none_give_way(ours: Bases, market: OfferBook) -> None:
    traded(market)
    crowd = flood(ours)
    for offer in (base(SELLER), base(CROWD[-1], life=30)):
        forged = cast.forge(offer, account=BUYER, peer=BUYER)
        assert ours.receive(forged, NOW).reason == "bad-signature"
    assert all(holds(ours, offer) for offer in crowd)


def test_a_base_that_finds_no_room_is_refused_before_its_signatures_are_looked_at(
    ours: Bases,
) -> None:
    flood(ours)
    forged = cast.forge(base(SELLER), account=BUYER, peer=BUYER)
    assert ours.receive(forged, NOW).reason == "bases-full"


def test_what_is_held_already_wants_no_place_however_it_is_signed_again(
    ours: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = flood(ours)[0]
    other = cast.forge(held, account=BUYER, peer=BUYER)
    monkeypatch.setattr(envelope, "check", lambda domain, signed: digest(domain, signed.body))
    assert ours.receive(other, NOW).reason == "duplicate"


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


# ── however much is held ──


def lines(act: Callable[[], object]) -> int:
    """Return how many lines of Python an act takes: its cost, whatever the machine.

    Without the collector of garbage, which would have finalizers of anything that earlier tests
    left in cycles run, and be counted, within the act.
    """
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return count


def cost_in(size: int, offer: Offer, by: Party, reason: str) -> int:
    """Return what it costs to submit a base to a full store of this size, and as large a market."""
    crowd = [Party(f"one of many {number}") for number in range(size)]
    market = a_market()
    traded(market)
    with small_stores(room=size):
        ours = Bases(market, TASK)
        for party in crowd:
            assert says(ours, base(party, life=500), party) == "good"
            assert market.receive(seal(cast.offer(party), party), NOW).accepted
        data = seal(offer, by)
        said: list[str] = []
        cost = lines(lambda: said.append(ours.receive(data, NOW).reason))
        assert said == [reason]
        return cost


@pytest.mark.parametrize(
    ("offer", "by", "reason"),
    [
        (base(CROWD[0]), CROWD[0], "bases-full"),
        (base(CROWD[0], life=400), CROWD[0], "good"),
        (base(SELLER), SELLER, "good"),
    ],
    ids=["no room", "sooner", "has traded"],
)
def test_a_submission_costs_the_same_however_many_bases_and_offers_there_are(
    offer: Offer, by: Party, reason: str
) -> None:
    # the first of a process fills caches of keys, and would hide what grows
    _, few, many = (cost_in(size, offer, by, reason) for size in (4, 4, 64))
    assert many < few + 30  # less than a line for each


# ── whatever is said, in whatever order ──

_saying = st.tuples(
    st.sampled_from(["base", "base", "base", "base", "receipt"]),
    st.sampled_from([SELLER, BUYER, *CROWD]),
    st.integers(1, 4),
    st.sampled_from([30, 300, 310, 600]),
    st.sampled_from([-10, 0, 10]),
    st.sampled_from([0] * 9 + [1, 10, 30, 300]),
)


def expected(
    held: list[Offer], offer: Offer, market: OfferBook, now: UnixTime
) -> tuple[str, list[Offer]]:
    """Return the verdict and all that is held after it, the latest last, by looking at all."""
    held = [one for one in held if one.expires_at > now]
    if offer.expires_at <= now:
        return "expired", held
    if offer in held:
        return "duplicate", held
    receipts = [r for r in market.receipts(TASK) if r.expires_at > now]
    sheltered = {account for r in receipts for account in (r.buyer, r.seller)}
    own = [one for one in held if one.seller == offer.seller]
    mere = [one for one in held if one.seller not in sheltered]
    gone: Offer | None = None
    if len(own) >= OF_ONE:
        gone = min(own, key=lambda one: (one.issued_at, one.nonce))
        if (gone.issued_at, gone.nonce) > (offer.issued_at, offer.nonce):
            return "superseded", held
    elif len(held) >= ROOM:
        # of several the last to come
        gone = max(reversed(mere), key=lambda one: one.expires_at, default=None)
        if gone is None or not (offer.seller in sheltered or offer.expires_at < gone.expires_at):
            return "bases-full", held
    return "good", [one for one in held if one != gone] + [offer]


@settings(max_examples=60, deadline=None)
@given(script=st.lists(_saying, min_size=20, max_size=60))
def test_whatever_is_said_the_store_holds_what_it_would_if_it_looked_at_all(
    script: list[tuple[str, Party, int, int, int, int]],
) -> None:
    with small_stores():
        market = a_market()
        ours = Bases(market, TASK)
        held: list[Offer] = []
        now = NOW
        for number, (kind, by, nonce, life, at, pause) in enumerate(script):
            now = UnixTime(now + pause)
            if kind == "receipt":
                receipt = cast.receipt(
                    seller=by.account, nonce=number, issued_at=now, expires_at=UnixTime(now + life)
                )
                market.receive(seal(receipt, BROKER), now)
                continue
            offer = base(by, nonce, life, now - NOW + at)
            reason, held = expected(held, offer, market, now)
            assert says(ours, offer, by, now - NOW) == reason
            assert {one.offer for one in ours._held.values()} == set(held)
            assert {name for *_, name in (*ours._queue, *ours._aside)} == set(ours._held)
            assert len(ours._queue) + len(ours._aside) == len(ours._rows) == len(held)
            assert sum(len(names) for names in ours._of.values()) == len(held)
