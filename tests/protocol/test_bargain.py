"""What a buyer checks before it takes a deal: one wrong field, and there is no trade."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol import delivery
from node.protocol.bargain import (
    MAX_GRACE,
    MAX_REVEAL_SECONDS,
    Wanted,
    accept_deal,
)
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation, trial_seed
from node.protocol.fees import MAX_FEE_BASIS_POINTS, fee_of
from node.protocol.messages import Deal
from node.protocol.offer import Receipt
from node.protocol.purchase import FUND_MARGIN, Purchase, PurchaseState
from node.protocol.quote import Quote
from node.protocol.types import UINT256_MAX, Digest, UnixTime, Wei
from tests.protocol import cast
from tests.protocol.bargains import (
    BROKERS_BOOKKEEPING,
    OTHER,
    SELLERS_QUOTE,
    fits,
    names,
    other_value,
)
from tests.protocol.cast import (
    BROKER,
    DOMAIN,
    FEE,
    FEE_BASIS_POINTS,
    FUND_BY,
    NOW,
    PATIENCE,
    PRICE,
    SELLER,
    STRANGER,
    VALUATION,
    WANTED,
    word,
)


def refuses(
    deal: Deal,
    reason: str,
    *,
    wanted: Wanted = WANTED,
    domain: Domain = DOMAIN,
    now: UnixTime = NOW,
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        accept_deal(domain, wanted, deal, PATIENCE, now)
    assert caught.value.reason == reason


# ── the buyer ──


def test_a_deal_that_is_as_it_was_wanted_begins_a_purchase() -> None:
    deal = cast.deal()
    record = accept_deal(DOMAIN, WANTED, deal, PATIENCE, NOW)
    purchase = Purchase(record)
    assert purchase.state is PurchaseState.FETCHING
    assert record == cast.purchase_record()
    assert record.private_key == WANTED.private_key
    assert record.seller_peer == SELLER.peer_id


# what a broker and a seller who cheat together could sign, field by field, and what the buyer
# says to it
QUOTE: Final[dict[str, list[tuple[Any, str]]]] = {
    "trade_id": [(OTHER, "wrong-trade-id")],
    "buyer": [(STRANGER.account, "wrong-buyer"), (SELLER.account, "wrong-buyer")],
    "seller": [(STRANGER.account, "wrong-seller"), (cast.BUYER.account, "wrong-seller")],
    "encryptor": [(STRANGER.account, "wrong-encryptor"), (BROKER.account, "wrong-encryptor")],
    "asset": [(STRANGER.account, "wrong-asset")],
    "price": [
        (Wei(VALUATION + 1), "price-above-valuation"),
        (Wei(UINT256_MAX), "price-above-valuation"),
        (Wei(PRICE + 1), "wrong-receipt"),
        (Wei(PRICE - 1), "fee-too-high"),
    ],
    "fee": [(Wei(FEE + 1), "fee-too-high"), (PRICE, "fee-too-high"), (FEE - 1, "wrong-receipt")],
    "offer_root": [(OTHER, "wrong-offer-root"), (cast.BASE_ROOT, "wrong-offer-root")],
    "leaf_count": [(99, "wrong-size"), (101, "wrong-size"), (0, "wrong-size")],
    "byte_length": [(101_999, "wrong-size"), (0, "wrong-size"), (2**64 - 1, "wrong-size")],
    "dh_commitment": [(OTHER, "wrong-dh-commitment"), (bytes(32), "wrong-dh-commitment")],
    "fund_by": [(NOW, "too-late"), (NOW + FUND_MARGIN, "too-late"), (0, "too-late")],
    "reveal_by": [
        (NOW + MAX_REVEAL_SECONDS + 1, "money-locked-too-long"),
        (2**64 - 1, "money-locked-too-long"),
    ],
    "grace": [(MAX_GRACE + 1, "money-locked-too-long"), (2**64 - 1, "money-locked-too-long")],
    "dispute_window": [
        (PATIENCE.least_dispute_window - 1, "dispute-window-too-short"),
        (0, "dispute-window-too-short"),
    ],
    "receipt_hash": [(OTHER, "wrong-receipt")],
}
SELLERS_TO_CHECK: Final = {"goods_root", "secret_commitment"}
"""Only the seller knows them; a buyer that was cheated can prove it by one leaf."""
BROKERS_OWN: Final = {"fee_recipient"}
"""Where the broker's fee goes harms nobody else."""


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [(field, value, reason) for field, cases in QUOTE.items() for value, reason in cases],
)
def test_no_term_of_the_quote_can_be_another(field: str, value: Any, reason: str) -> None:
    refuses(cast.deal(quote_changes={field: value}), reason)


