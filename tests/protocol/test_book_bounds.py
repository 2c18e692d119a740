"""What is taken back, whom the book trusts, how much it holds, and what may be sent to it."""

from __future__ import annotations

from typing import Any

import pytest

from node.protocol import book, cbor, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import digest
from node.protocol.envelope import MAX_STATEMENT_BYTES
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import MAX_LIFETIME, Offer
from node.protocol.schema import to_map
from node.protocol.types import UnixTime
from node.protocol.verdict import Judgement
from tests.protocol import cast
from tests.protocol.books import (
    GOOD,
    NOTICE,
    OFFER,
    RECEIPT,
    TAKEN_BACK,
    later,
    remembered,
    says,
)
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, STRANGER, Party, forge, seal

# ── taken back ──


def test_an_offer_that_was_taken_back_is_gone_and_stays_gone(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    assert ours.receive(TAKEN_BACK, later(1)) == GOOD
    assert ours.offer(cast.OFFER_DIGEST, later(1)) is None
    assert ours.statements(later(1)) == [TAKEN_BACK]
    assert says(ours, OFFER, later(2)) == "duplicate"


def test_a_revocation_that_comes_first_keeps_the_offer_out(ours: OfferBook) -> None:
    ours.receive(TAKEN_BACK, NOW)
    assert says(ours, OFFER, later(1)) == "revoked"
    assert says(ours, OFFER, later(599)) == "revoked"


def test_a_strangers_revocation_takes_nothing_back(ours: OfferBook) -> None:
    theirs = seal(cast.revocation(cast.OFFER_DIGEST, by=STRANGER), STRANGER)
    assert ours.receive(theirs, NOW) == GOOD  # who could tell, before the offer is known
    assert ours.receive(OFFER, NOW) == GOOD
    again = seal(cast.revocation(cast.OFFER_DIGEST, by=STRANGER, nonce=3), STRANGER)
    assert says(ours, again) == "not-your-offer"
    assert ours.offer(cast.OFFER_DIGEST, NOW) == cast.OFFER


@pytest.mark.parametrize("data", [NOTICE, RECEIPT], ids=["notice", "receipt"])
def test_only_offers_are_taken_back(ours: OfferBook, data: bytes) -> None:
    name = digest(DOMAIN, envelope.decode(data).body)
    back = seal(cast.revocation(name, by=BROKER, nonce=50), BROKER)
    ours.receive(data, NOW)
    assert says(ours, back) == "not-your-offer"
    assert ours.data_of(name) == data
    fresh = OfferBook(DOMAIN)
    fresh.receive(back, NOW)
    assert fresh.receive(data, NOW) == GOOD


def test_a_revocation_cannot_be_taken_back(ours: OfferBook) -> None:
    ours.receive(TAKEN_BACK, NOW)
    name = digest(DOMAIN, cast.revocation(cast.OFFER_DIGEST))
    assert says(ours, seal(cast.revocation(name, nonce=3), SELLER)) == "not-your-offer"
    assert says(ours, OFFER) == "revoked"


# ── trust ──


def test_any_broker_is_heard_where_none_is_named(ours: OfferBook) -> None:
    assert ours.receive(NOTICE, NOW) == GOOD


def test_only_named_brokers_are_heard_where_some_are() -> None:
    ours = OfferBook(DOMAIN, trusted_brokers=frozenset({BROKER.account}))
    assert ours.receive(NOTICE, NOW) == GOOD
    assert ours.receive(RECEIPT, NOW) == GOOD
    assert ours.receive(OFFER, NOW) == GOOD
    for body in (cast.notice(STRANGER), cast.receipt(STRANGER)):
        assert says(ours, seal(body, STRANGER)) == "untrusted-broker"


# ── bounded ──


def test_one_issuer_cannot_fill_the_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "MAX_OF_ISSUER", 3)
    ours = OfferBook(DOMAIN)
    for nonce in range(10):
        ours.receive(seal(cast.offer(nonce=nonce), SELLER), NOW)
    assert ours.counts[Judgement.IGNORE, "issuer-full"] == 7
    assert ours.receive(seal(cast.offer(STRANGER), STRANGER), NOW) == GOOD


