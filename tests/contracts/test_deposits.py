"""Money that repeat traders leave in the escrow, and how they take it back."""

from __future__ import annotations

import pytest

from contracts.stage import SECRET, ZERO, Stage
from tests.contracts.batching import leg, lock, planned
from tests.contracts.conftest import Deploy, Refused

NOTICE = 30 * 86_400


def deposit_of(stage: Stage, role: str, asset: str = ZERO) -> int:
    amount: int = stage.view("deposits", asset, stage.accounts[role])
    return amount


def deposit(stage: Stage, amount: int) -> None:
    stage.send("deposit", ZERO, stage.accounts["buyer"], amount, sender="buyer", value=amount)


def test_anyone_can_leave_money_for_an_account(stage: Stage) -> None:
    buyer = stage.accounts["buyer"]
    outcome = stage.send("deposit", ZERO, buyer, 7, sender="rival", value=7)
    (event,) = outcome.events
    assert event == ("Deposited", {"asset": ZERO, "account": buyer.lower(), "amount": 7})
    assert deposit_of(stage, "buyer") == 7


@pytest.mark.parametrize("sent", [6, 8])
def test_a_deposit_is_what_came_with_it(stage: Stage, refused: Refused, sent: int) -> None:
    with refused("WrongPayment", ZERO, sent, 7):
        stage.send("deposit", ZERO, stage.accounts["buyer"], 7, sender="buyer", value=sent)


def test_a_deposit_of_tokens_takes_no_ether(stage: Stage, deploy: Deploy, refused: Refused) -> None:
    money = deploy("Token")
    buyer = stage.accounts["buyer"]
    stage.send("mint", buyer, 10, sender="rival", to=money)
    stage.send("approve", stage.escrow.address, 10, sender="buyer", to=money)
    with refused("WrongPayment", ZERO, 1, 0):
        stage.send("deposit", money.address, buyer, 7, sender="buyer", value=1)
    stage.send("deposit", money.address, buyer, 7, sender="buyer")
    assert deposit_of(stage, "buyer", money.address) == 7
    assert stage.view("balanceOf", stage.escrow.address, of=money) == 7


def test_nobody_deposits_for_an_account_that_could_not_take_it_back(
    stage: Stage, refused: Refused
) -> None:
    for nobody in (ZERO, stage.escrow.address.lower()):
        with refused("BadRecipient", nobody):
            stage.send("deposit", ZERO, nobody, 1, sender="buyer", value=1)


def sold(stage: Stage) -> int:
    """Let the seller be owed a price, and return it."""
    quote = stage.quote(fee=0)
    stage.fund(quote)
    outcome = stage.send("reveal", quote, SECRET, sender="seller")
    stage.wait_until(outcome.time + 901)
    stage.send("finalize", quote, sender="seller")
    return quote.price


def test_nobody_deposits_more_credits_than_it_has(stage: Stage, refused: Refused) -> None:
    owed = sold(stage)
    for amount in (0, owed + 1):
        with refused("NothingOwed", ZERO, stage.accounts["seller"].lower(), owed):
            stage.send("depositCredits", ZERO, amount, sender="seller")
    assert deposit_of(stage, "seller") == 0


def test_credits_become_a_deposit(stage: Stage) -> None:
    owed = sold(stage)
    stage.send("depositCredits", ZERO, owed - 1, sender="seller")
    assert deposit_of(stage, "seller") == owed - 1
    assert stage.view("credits", ZERO, stage.accounts["seller"]) == 1
    stage.send("depositCredits", ZERO, 1, sender="seller")
    assert deposit_of(stage, "seller") == owed


def test_a_deposit_leaves_thirty_days_after_a_notice(stage: Stage, refused: Refused) -> None:
    deposit(stage, 10)
    with refused("NoticeNotDue", stage.now(), 0):
        stage.send("releaseDeposit", ZERO, sender="buyer")
    due = stage.send("giveDepositNotice", ZERO, 7, sender="buyer").time + NOTICE
    stage.wait_until(due - 1)
    with refused("NoticeNotDue", due - 1, due):
        stage.send("releaseDeposit", ZERO, sender="buyer")
    stage.wait_until(due)
    stage.send("releaseDeposit", ZERO, sender="buyer")
    assert deposit_of(stage, "buyer") == 3
    assert stage.view("credits", ZERO, stage.accounts["buyer"]) == 7
    with refused("NoticeNotDue", stage.now(), 0):
        stage.send("releaseDeposit", ZERO, sender="buyer")