def test_every_term_of_the_quote_is_somebodys_to_check() -> None:
    assert QUOTE.keys() | SELLERS_TO_CHECK | BROKERS_OWN == names(Quote)
    assert SELLERS_QUOTE.keys() >= SELLERS_TO_CHECK
    assert QUOTE.keys() | SELLERS_QUOTE.keys() == names(Quote) - BROKERS_OWN


@pytest.mark.parametrize("field", sorted(names(Quote)))
def test_no_term_can_be_changed_after_it_was_signed(field: str) -> None:
    whole = cast.deal()
    changed = dataclasses.replace(
        whole.quote, **{field: other_value(whole.quote, field)} | fits(field)
    )
    refuses(dataclasses.replace(whole, quote=changed), "wrong-signer")


@pytest.mark.parametrize("by", [STRANGER, SELLER, cast.BUYER])
def test_only_the_broker_whose_terms_were_read_may_quote(by: cast.Party) -> None:
    refuses(cast.deal(broker_signature=cast.signature(cast.quote(), by)), "wrong-signer")


@pytest.mark.parametrize("by", [STRANGER, BROKER, cast.BUYER])
def test_without_the_sellers_own_signature_there_is_no_deal(by: cast.Party) -> None:
    refuses(cast.deal(seller_signature=cast.signature(cast.quote(), by)), "wrong-signer")


@pytest.mark.parametrize("field", ["broker_signature", "seller_signature"])
@pytest.mark.parametrize("value", [b"", bytes(64), bytes(65), bytes(66), b"\xff" * 65])
def test_a_signature_that_is_none_is_refused_by_name(field: str, value: Any) -> None:
    refuses(dataclasses.replace(cast.deal(), **{field: value}), "bad-signature")


@pytest.mark.parametrize(
    "elsewhere",
    [
        Domain(chain_id=DOMAIN.chain_id + 1, escrow=DOMAIN.escrow),
        Domain(chain_id=DOMAIN.chain_id, escrow=STRANGER.account),
    ],
    ids=["another chain", "another escrow"],
)
def test_a_deal_for_another_market_is_refused(elsewhere: Domain) -> None:
    refuses(cast.deal(domain=elsewhere), "wrong-signer")
    refuses(cast.deal(), "wrong-signer", domain=elsewhere)


def test_the_broker_is_the_one_whose_notice_the_buyer_read() -> None:
    rival = dataclasses.replace(WANTED, notice=cast.notice(STRANGER))
    refuses(cast.deal(), "wrong-signer", wanted=rival)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (OTHER, "wrong-dh-commitment"),
        (cast.BUYER_KEY, "wrong-dh-commitment"),
        (Digest(bytes(32)), "bad-dh-key"),
        (Digest(b"\x01" + bytes(31)), "bad-dh-key"),
    ],
)
def test_the_sellers_key_opens_what_the_quote_commits_to(key: Digest, reason: str) -> None:
    refuses(cast.deal(seller_key=key), reason)


