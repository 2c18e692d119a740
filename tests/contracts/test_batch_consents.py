"""What a buyer signed for, and what no batch can be made of."""

from __future__ import annotations

import pytest
from eth_utils.crypto import keccak

from contracts.batch import consent_digest, plan, secret_of
from contracts.stage import ZERO, Quote, Stage, State, sign
from tests.contracts.batching import (
    close_by_leg,
    credit,
    deposits,
    four_trades,
    leg,
    lock,
    planned,
)
from tests.contracts.conftest import Deploy, Refused
from tests.contracts.signers import signer_of


@pytest.fixture
def quotes(stage: Stage) -> list[Quote]:
    return four_trades(stage)


# Who agreed to what


def test_a_quorum_signs_the_quotes(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    with refused("BelowQuorum", 0, 1):
        lock(stage, made, signatures=b"")
    with refused("NotSeated", 0, stage.accounts["rival"].lower()):
        lock(stage, made, signatures=stage.signatures(made.digest, "rival"))
    others = planned(stage, quotes[:3])
    signatures = stage.signatures(others.digest)
    with refused("NotSeated", 0, signer_of(made.digest, signatures)):
        lock(stage, made, signatures=signatures)


def test_each_buyer_consents(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    first = made.spendings[0]
    buyer = first.quotes[0].buyer.lower()
    until = first.closes_by
    rivals = sign(stage.keys["rival"], consent_digest(stage, made.digests[:2], 0, until))
    for forged in (
        first._replace(consent=rivals),
        first._replace(consent=b""),
        first._replace(nonce=1),
        first._replace(closes_by=until + 1),
    ):
        with refused("NoConsent", buyer):
            lock(stage, made, spendings=(forged, *made.spendings[1:]))
    own = made.spendings[0]._replace(
        quotes=(made.quotes[0]._replace(buyer=ZERO),),
        payees=made.spendings[0].payees[:1],
        payer=len(made.accounts),
        consent=b"",  # of which nobody, the zero address, is the signer
    )
    with refused("NoConsent", ZERO):
        lock(stage, made, spendings=(own,), accounts=(*made.accounts, ZERO))


def test_no_price_is_locked_longer_than_its_buyer_consented_to(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    """One quote with a later end, or a longer window, makes that of the whole batch later.

    Until the end of the first window somebody may reveal, which begins the second.
    """
    (window,) = {quote.dispute_window for quote in quotes}
    latest = max(quote.reveal_by + quote.grace for quote in quotes) + 2 * window
    for early in ({"closes_by": latest - 1}, {"closes_by": 0}):
        made = planned(stage, quotes, **early)
        with refused("ClosesTooLate", 0, latest, early["closes_by"]):
            lock(stage, made)
    later = [*quotes[:3], quotes[3]._replace(reveal_by=quotes[3].reveal_by + 1)]
    with refused("ClosesTooLate", 0, latest + 1, latest):
        lock(stage, planned(stage, later, closes_by=latest))
    longer = [*quotes[:3], quotes[3]._replace(dispute_window=window + 1)]
    with refused("ClosesTooLate", 0, latest + 2, latest):
        lock(stage, planned(stage, longer, closes_by=latest))
    made, patient = planned(stage, later, closes_by=latest), planned(stage, later)
    mixed = (*patient.spendings[:2], made.spendings[2])
    with refused("ClosesTooLate", 2, latest + 1, latest):
        lock(stage, patient, spendings=mixed)
    lock(stage, patient)


def test_a_trade_that_was_funded_by_itself_is_locked_in_no_batch(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    stage.fund(quotes[0])
    with refused("WrongState", quotes[0].trade_id, State.FUNDED):
        lock(stage, made)
    stage.send("reveal", quotes[0], secret_of(quotes[0].trade_id), sender="seller")
    with refused("WrongState", quotes[0].trade_id, State.REVEALED):
        lock(stage, made)


def test_a_trade_has_one_place_in_a_spending(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    first, rest = made.spendings[0], made.spendings[1:]
    one, other = (quote.trade_id for quote in first.quotes)
    twice = (first.quotes[0], first.quotes[0]._replace(price=1))
    for own, ids in ((twice, (one, one)), (first.quotes[::-1], (other, one))):
        payees = (first.payees[1], first.payees[0]) if own != twice else first.payees
        with refused("TradesUnsorted", *ids):
            lock(stage, made, spendings=(first._replace(quotes=own, payees=payees), *rest))


def test_a_buyer_that_signs_two_spendings_of_one_trade_pays_twice_for_one_key(
    stage: Stage, quotes: list[Quote]
) -> None:
    """Each signature is an authorisation of its own: a buyer must not sign the second."""
    first, second = (planned(stage, quotes[:1], nonce) for nonce in (0, 1))
    struct = keccak(keccak(text="Batch(bytes32[] quotes)") + keccak(first.digests[0] * 2))
    outcome = lock(
        stage,
        first,
        spendings=(*first.spendings, *second.spendings),
        signatures=stage.signatures(stage.digest(struct)),
    )
    assert deposits(stage) == [1_000 - 2 * 100, 1_000, 1_000]
    batch = outcome.events[0].fields["batch"]
    secret = secret_of(quotes[0].trade_id)
    outcome = stage.send("revealBatch", batch, [secret] * 2, 0b11, sender="stranger")
    stage.wait_until(outcome.time + quotes[0].dispute_window + 1)
    payouts = [(account, back, 2 * rest) for account, back, rest in first.payouts]
    stage.send("closeBatch", batch, payouts, sender="stranger")
    assert credit(stage, quotes[0].seller) == 2 * 100


def test_a_price_that_fits_no_movement_is_refused(stage: Stage, refused: Refused) -> None:
    most = 2**112 - 1
    for price in (most + 1, 2**256 - 1):
        dear = leg(stage, 9, "buyer", "seller", price=price, fee=0)
        made = planned(stage, [leg(stage, 8, "buyer", "seller")])
        changed = made.spendings[0]._replace(quotes=(dear,))
        with refused("PriceTooLarge", dear.trade_id, price, most):
            lock(stage, made, spendings=(changed,))
    dear = leg(stage, 9, "buyer", "seller", price=most)
    with refused("DepositTooSmall", ZERO, dear.buyer.lower(), 0, most):
        lock(stage, planned(stage, [dear]))


def test_a_consent_is_good_once(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    assert stage.view("nonceUsed", quotes[0].buyer, 0)
    with refused("NonceUsed", quotes[0].buyer.lower(), 0):
        lock(stage, made)


def test_the_same_batch_with_new_consents_is_locked_once(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    """Else the second would take the prices again, in the place of the first."""
    stage.send("deposit", ZERO, quotes[0].buyer, 1_000, sender="stranger", value=1_000)
    lock(stage, planned(stage, quotes, nonce=0))
    again = planned(stage, quotes, nonce=1)
    with refused("BatchExists", again.batch_id):
        lock(stage, again)
    stage.wait_until(again.batch.closes_from + 1)
    close_by_leg(stage, again)
    assert stage.view("batchOf", again.batch_id)[0] is False


def test_a_cancelled_consent_is_void(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes, nonce=300)
    buyer = quotes[0].buyer.lower()
    (event,) = stage.send("cancelConsent", 300, sender="buyer").events
    assert event == ("ConsentCancelled", {"buyer": buyer, "nonce": 300})
    with refused("NonceUsed", buyer, 300):
        lock(stage, made)
    lock(stage, planned(stage, quotes, nonce=301))


def test_a_consent_is_cancelled_before_its_lock_and_once(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    lock(stage, planned(stage, quotes, nonce=300))
    stage.send("cancelConsent", 301, sender="buyer")
    for used in (300, 301):
        with refused("NonceUsed", quotes[0].buyer.lower(), used):
            stage.send("cancelConsent", used, sender="buyer")


def test_a_buyer_may_be_a_contract(stage: Stage, deploy: Deploy, refused: Refused) -> None:
    wallet = deploy("Wallet", stage.accounts["rival"]).address
    stage.send("deposit", ZERO, wallet, 1_000, sender="stranger", value=1_000)
    quote = leg(stage, 0, "buyer", "seller")._replace(buyer=wallet)
    made = plan(stage, [quote], {wallet: stage.keys["rival"]})
    forged = plan(stage, [quote], {wallet: stage.keys["seller"]})
    with refused("NoConsent", wallet.lower()):
        lock(stage, forged)
    lock(stage, made)
    assert stage.view("deposits", ZERO, wallet) == 900


def test_a_deposit_that_is_too_small_is_refused(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    dear = leg(stage, 9, "buyer", "seller", price=1_001)
    with refused("DepositTooSmall", ZERO, dear.buyer.lower(), 1_000, 1_001):
        lock(stage, planned(stage, [dear]))


# Malformed batches


def test_malformed_batches_are_refused(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    first, rest = made.spendings[0], made.spendings[1:]
    with refused("BadBatch", 0, len(made.accounts)):
        lock(stage, made, spendings=())
    with refused("BadSpending", 0, 2, 1):
        lock(stage, made, spendings=(first._replace(payees=(0,)), *rest))
    with refused("BadSpending", 1, 0, 0):
        empty = first._replace(quotes=(), payees=())
        lock(stage, made, spendings=(first, empty))
    with refused("BadBatch", 4, 257):
        lock(stage, made, accounts=(*made.accounts, *[ZERO] * (257 - len(made.accounts))))
    with refused("BadSpending", 0, 0, 0):
        lock(stage, made, spendings=(first._replace(quotes=(), payees=()),))
    many = first._replace(quotes=(made.quotes[0],) * 65, payees=(0,) * 65)
    with refused("BadBatch", 65, len(made.accounts)):
        lock(stage, made, spendings=(many,))
    other = stage.accounts["seller"].lower()
    with refused("MixedBuyers", quotes[0].buyer.lower(), other):
        mixed = first._replace(quotes=(quotes[0], quotes[1]))
        lock(stage, made, spendings=(mixed, *rest))
    token = "0x" + "11" * 20
    with refused("MixedAssets", ZERO, token):
        mixed = first._replace(quotes=(quotes[0], quotes[2]._replace(asset=token)))
        lock(stage, made, spendings=(mixed, *rest))


def test_money_goes_to_the_accounts_of_the_quotes_alone(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    first, rest = made.spendings[0], made.spendings[1:]
    seller, buyer = quotes[0].seller.lower(), quotes[0].buyer.lower()
    for payer, named in ((first.payees[0] & 0xFF, seller), (len(made.accounts), ZERO), (255, ZERO)):
        with refused("WrongPayee", 0, named, buyer):
            lock(stage, made, spendings=(first._replace(payer=payer), *rest))
    treasury = quotes[2].fee_recipient.lower()
    wrong = made.accounts.index(stage.accounts["rival"])
    with refused("WrongPayee", 0, stage.accounts["rival"].lower(), seller):
        lock(stage, made, spendings=(first._replace(payees=(wrong, first.payees[1])), *rest))
    for beyond in (len(made.accounts), 255):
        with refused("WrongPayee", 0, ZERO, seller):
            lock(stage, made, spendings=(first._replace(payees=(beyond, first.payees[1])), *rest))
    with refused("WrongPayee", 1, ZERO, treasury):
        payees = (first.payees[0], first.payees[1] & 0xFF | 255 << 8)
        lock(stage, made, spendings=(first._replace(payees=payees), *rest))


def test_terms_that_cannot_be_funded_cannot_be_locked(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    stage.wait_until(quotes[0].fund_by + 1)
    with refused("FundingClosed", quotes[0].fund_by + 1, quotes[0].fund_by):
        lock(stage, made)


def test_the_largest_batch_is_locked(stage: Stage) -> None:
    """64 trades, and 256 accounts, most of which get nothing."""
    stage.send("deposit", ZERO, stage.accounts["buyer"], 64, sender="stranger", value=64)
    quotes = [leg(stage, number, "buyer", "seller", price=1, fee=0) for number in range(64)]
    made = planned(stage, quotes)
    accounts = (*made.accounts, *[ZERO] * 254)
    outcome = lock(stage, made, accounts=accounts)
    assert outcome.events[0].fields["digests"] == made.digests
    assert stage.view("deposits", ZERO, stage.accounts["buyer"]) == 0
