"""How a funded trade ends, and how the money leaves: the rest of `escrow.tree`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from contracts.stage import SECRET, ZERO, Contract, Outcome, Quote, Stage, State

Refused = Callable[..., AbstractContextManager[None]]
Deploy = Callable[..., Contract]


def revealed(stage: Stage, quote: Quote) -> Outcome:
    """Bring a trade to Revealed."""
    stage.fund(quote)
    return stage.send("reveal", quote, SECRET, sender="seller")


def paid(stage: Stage, quote: Quote) -> Outcome:
    """Bring a trade to Paid."""
    outcome = revealed(stage, quote)
    stage.wait_until(outcome.time + quote.dispute_window + 1)
    return stage.send("finalize", quote, sender="seller")


def refunded(stage: Stage, quote: Quote) -> Outcome:
    """Bring a trade to Refunded."""
    stage.fund(quote)
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    return stage.send("refund", quote, sender="buyer")


def credit(stage: Stage, role: str) -> int:
    """Return what the escrow owes to a role."""
    amount: int = stage.view("credits", ZERO, stage.accounts[role])
    return amount


# reveal


def test_a_reveal_publishes_the_secret_and_pays_nobody_yet(stage: Stage) -> None:
    quote = stage.quote()
    outcome = revealed(stage, quote)
    assert stage.trade(quote.trade_id) == (State.REVEALED, outcome.time)
    (event,) = outcome.events
    assert event == ("Revealed", {"tradeId": quote.trade_id, "secret": SECRET})
    assert credit(stage, "seller") == credit(stage, "treasury") == 0


def test_anyone_who_knows_the_secret_can_reveal_it(stage: Stage) -> None:
    quote = stage.quote()
    stage.fund(quote)
    stage.send("reveal", quote, SECRET, sender="stranger")
    assert stage.trade(quote.trade_id)[0] is State.REVEALED


def test_a_wrong_secret_is_refused(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    stage.fund(quote)
    guess = bytes(32)
    digest = hashlib.sha256(guess).digest()
    with refused("WrongSecret", quote.trade_id, quote.secret_commitment, digest):
        stage.send("reveal", quote, guess, sender="seller")


def test_a_late_reveal_is_accepted_until_someone_refunds(stage: Stage, refused: Refused) -> None:
    late, too_late = stage.quote(trade_id=b"l" * 32), stage.quote(trade_id=b"t" * 32)
    stage.fund(late)
    stage.fund(too_late)
    stage.wait_until(too_late.reveal_by + too_late.grace + 100)
    stage.send("reveal", late, SECRET, sender="seller")
    with refused("WrongState", late.trade_id, State.REVEALED):
        stage.send("refund", late, sender="buyer")
    stage.send("refund", too_late, sender="buyer")
    with refused("WrongState", too_late.trade_id, State.REFUNDED):
        stage.send("reveal", too_late, SECRET, sender="seller")


def test_a_reveal_needs_a_funded_trade(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    with refused("WrongState", quote.trade_id, State.NONE):
        stage.send("reveal", quote, SECRET, sender="seller")
    paid(stage, quote)
    with refused("WrongState", quote.trade_id, State.PAID):
        stage.send("reveal", quote, SECRET, sender="seller")


def test_a_secret_is_revealed_once(stage: Stage, refused: Refused) -> None:
    """Else every reveal would put the payment off."""
    quote = stage.quote()
    outcome = revealed(stage, quote)
    with refused("WrongState", quote.trade_id, State.REVEALED):
        stage.send("reveal", quote, SECRET, sender="buyer")
    assert stage.trade(quote.trade_id) == (State.REVEALED, outcome.time)


def test_who_never_reveals_is_never_paid(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    refunded(stage, quote)
    with refused("WrongState", quote.trade_id, State.REFUNDED):
        stage.send("reveal", quote, SECRET, sender="seller")
    with refused("WrongState", quote.trade_id, State.REFUNDED):
        stage.send("finalize", quote, sender="seller")
    with refused("NothingOwed", ZERO, quote.seller.lower(), 0):
        stage.send("withdraw", ZERO, quote.seller, sender="seller")
    stage.send("withdraw", ZERO, quote.buyer, sender="stranger")
    assert stage.balance(stage.escrow.address) == 0


@pytest.mark.parametrize("field", sorted(set(Quote._fields) - {"trade_id"}))
def test_no_step_accepts_other_terms_than_those_funded(
    stage: Stage, refused: Refused, field: str
) -> None:
    quote = stage.quote()
    value = getattr(quote, field)
    changed: Any = stage.accounts["rival"]
    if not isinstance(value, str):
        changed = value - 1 if isinstance(value, int) else bytes(32)
    other = quote._replace(**{field: changed})
    terms, others = (stage.view("quoteDigest", q)[:26] for q in (quote, other))
    stage.fund(quote)
    with refused("WrongTerms", quote.trade_id, terms, others):
        stage.send("reveal", other, SECRET, sender="seller")
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    with refused("WrongTerms", quote.trade_id, terms, others):
        stage.send("refund", other, sender="buyer")
    outcome = stage.send("reveal", quote, SECRET, sender="seller")
    stage.wait_until(outcome.time + quote.dispute_window + 1)
    with refused("WrongTerms", quote.trade_id, terms, others):
        stage.send("finalize", other, sender="seller")


# finalize


def test_a_stranger_can_finalize_and_seller_and_treasury_are_credited(stage: Stage) -> None:
    quote = stage.quote()
    outcome = revealed(stage, quote)
    stage.wait_until(outcome.time + quote.dispute_window + 1)
    outcome = stage.send("finalize", quote, sender="stranger")
    assert stage.trade(quote.trade_id) == (State.PAID, outcome.time)
    assert credit(stage, "seller") == quote.price - quote.fee
    assert credit(stage, "treasury") == quote.fee
    assert credit(stage, "buyer") == 0
    (event,) = outcome.events
    to_seller = quote.price - quote.fee
    assert event.name == "Paid"
    assert event.fields == {"tradeId": quote.trade_id, "toSeller": to_seller, "fee": quote.fee}


@pytest.mark.parametrize("window", [0, 1, 900])
def test_nobody_is_paid_before_the_dispute_window_has_passed(
    stage: Stage, refused: Refused, window: int
) -> None:
    quote = stage.quote(dispute_window=window)
    opens = revealed(stage, quote).time + window + 1
    if window > 0:
        stage.wait_until(opens - 1)
        with refused("TooEarly", opens - 1, opens):
            stage.send("finalize", quote, sender="seller")
    stage.wait_until(opens)
    stage.send("finalize", quote, sender="seller")


def test_finalizing_needs_a_revealed_trade(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    with refused("WrongState", quote.trade_id, State.NONE):
        stage.send("finalize", quote, sender="seller")
    stage.fund(quote)
    with refused("WrongState", quote.trade_id, State.FUNDED):
        stage.send("finalize", quote, sender="seller")
    other = stage.quote(trade_id=b"o" * 32)
    paid(stage, other)
    with refused("WrongState", other.trade_id, State.PAID):
        stage.send("finalize", other, sender="seller")


def test_a_fee_may_take_the_whole_price(stage: Stage) -> None:
    quote = stage.quote(price=7, fee=7)
    paid(stage, quote)
    assert credit(stage, "seller") == 0
    assert credit(stage, "treasury") == 7


# refund


def test_a_stranger_can_refund_and_the_buyer_is_credited_the_whole_price(stage: Stage) -> None:
    quote = stage.quote()
    stage.fund(quote)
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    outcome = stage.send("refund", quote, sender="stranger")
    assert stage.trade(quote.trade_id) == (State.REFUNDED, outcome.time)
    assert credit(stage, "buyer") == quote.price
    assert credit(stage, "seller") == credit(stage, "treasury") == 0
    (event,) = outcome.events
    assert event == ("Refunded", {"tradeId": quote.trade_id, "amount": quote.price})


@pytest.mark.parametrize("grace", [0, 300])
def test_nobody_is_refunded_before_the_grace_has_passed(
    stage: Stage, refused: Refused, grace: int
) -> None:
    quote = stage.quote(grace=grace)
    stage.fund(quote)
    opens = quote.reveal_by + grace + 1
    stage.wait_until(opens - 1)
    with refused("TooEarly", opens - 1, opens):
        stage.send("refund", quote, sender="buyer")
    stage.wait_until(opens)
    stage.send("refund", quote, sender="buyer")


def test_a_refund_needs_a_funded_trade(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    with refused("WrongState", quote.trade_id, State.NONE):
        stage.send("refund", quote, sender="buyer")
    refunded(stage, quote)
    with refused("WrongState", quote.trade_id, State.REFUNDED):
        stage.send("refund", quote, sender="buyer")


# withdraw


def test_a_stranger_can_have_an_account_paid(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    paid(stage, quote)
    treasury = stage.accounts["treasury"]
    before = stage.balance(treasury)
    outcome = stage.send("withdraw", ZERO, treasury, sender="stranger")
    assert stage.balance(treasury) - before == quote.fee
    assert credit(stage, "treasury") == 0
    assert stage.balance(stage.escrow.address) == quote.price - quote.fee
    (event,) = outcome.events
    assert event.name == "Withdrawn"
    assert event.fields == {
        "asset": ZERO,
        "account": treasury.lower(),
        "recipient": treasury.lower(),
        "amount": quote.fee,
    }
    with refused("NothingOwed", ZERO, treasury.lower(), 0):
        stage.send("withdraw", ZERO, treasury, sender="treasury")


def test_an_account_that_is_owed_nothing_cannot_withdraw(stage: Stage, refused: Refused) -> None:
    stage.fund(stage.quote())
    for role in ("seller", "buyer", "stranger"):
        with refused("NothingOwed", ZERO, stage.accounts[role].lower(), 0):
            stage.send("withdraw", ZERO, stage.accounts[role], sender=role)


def test_credits_of_several_trades_add_up(stage: Stage) -> None:
    seller = stage.accounts["seller"]
    sold = stage.quote(trade_id=b"s" * 32)
    paid(stage, sold)
    both = stage.quote(trade_id=b"b" * 32, fee_recipient=seller)
    paid(stage, both)
    assert credit(stage, "seller") == sold.price - sold.fee + both.price
    for price, trade_id in ((5, b"5" * 32), (7, b"7" * 32)):
        refunded(stage, stage.quote(trade_id=trade_id, price=price, fee=1))
    assert credit(stage, "buyer") == 12
    outcome = stage.send("withdraw", ZERO, seller, sender="stranger")
    assert outcome.events[0].fields["amount"] == sold.price - sold.fee + both.price


def test_an_account_that_refuses_its_money_stays_credited(
    stage: Stage, refused: Refused, deploy: Deploy
) -> None:
    refusing = deploy("Refusing")
    quote = stage.quote(seller=refusing.address, fee=0, fee_recipient=ZERO)
    paid(stage, quote)
    with refused("WithdrawalFailed", refusing.address.lower(), quote.price):
        stage.send("withdraw", ZERO, refusing.address, sender="stranger")
    assert stage.view("credits", ZERO, refusing.address) == quote.price
    assert stage.balance(stage.escrow.address) == quote.price


def test_a_reentrant_account_is_paid_once(stage: Stage, deploy: Deploy) -> None:
    reentrant = deploy("Reentrant", stage.escrow.address)
    others = stage.quote(trade_id=b"o" * 32)
    stage.fund(others)
    quote = stage.quote(buyer=reentrant.address)
    signature = stage.signature(quote)
    stage.send("fund", quote, signature, sender="buyer", value=quote.price, to=reentrant)
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    stage.send("refund", quote, sender="stranger")
    stage.send("withdraw", ZERO, reentrant.address, sender="stranger")
    assert stage.view("payments", of=reentrant) == 1
    assert stage.balance(reentrant.address) == quote.price
    assert stage.balance(stage.escrow.address) == others.price
    selectors = {entry["name"]: selector for selector, entry in stage.escrow.errors.items()}
    assert stage.view("withdrawAnswer", of=reentrant) == selectors["NothingOwed"]
    assert stage.view("refundAnswer", of=reentrant) == selectors["WrongState"]


def test_nobody_sends_more_credits_than_it_has(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    paid(stage, quote)
    owed, rival = quote.price - quote.fee, stage.accounts["rival"]
    for amount in (0, owed + 1):
        with refused("NothingOwed", ZERO, stage.accounts["seller"].lower(), owed):
            stage.send("withdrawTo", ZERO, rival, amount, sender="seller")
    assert credit(stage, "seller") == owed


def test_credits_are_sent_to_nobody_that_could_never_take_them(
    stage: Stage, refused: Refused, deploy: Deploy
) -> None:
    paid(stage, stage.quote())
    for nobody in (ZERO, stage.escrow.address.lower()):
        with refused("BadRecipient", nobody):
            stage.send("withdrawTo", ZERO, nobody, 1, sender="seller")
    refusing = deploy("Refusing").address
    with refused("WithdrawalFailed", refusing.lower(), 1):
        stage.send("withdrawTo", ZERO, refusing, 1, sender="seller")


def test_an_owner_sends_its_credits_wherever_it_likes(stage: Stage) -> None:
    quote = stage.quote()
    paid(stage, quote)
    owed, rival = quote.price - quote.fee, stage.accounts["rival"]
    before = stage.balance(rival)
    stage.send("withdrawTo", ZERO, rival, 1, sender="seller")
    stage.send("withdrawTo", ZERO, rival, owed - 1, sender="seller")
    assert stage.balance(rival) - before == owed
    assert credit(stage, "seller") == 0