def test_a_commitment_made_for_another_trade_is_refused() -> None:
    dh = delivery.shared_secret(cast.SELLER_PRIVATE, cast.BUYER_KEY)
    refuses(
        cast.deal(quote_changes={"dh_commitment": delivery.dh_commitment(dh, OTHER)}),
        "wrong-dh-commitment",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"buyer_nonce": OTHER}, "wrong-trade-id"),
        ({"offer_digest": OTHER}, "wrong-trade-id"),
        ({"buyer": STRANGER.account}, "wrong-trade-id"),
        ({"valuation": Wei(PRICE - 1)}, "price-above-valuation"),
        ({"valuation": Wei(0)}, "price-above-valuation"),
        ({"base_root": OTHER}, "wrong-evaluation"),
        ({"notice_digest": OTHER}, "wrong-receipt"),
        ({"private_key": OTHER}, "wrong-dh-commitment"),
        ({"notice": cast.notice(fee_basis_points=FEE_BASIS_POINTS - 1)}, "fee-too-high"),
        ({"notice": cast.notice(validation_root=OTHER)}, "wrong-evaluation"),
        ({"notice": cast.notice(seed=OTHER)}, "wrong-evaluation"),
        ({"notice": cast.notice(validation_rows=999)}, "wrong-evaluation"),
        ({"offer": cast.offer(weights_root=OTHER)}, "wrong-offer-root"),
        ({"offer": cast.offer(leaf_count=1)}, "wrong-size"),
    ],
)
def test_a_good_deal_is_refused_by_who_wanted_another(changes: dict[str, Any], reason: str) -> None:
    refuses(cast.deal(), reason, wanted=dataclasses.replace(WANTED, **changes))


def test_the_price_may_be_all_that_the_trial_is_worth() -> None:
    exact = dataclasses.replace(WANTED, valuation=PRICE)
    assert accept_deal(DOMAIN, exact, cast.deal(), PATIENCE, NOW).quote.price == PRICE


def test_a_lower_price_and_a_lower_fee_are_welcome() -> None:
    better: dict[str, Any] = {"price": Wei(10_000), "fee": Wei(1)}
    deal = cast.deal(quote_changes=better, receipt_changes=better)
    assert accept_deal(DOMAIN, WANTED, deal, PATIENCE, NOW).quote.fee == 1


def test_nothing_is_given_away_by_mistake() -> None:
    free: dict[str, Any] = {"price": Wei(0), "fee": Wei(0)}
    refuses(cast.deal(quote_changes=free, receipt_changes=free), "no-price")


@pytest.mark.parametrize(
    ("now", "accepted"),
    [(FUND_BY - FUND_MARGIN - 1, True), (FUND_BY - FUND_MARGIN, False), (FUND_BY, False)],
)
def test_a_deal_is_taken_while_there_is_time_to_fund_it(now: int, accepted: bool) -> None:
    if accepted:
        accept_deal(DOMAIN, WANTED, cast.deal(), PATIENCE, UnixTime(now))
    else:
        refuses(cast.deal(), "too-late", now=UnixTime(now))


# ── the receipt, signed again by a broker that cheats ──


@pytest.mark.parametrize("field", sorted(names(Receipt) - BROKERS_BOOKKEEPING))
def test_no_field_of_the_receipt_can_be_another(field: str) -> None:
    changed = {field: other_value(cast.receipt(), field)}
    by = STRANGER if field == "broker" else BROKER
    peer = STRANGER if field == "peer_id" else by
    if field == "peer_id":
        changed = {field: STRANGER.peer_id}
    if field == "broker":
        changed |= {"peer_id": STRANGER.peer_id}
    bill = cast.receipt(**changed)
    deal = cast.deal(
        quote_changes={"receipt_hash": digest(DOMAIN, bill)},
        receipt=cast.forge(bill, account=by, peer=peer),
    )
    refuses(deal, "wrong-evaluation" if field == "evaluation_hash" else "wrong-receipt")


@pytest.mark.parametrize(
    ("receipt", "reason"),
    [
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (cast.seal(cast.OFFER, SELLER), "wrong-receipt"),
        (cast.seal(cast.NOTICE, BROKER), "wrong-receipt"),
        (cast.seal(cast.receipt(nonce=8), BROKER), "wrong-receipt"),
        (cast.forge(cast.receipt(), account=SELLER, peer=BROKER), "bad-signature"),
        (cast.forge(cast.receipt(), account=BROKER, peer=SELLER), "bad-peer-signature"),
        (bytes(20_000), "oversize"),
    ],
)
def test_what_comes_in_the_receipts_place_is_refused_by_name(receipt: bytes, reason: str) -> None:
    refuses(cast.deal(receipt=receipt), reason)


