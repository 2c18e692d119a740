"""The book takes in what is good, once, and nothing else, whoever brings it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from node.protocol import book, cbor, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import Domain, digest
from node.protocol.envelope import MAX_STATEMENT_BYTES
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.offer import MAX_CLOCK_SKEW, MAX_LIFETIME, Offer
from node.protocol.schema import to_map
from node.protocol.types import PeerId, UnixTime, Wei
from node.protocol.verdict import Judgement, Verdict
from tests.protocol import cast, tables
from tests.protocol.cast import BROKER, BUYER, DOMAIN, NOW, SELLER, STRANGER, Party, forge, seal

OFFER = seal(cast.OFFER, SELLER)
NOTICE = seal(cast.NOTICE, BROKER)
RECEIPT = seal(cast.receipt(), BROKER)
TAKEN_BACK = seal(cast.revocation(cast.OFFER_DIGEST), SELLER)
GOOD = Verdict(Judgement.ACCEPT, "good")


@pytest.fixture
def ours() -> OfferBook:
    return OfferBook(DOMAIN)


def later(seconds: int) -> UnixTime:
    return UnixTime(NOW + seconds)


def rewritten(data: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """Return a message with its CBOR value changed and its signatures kept."""
    value = cbor.decode(data)
    assert isinstance(value, list)
    change(value)
    return cbor.encode(value)


def says(ours: OfferBook, data: bytes, now: UnixTime = NOW) -> str:
    """Return the reason, having seen that it is under the verdict that the table gives it."""
    verdict = ours.receive(data, now)
    assert verdict.judgement.value == VERDICTS[verdict.reason]
    return verdict.reason


VERDICTS = {reason: verdict for _, reason, verdict in tables.rows(book)}


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


# ── forged ──


def test_no_byte_of_a_statement_can_be_changed(ours: OfferBook) -> None:
    for at in range(0, len(OFFER), 3):
        bent = bytearray(OFFER)
        bent[at] ^= 1
        assert not ours.receive(bytes(bent), NOW).accepted
    assert ours.statements(NOW) == []


@pytest.mark.parametrize(
    "elsewhere",
    [
        Domain(chain_id=DOMAIN.chain_id + 1, escrow=DOMAIN.escrow),
        Domain(chain_id=DOMAIN.chain_id, escrow=STRANGER.account),
    ],
    ids=["another chain", "another contract"],
)
def test_what_was_signed_for_another_market_is_not_good_in_ours(
    ours: OfferBook, elsewhere: Domain
) -> None:
    assert says(ours, seal(cast.OFFER, SELLER, elsewhere)) == "bad-signature"
    assert OfferBook(elsewhere).receive(seal(cast.OFFER, SELLER, elsewhere), NOW) == GOOD


def test_nobody_speaks_for_an_account_with_only_a_peers_key(ours: OfferBook) -> None:
    assert says(ours, forge(cast.OFFER, account=STRANGER, peer=SELLER)) == "bad-signature"


def test_nobody_sends_buyers_to_a_peer_that_did_not_agree(ours: OfferBook) -> None:
    body = cast.offer(STRANGER, peer_id=SELLER.peer_id)
    assert says(ours, forge(body, account=STRANGER, peer=STRANGER)) == "bad-peer-signature"


def test_a_receipt_is_its_brokers_to_sign(ours: OfferBook) -> None:
    assert says(ours, forge(cast.receipt(), account=SELLER, peer=SELLER)) == "bad-signature"


def test_a_revocation_is_its_sellers_to_sign(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    forged = forge(cast.revocation(cast.OFFER_DIGEST), account=STRANGER, peer=STRANGER)
    assert says(ours, forged) == "bad-signature"
    assert ours.offer(cast.OFFER_DIGEST, NOW) == cast.OFFER


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (2, b"", "bad-signature"),
        (2, bytes(64), "bad-signature"),
        (2, bytes(65), "bad-signature"),
        (2, bytes(66), "bad-signature"),
        (2, "x" * 65, "bad-signature"),
        (2, None, "bad-signature"),
        (3, b"", "bad-peer-signature"),
        (3, bytes(63), "bad-peer-signature"),
        (3, bytes(64), "bad-peer-signature"),
        (3, bytes(65), "bad-peer-signature"),
        (3, 0, "bad-peer-signature"),
        (0, 0, "unknown-kind"),
        (0, None, "unknown-kind"),
        (0, ["offer"], "unknown-kind"),
        (0, "notice", "malformed"),
        (0, "revocation", "malformed"),
        (1, None, "malformed"),
        (1, [], "malformed"),
        (1, {}, "malformed"),
    ],
)
def test_a_part_of_the_envelope_that_is_not_what_it_should_be_is_named(
    ours: OfferBook, position: int, value: Any, reason: str
) -> None:
    def bend(parts: list[Any]) -> None:
        parts[position] = value

    assert says(ours, rewritten(OFFER, bend)) == reason


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"\x80", b"\xa0", cbor.encode(["offer"]), OFFER[:-1], OFFER + b"\0"],
    ids=["nothing", "a break", "an empty array", "a map", "a kind alone", "cut", "trailing"],
)
def test_what_is_no_statement_is_malformed(ours: OfferBook, data: bytes) -> None:
    assert says(ours, data) == "malformed"


def test_a_statement_has_exactly_four_parts(ours: OfferBook) -> None:
    assert says(ours, rewritten(OFFER, lambda parts: parts.append(0))) == "malformed"
    assert says(ours, rewritten(OFFER, lambda parts: parts.pop())) == "malformed"


# ── replayed ──


def test_a_replay_is_ignored_while_it_is_known_and_when_it_has_expired(ours: OfferBook) -> None:
    assert ours.receive(OFFER, NOW) == GOOD
    for second in (0, 130, 599):
        assert says(ours, OFFER, later(second)) == "duplicate"
    ours.expire(later(600))
    assert says(ours, OFFER, later(600)) == "expired"
    assert says(ours, OFFER, later(10**6)) == "expired"


def test_a_known_statement_under_a_bad_signature_is_still_forged(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    assert says(ours, forge(cast.OFFER, account=STRANGER, peer=SELLER)) == "bad-signature"
    assert says(ours, forge(cast.OFFER, account=SELLER, peer=STRANGER)) == "bad-peer-signature"


def test_known_bytes_cost_no_signature(ours: OfferBook, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.receive(OFFER, NOW)
    monkeypatch.setattr(envelope, "check", lambda *_: pytest.fail("checked again"))
    assert says(ours, OFFER) == "duplicate"


def test_stale_statements_cost_no_signature(
    ours: OfferBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envelope, "check", lambda *_: pytest.fail("checked"))
    assert says(ours, OFFER, later(600)) == "expired"
    assert says(ours, OFFER, later(-100)) == "from-the-future"


def test_a_nonce_is_free_again_when_what_used_it_has_expired(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    again = seal(cast.offer(issued_at=later(600), expires_at=later(900)), SELLER)
    assert says(ours, again, later(599)) == "nonce-reused"
    assert ours.receive(again, later(600)) == GOOD
    assert ours.statements(later(600)) == [again]


def test_two_accounts_may_use_one_nonce(ours: OfferBook) -> None:
    assert ours.receive(OFFER, NOW) == GOOD
    assert ours.receive(seal(cast.offer(STRANGER), STRANGER), NOW) == GOOD


def test_a_nonce_is_used_once_across_all_kinds(ours: OfferBook) -> None:
    ours.receive(OFFER, NOW)
    clash = seal(cast.revocation(cast.OFFER_DIGEST, nonce=cast.OFFER.nonce), SELLER)
    assert says(ours, clash) == "nonce-reused"
    assert ours.offer(cast.OFFER_DIGEST, NOW) is not None


def test_a_cheat_cannot_have_honest_nodes_ban_each_other(ours: OfferBook) -> None:
    # it signs two bodies under one nonce, and says one to us, the other to our neighbour;
    # or it takes our seller's offer back, and says so where the offer is not known yet
    theirs = OfferBook(DOMAIN)
    left, right = (seal(cast.offer(STRANGER, reserve=Wei(n)), STRANGER) for n in (1, 2))
    assert ours.receive(left, NOW).accepted
    assert theirs.receive(right, NOW).accepted
    assert theirs.receive(left, NOW).judgement is Judgement.IGNORE
    assert ours.receive(right, NOW).judgement is Judgement.IGNORE
    assert ours.receive(OFFER, NOW).accepted
    not_its_own = seal(cast.revocation(cast.OFFER_DIGEST, by=STRANGER), STRANGER)
    assert theirs.receive(not_its_own, NOW).accepted
    assert ours.receive(not_its_own, NOW).judgement is Judgement.IGNORE


# ── time ──


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (-MAX_CLOCK_SKEW - 1, "from-the-future"),
        (-MAX_CLOCK_SKEW, "good"),
        (0, "good"),
        (599, "good"),
        (600, "expired"),
        (601, "expired"),
    ],
)
def test_a_statement_is_good_from_its_issue_to_its_expiry(
    ours: OfferBook, second: int, reason: str
) -> None:
    assert says(ours, OFFER, later(second)) == reason


def test_a_lifetime_over_a_day_is_malformed(ours: OfferBook) -> None:
    def bend(value: list[Any]) -> None:
        value[1]["expires_at"] = NOW + MAX_LIFETIME + 1

    assert says(ours, rewritten(OFFER, bend)) == "malformed"


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
    # a day's offers under ever new accounts, each taken back by a revocation of one second
    monkeypatch.setattr(book, "MAX_STATEMENTS", 20)
    ours, now = OfferBook(DOMAIN), NOW
    for number in range(40):
        by, now = Party(f"crowd {number}"), UnixTime(now + 11)
        body = cast.offer(by, issued_at=now, expires_at=UnixTime(now + MAX_LIFETIME))
        ours.receive(seal(body, by), now)
        back = cast.revocation(
            digest(DOMAIN, body), by=by, issued_at=now, expires_at=UnixTime(now + 1)
        )
        ours.receive(seal(back, by), now)
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


def remembered(ours: OfferBook) -> int:
    """Return how many things the book holds, in all of its tables."""
    held = (getattr(ours, field.name) for field in dataclasses.fields(ours))
    return sum(len(table) for table in held if isinstance(table, dict) and table is not ours.counts)


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