def spend(stage: Stage, price: int, number: int = 1) -> None:
    """Let the buyer spend so much of what it has here in a batch."""
    lock(stage, planned(stage, [leg(stage, number, "buyer", "seller", price=price, fee=0)], number))


def notice_of(stage: Stage) -> int:
    amount: int = stage.view("noticeOf", ZERO, stage.accounts["buyer"])[0]
    return amount


def test_a_notice_is_of_no_more_than_is_there(stage: Stage, refused: Refused) -> None:
    """Else it could be given in store for a deposit that a seller sees later, and relies on."""
    buyer = stage.accounts["buyer"].lower()
    with refused("DepositTooSmall", ZERO, buyer, 0, 1):
        stage.send("giveDepositNotice", ZERO, 1, sender="buyer")
    deposit(stage, 10)
    for amount in (11, 2**128 - 1):
        with refused("DepositTooSmall", ZERO, buyer, 10, amount):
            stage.send("giveDepositNotice", ZERO, amount, sender="buyer")
    stage.send("giveDepositNotice", ZERO, 10, sender="buyer")
    with refused("DepositTooSmall", ZERO, buyer, 10, 11):
        stage.send("giveDepositNotice", ZERO, 11, sender="buyer")


def test_what_is_seen_in_deposit_stays_for_thirty_days(stage: Stage) -> None:
    """Whatever notices were given before, and however long ago."""
    deposit(stage, 10)
    stage.send("giveDepositNotice", ZERO, 10, sender="buyer")
    assert deposit_of(stage, "buyer") == 0
    stage.wait_until(stage.now() + 2 * NOTICE)
    deposit(stage, 7)
    seen = stage.now()
    assert deposit_of(stage, "buyer") == 7
    stage.send("releaseDeposit", ZERO, sender="buyer")
    assert deposit_of(stage, "buyer") == 7
    stage.send("giveDepositNotice", ZERO, 7, sender="buyer")
    stage.wait_until(seen + NOTICE - 1)
    spend(stage, 7)
    assert (deposit_of(stage, "buyer"), notice_of(stage)) == (0, 0)


def test_a_notice_releases_what_is_left_of_it(stage: Stage, refused: Refused) -> None:
    """What was given notice of is spent last, and may be spent until it is released."""
    deposit(stage, 10)
    due = stage.send("giveDepositNotice", ZERO, 6, sender="buyer").time + NOTICE
    spend(stage, 4)
    assert (deposit_of(stage, "buyer"), notice_of(stage)) == (0, 6)
    spend(stage, 1, 2)
    deposit(stage, 2)
    spend(stage, 3, 3)
    assert (deposit_of(stage, "buyer"), notice_of(stage)) == (0, 4)
    with refused("DepositTooSmall", ZERO, stage.accounts["buyer"].lower(), 4, 5):
        spend(stage, 5, 4)
    stage.wait_until(due)
    stage.send("releaseDeposit", ZERO, sender="buyer")
    assert (deposit_of(stage, "buyer"), notice_of(stage)) == (0, 0)
    assert stage.view("credits", ZERO, stage.accounts["buyer"]) == 4


def test_a_later_notice_replaces_the_first(stage: Stage, refused: Refused) -> None:
    deposit(stage, 10)
    first = stage.send("giveDepositNotice", ZERO, 7, sender="buyer").time + NOTICE
    stage.wait_until(first - 1)
    second = stage.send("giveDepositNotice", ZERO, 2, sender="buyer").time + NOTICE
    assert stage.view("noticeOf", ZERO, stage.accounts["buyer"]) == (2, second)
    assert deposit_of(stage, "buyer") == 8
    stage.wait_until(first + 1)
    with refused("NoticeNotDue", first + 1, second):
        stage.send("releaseDeposit", ZERO, sender="buyer")
    stage.wait_until(second)
    stage.send("releaseDeposit", ZERO, sender="buyer")
    assert deposit_of(stage, "buyer") == 8
