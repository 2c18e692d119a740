"""The book takes in what is good, once, and nothing else, whoever brings it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from node.protocol import book, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import digest
from node.protocol.envelope import MAX_STATEMENT_BYTES
from node.protocol.offer import MAX_CLOCK_SKEW
from node.protocol.types import PeerId, UnixTime, Wei
from node.protocol.verdict import Judgement
from tests.protocol import cast
from tests.protocol.books import (
    GOOD,
    NOTICE,
    OFFER,
    RECEIPT,
    TAKEN_BACK,
    VERDICTS,
    later,
    rewritten,
    says,
)
from tests.protocol.cast import BROKER, DOMAIN, NOW, SELLER, STRANGER, Party, forge, seal

# ── what is good ──


@pytest.mark.parametrize("data", [OFFER, NOTICE, RECEIPT, TAKEN_BACK])
def test_what_both_keys_of_its_issuer_signed_is_kept(ours: OfferBook, data: bytes) -> None:
    assert ours.receive(data, NOW) == GOOD
    assert GOOD.accepted
    assert ours.statements(NOW) == [data]
    assert book.body_of(data) == envelope.decode(data).body


def test_an_offer_is_found_until_the_second_in_which_it_expires(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    name = cast.OFFER_DIGEST
    assert ours.offer(name, later(599)) == cast.OFFER
    assert [*ours.offers(later(599))] == [(name, cast.OFFER)]
    assert ours.data_of(name) == OFFER
    assert ours.offer(name, later(600)) is None
    assert [*ours.offers(later(600))] == []
    assert ours.statements(later(600)) == []
    ours.expire(later(600))
    assert ours.data_of(name) is None


def test_a_notice_is_no_offer(ours: OfferBook) -> None:
    ours.receive(NOTICE, NOW)
    assert ours.offer(cast.NOTICE_DIGEST, NOW) is None
    assert [*ours.offers(NOW)] == []


def test_the_newest_offer_of_each_seller_is_the_one_on_sale(ours: OfferBook) -> None:
    newer = cast.offer(issued_at=later(5), nonce=2)
    older = cast.offer(issued_at=later(-5), nonce=3)
    other_task = cast.offer(issued_at=later(9), nonce=4, task="cifar")
    rival = cast.offer(STRANGER)
    for body, by in (
        (newer, SELLER), (cast.OFFER, SELLER), (older, SELLER), (other_task, SELLER),
        (rival, STRANGER),
    ):  # fmt: skip
        assert ours.receive(seal(body, by), NOW) == GOOD
    found = ours.latest_of_each_seller(cast.TASK, NOW)
    assert found == [(digest(DOMAIN, newer), newer), (digest(DOMAIN, rival), rival)]
    again = ours.latest_of_each_seller(cast.TASK, newer.expires_at)
    assert again == []


def test_of_two_offers_of_one_second_the_higher_nonce_is_the_newer(ours: OfferBook) -> None:
    for nonce in (9, 10, 8):
        ours.receive(seal(cast.offer(nonce=nonce), SELLER), NOW)
    ((_, newest),) = ours.latest_of_each_seller(cast.TASK, NOW)
    assert newest.nonce == 10


def test_a_peer_is_found_where_it_last_said_it_listens(ours: OfferBook) -> None:
    assert ours.addresses_of(SELLER.peer_id) == ()
    for nonce, second in ((1, 0), (2, 10), (3, 5)):
        body = cast.offer(issued_at=later(second), nonce=nonce, addresses=(f"/after/{second}",))
        ours.receive(seal(body, SELLER), NOW)
    assert ours.addresses_of(SELLER.peer_id) == ("/after/10",)
    assert ours.addresses_of(STRANGER.peer_id) == ()


def test_a_brokers_newest_terms_for_a_task_are_its_terms(ours: OfferBook) -> None:
    newest = cast.notice(issued_at=later(9), nonce=3)
    for body in (
        cast.NOTICE,
        newest,
        cast.notice(issued_at=later(5), nonce=2),
        cast.notice(issued_at=later(20), nonce=4, task="cifar"),
    ):
        ours.receive(seal(body, BROKER), NOW)
    assert ours.notice_of(BROKER.peer_id, cast.TASK, NOW) == (digest(DOMAIN, newest), newest)
    assert ours.notice_of(BROKER.peer_id, "imagenet", NOW) is None
    assert ours.notice_of(SELLER.peer_id, cast.TASK, NOW) is None
    assert ours.notice_of(BROKER.peer_id, cast.TASK, newest.expires_at) is None


def test_receipts_are_the_price_history_of_a_task(ours: OfferBook) -> None:
    receipts = [cast.receipt(nonce=n, price=Wei(n), fee=Wei(0)) for n in (5, 4)]
    for body in receipts:
        ours.receive(seal(body, BROKER), NOW)
    assert ours.receipts(cast.TASK) == receipts
    assert ours.receipts("cifar") == []


def test_the_newest_statement_is_listed_first(ours: OfferBook) -> None:
    for data in (OFFER, NOTICE, RECEIPT):
        ours.receive(data, NOW)
    assert ours.statements(NOW) == [RECEIPT, NOTICE, OFFER]


# ── each reason of the table ──


def oversize(ours: OfferBook) -> str:
    return says(ours, bytes(MAX_STATEMENT_BYTES + 1))


def malformed(ours: OfferBook) -> str:
    def bend(value: list[Any]) -> None:
        value[1]["nonce"] = -1

    return says(ours, rewritten(OFFER, bend))


def unknown_kind(ours: OfferBook) -> str:
    def bend(value: list[Any]) -> None:
        value[0] = "bid"

    return says(ours, rewritten(OFFER, bend))


def expired(ours: OfferBook) -> str:
    return says(ours, OFFER, cast.OFFER.expires_at)


def from_the_future(ours: OfferBook) -> str:
    return says(ours, OFFER, UnixTime(NOW - MAX_CLOCK_SKEW - 1))


def duplicate(ours: OfferBook) -> str:
    ours.receive(OFFER, NOW)
    return says(ours, OFFER, later(599))


def bad_signature(ours: OfferBook) -> str:
    return says(ours, forge(cast.OFFER, account=STRANGER, peer=SELLER))


def bad_peer_id(ours: OfferBook) -> str:
    body = cast.offer(peer_id=PeerId(SELLER.peer_id[:-1]))
    return says(ours, forge(body, account=SELLER, peer=SELLER))


def bad_peer_signature(ours: OfferBook) -> str:
    return says(ours, forge(cast.OFFER, account=SELLER, peer=STRANGER))


def nonce_reused(ours: OfferBook) -> str:
    ours.receive(OFFER, NOW)
    return says(ours, seal(cast.offer(reserve=Wei(1)), SELLER))


def revoked(ours: OfferBook) -> str:
    assert ours.receive(TAKEN_BACK, NOW) == GOOD
    return says(ours, OFFER)


def untrusted_broker(ours: OfferBook) -> str:
    ours.trusted_brokers = frozenset({STRANGER.account})
    return says(ours, NOTICE)


def book_full(ours: OfferBook) -> str:
    for number in range(book.MAX_STATEMENTS):
        party = Party(f"crowd {number % 5}")
        assert ours.receive(seal(cast.offer(party, nonce=number), party), NOW) == GOOD
    return says(ours, OFFER)


def issuer_full(ours: OfferBook) -> str:
    for nonce in range(2, 2 + book.MAX_OF_ISSUER):
        assert ours.receive(seal(cast.offer(nonce=nonce), SELLER), NOW) == GOOD
    return says(ours, OFFER)


def not_your_offer(ours: OfferBook) -> str:
    ours.receive(OFFER, NOW)
    return says(ours, seal(cast.revocation(cast.OFFER_DIGEST, by=STRANGER), STRANGER))


def good(ours: OfferBook) -> str:
    return says(ours, OFFER)


REASONS: dict[str, Callable[[OfferBook], str]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        oversize, malformed, unknown_kind, expired, from_the_future, duplicate, bad_signature,
        bad_peer_id, bad_peer_signature, nonce_reused, revoked, untrusted_broker, book_full,
        issuer_full, not_your_offer, good,
    )
}  # fmt: skip


@pytest.mark.parametrize("reason", VERDICTS)
def test_every_reason_in_the_table_is_given_and_counted(
    ours: OfferBook, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "MAX_STATEMENTS", 20)
    monkeypatch.setattr(book, "MAX_OF_ISSUER", 5)
    assert REASONS[reason](ours) == reason
    assert ours.counts[Judgement(VERDICTS[reason]), reason] == 1
    kept = ours.statements(NOW)
    assert (OFFER in kept) == (reason in {"good", "duplicate", "nonce-reused", "not-your-offer"})


def test_the_table_has_every_reason_that_the_tests_have() -> None:
    assert VERDICTS.keys() == REASONS.keys()