def test_a_full_book_has_room_again_when_its_statements_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(book, "MAX_STATEMENTS", 3)
    ours = OfferBook(DOMAIN)
    for nonce in range(3):
        ours.receive(seal(cast.offer(nonce=nonce), SELLER), NOW)
    assert says(ours, NOTICE) == "book-full"
    assert ours.receive(NOTICE, later(700)) == GOOD


def test_taking_offers_back_frees_nobody_from_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # a day's offers under ever new accounts, each taken back at once
    monkeypatch.setattr(book, "MAX_STATEMENTS", 20)
    ours, now = OfferBook(DOMAIN), NOW
    for number in range(40):
        by, now = Party(f"crowd {number}"), UnixTime(now + 11)
        day: dict[str, Any] = {"issued_at": now, "expires_at": UnixTime(now + MAX_LIFETIME)}
        body = cast.offer(by, **day)
        ours.receive(seal(body, by), now)
        ours.receive(seal(cast.revocation(digest(DOMAIN, body), by=by, **day), by), now)
    assert remembered(ours) <= 3 * 20
    assert ours.counts[Judgement.IGNORE, "book-full"] > 0


def test_what_is_refused_is_not_remembered(ours: OfferBook) -> None:
    for number in range(30):
        body = cast.offer(nonce=number)
        ours.receive(forge(body, account=STRANGER, peer=SELLER), NOW)
        ours.receive(forge(body, account=SELLER, peer=STRANGER), NOW)
        ours.receive(seal(cast.offer(nonce=number), SELLER), later(600))
    assert remembered(ours) == 0
    assert len(ours.counts) == 3


# ── the envelope, as its issuer makes it ──


def test_an_account_signs_only_for_itself() -> None:
    with pytest.raises(LocalProtocolError, match="must sign"):
        seal(cast.OFFER, STRANGER)


def test_a_peer_signs_only_for_itself() -> None:
    with pytest.raises(LocalProtocolError, match="must sign"):
        seal(cast.offer(peer_id=STRANGER.peer_id), SELLER)


def test_a_statement_that_gossip_would_drop_is_never_made() -> None:
    with pytest.raises(LocalProtocolError, match="16384"):
        seal(cast.offer(addresses=("x" * 4_000,) * 5), SELLER)


def test_the_largest_statement_is_taken(ours: OfferBook) -> None:
    room = MAX_STATEMENT_BYTES - len(seal(cast.offer(addresses=("x" * 300,) * 4), SELLER))
    spare = [*("x" * 4_000,) * 3, "x" * (room + 4 * 300 - 3 * 4_000)]
    longest = seal(cast.offer(addresses=tuple(spare)), SELLER)
    assert len(longest) == MAX_STATEMENT_BYTES
    assert ours.receive(longest, NOW) == GOOD


def test_a_statement_travels_inside_another_message() -> None:
    signed = envelope.decode(OFFER)
    assert envelope.from_value(envelope.to_value(signed)) == signed
    assert envelope.check(DOMAIN, signed) == cast.OFFER_DIGEST
    assert envelope.encode(signed) == OFFER


def test_the_bytes_of_an_offer_are_the_ones_written_down() -> None:
    kind, body, account, peer = cbor.decode(OFFER)  # type: ignore[misc, str-unpack]
    assert kind == "offer"
    assert body == to_map(cast.OFFER)
    assert len(account) == 65  # type: ignore[arg-type]
    assert len(peer) == 64  # type: ignore[arg-type]
    assert list(body) == sorted(body, key=lambda name: (len(name), name))


def test_a_remote_fault_is_a_reason_a_detail_and_a_peer() -> None:
    fault = RemoteProtocolError("late", "by 3 s", peer=SELLER.peer_id)
    assert str(fault) == "late: by 3 s"
    assert (fault.reason, fault.detail, fault.peer) == ("late", "by 3 s", SELLER.peer_id)
    assert str(RemoteProtocolError("late")) == "late"


def test_a_buyer_may_also_sell(ours: OfferBook) -> None:
    assert ours.receive(seal(cast.offer(BUYER), BUYER), NOW) == GOOD
    assert isinstance(next(ours.offers(NOW))[1], Offer)
