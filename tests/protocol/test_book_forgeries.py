"""What is forged, replayed, or from another time does not get into the book."""

from __future__ import annotations

from typing import Any

import pytest

from node.protocol import cbor, envelope
from node.protocol.book import OfferBook
from node.protocol.eip712 import Domain
from node.protocol.offer import MAX_CLOCK_SKEW, MAX_LIFETIME
from node.protocol.types import Wei
from node.protocol.verdict import Judgement
from tests.protocol import cast
from tests.protocol.books import (
    GOOD,
    OFFER,
    later,
    rewritten,
    says,
)
from tests.protocol.cast import DOMAIN, NOW, SELLER, STRANGER, forge, seal

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