# ── the evaluation, under a receipt and a quote that are signed again ──

AFTER_THE_TRIAL: Final = {"gain", "bound", "alpha"}
"""Held against the trial's own answer, which the buyer was given before it bid."""
AFTER_THE_DELIVERY: Final = {"merged_root"}
"""Held against what the recipe gives."""
BY_REPLAY: Final = {"loss_before", "loss_after", "method", "code_version"}
"""Held against a replay, by whoever has both weights and the rows."""


@pytest.mark.parametrize(
    "field", sorted(names(Evaluation) - AFTER_THE_TRIAL - AFTER_THE_DELIVERY - BY_REPLAY)
)
def test_no_field_of_the_evaluation_can_be_another(field: str) -> None:
    value = {"choice_rows": 501, "score_rows": 2**64 - 1}.get(
        field, other_value(cast.EVALUATION, field)
    )
    deal = cast.deal(evaluation_changes={field: value})
    refuses(deal, "wrong-recipe" if field == "recipe_hash" else "wrong-evaluation")


@pytest.mark.parametrize("field", sorted(names(Evaluation)))
def test_the_evaluation_is_the_one_that_the_receipt_commits_to(field: str) -> None:
    measured = dataclasses.replace(cast.EVALUATION, **{field: other_value(cast.EVALUATION, field)})
    refuses(cast.deal(evaluation=measured), "wrong-evaluation")


def test_a_broker_cannot_pick_the_rows_it_measures_on() -> None:
    picked = trial_seed(word("a seed that flatters"), cast.BASE_ROOT, cast.OFFER.weights_root)
    refuses(cast.deal(evaluation_changes={"seed": picked}), "wrong-evaluation")


@pytest.mark.parametrize("drawn", [(1, 2), (499, 501), (500, 499), (0, 1_000), (1_000, 1_000)])
def test_a_broker_cannot_pick_how_many_rows_it_measures_on(drawn: tuple[int, int]) -> None:
    changes = dict(zip(("choice_rows", "score_rows"), drawn, strict=True))
    refuses(cast.deal(evaluation_changes=changes), "wrong-evaluation")


@pytest.mark.parametrize("recipe", [b"", cast.RECIPE + b"\0", b"another"])
def test_the_recipe_is_the_one_that_was_measured(recipe: bytes) -> None:
    refuses(cast.deal(recipe=recipe), "wrong-recipe")


def test_every_field_of_the_deal_is_held_against_something() -> None:
    whole = cast.deal()
    changed: dict[str, Any] = {
        "quote": cast.quote(goods_root=OTHER),
        "broker_signature": whole.seller_signature,
        "seller_signature": whole.broker_signature,
        "seller_key": OTHER,
        "receipt": cast.seal(cast.receipt(nonce=8), BROKER),
        "evaluation": dataclasses.replace(cast.EVALUATION, method="another"),
        "recipe": b"another",
    }
    assert changed.keys() == names(Deal)
    for field, value in changed.items():
        with pytest.raises(RemoteProtocolError):
            accept_deal(DOMAIN, WANTED, dataclasses.replace(whole, **{field: value}), PATIENCE, NOW)


# ── the fee ──


@settings(max_examples=200, deadline=None)
@given(price=st.integers(0, UINT256_MAX), points=st.integers(0, MAX_FEE_BASIS_POINTS))
def test_the_fee_is_rounded_in_the_sellers_favour(price: int, points: int) -> None:
    fee = fee_of(Wei(price), points)
    assert fee * 10_000 <= price * points < (fee + 1) * 10_000


def test_the_fee_is_the_one_written_down() -> None:
    assert fee_of(Wei(1_000_000), 200) == 20_000
    assert fee_of(Wei(49), 200) == 0
    assert fee_of(Wei(50), 200) == 1
    assert fee_of(Wei(PRICE), 0) == 0
