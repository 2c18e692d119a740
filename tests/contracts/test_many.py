"""Several trades in one transaction."""

from __future__ import annotations

import hashlib

import pytest

from contracts.stage import SECRET, ZERO, Quote, Stage, State
from tests.contracts.conftest import Deploy, Refused


def three(stage: Stage) -> list[Quote]:
    return [stage.quote(trade_id=bytes([i]) * 32, price=100 * i, fee=i) for i in (1, 2, 3)]


def fund_all(stage: Stage, quotes: list[Quote], value: int) -> None:
    signatures = [stage.signature(quote) for quote in quotes]
    stage.send("fundMany", quotes, signatures, sender="buyer", value=value)


def states(stage: Stage, quotes: list[Quote]) -> list[State]:
    return [stage.trade(quote.trade_id)[0] for quote in quotes]


def test_many_trades_are_funded_revealed_and_finalized(stage: Stage) -> None:
    quotes = three(stage)
    fund_all(stage, quotes, 600)
    assert states(stage, quotes) == [State.FUNDED] * 3
    outcome = stage.send("revealMany", quotes, [SECRET] * 3, sender="seller")
    assert states(stage, quotes) == [State.REVEALED] * 3
    stage.wait_until(outcome.time + 901)
    stage.send("finalizeMany", quotes, sender="stranger")
    assert states(stage, quotes) == [State.PAID] * 3
    assert stage.view("credits", ZERO, stage.accounts["seller"]) == 594
    assert stage.view("credits", ZERO, stage.accounts["treasury"]) == 6


@pytest.mark.parametrize("sent", [0, 599, 601])
def test_all_prices_come_with_the_call(stage: Stage, refused: Refused, sent: int) -> None:
    with refused("WrongPayment", ZERO, sent, 600):
        fund_all(stage, three(stage), sent)


def test_prices_that_sum_past_the_largest_number_are_not_paid_with_less(
    stage: Stage, refused: Refused
) -> None:
    quotes = [quote._replace(price=2**255, fee=0) for quote in three(stage)]
    for many in (quotes, quotes[:2]):
        with refused("WrongPayment", ZERO, 0, 2**256 - 1):
            fund_all(stage, many, 0)


def test_ether_pays_for_no_trade_twice(stage: Stage, refused: Refused) -> None:
    quote = stage.quote(price=100, fee=1)
    with refused("WrongState", quote.trade_id, State.FUNDED):
        fund_all(stage, [quote, quote], 200)


def test_ether_and_tokens_are_funded_together(stage: Stage, deploy: Deploy) -> None:
    money = deploy("Token")
    stage.send("mint", stage.accounts["buyer"], 100, sender="stranger", to=money)
    stage.send("approve", stage.escrow.address, 100, sender="buyer", to=money)
    quotes = three(stage)
    quotes[0] = quotes[0]._replace(asset=money.address)
    fund_all(stage, quotes, 500)
    assert states(stage, quotes) == [State.FUNDED] * 3


def test_all_are_funded_or_none(stage: Stage, refused: Refused) -> None:
    quotes = three(stage)
    quotes[2] = quotes[2]._replace(fund_by=stage.now() - 1)
    with refused("FundingClosed", stage.now(), stage.now() - 1):
        fund_all(stage, quotes, 600)
    assert states(stage, quotes) == [State.NONE] * 3


def test_lists_are_of_one_length(stage: Stage, refused: Refused) -> None:
    quotes = three(stage)
    with refused("LengthsDiffer", 3, 2):
        stage.send("fundMany", quotes, [b"", b""], sender="buyer")
    with refused("LengthsDiffer", 3, 4):
        stage.send("revealMany", quotes, [SECRET] * 4, sender="seller")


def test_what_somebody_did_first_does_not_stop_the_others(stage: Stage) -> None:
    quotes = three(stage)
    fund_all(stage, quotes, 600)
    stage.send("reveal", quotes[1], SECRET, sender="rival")
    outcome = stage.send("revealMany", quotes, [SECRET] * 3, sender="seller")
    assert states(stage, quotes) == [State.REVEALED] * 3
    stage.wait_until(outcome.time + 901)
    stage.send("finalize", quotes[0], sender="rival")
    stage.send("finalizeMany", quotes, sender="seller")
    assert states(stage, quotes) == [State.PAID] * 3


def test_a_wrong_one_among_many_is_refused(stage: Stage, refused: Refused) -> None:
    quotes = three(stage)
    fund_all(stage, quotes, 600)
    wrong = hashlib.sha256(bytes(32)).digest()
    with refused("WrongSecret", quotes[2].trade_id, quotes[2].secret_commitment, wrong):
        stage.send("revealMany", quotes, [SECRET, SECRET, bytes(32)], sender="seller")
    assert states(stage, quotes) == [State.FUNDED] * 3
    last = stage.send("revealMany", quotes, [SECRET] * 3, sender="seller").time
    stage.wait_until(last + 900)
    with refused("TooEarly", last + 900, last + 901):
        stage.send("finalizeMany", quotes, sender="seller")


def test_each_of_many_is_under_its_own_terms(stage: Stage, refused: Refused) -> None:
    quotes = three(stage)
    fund_all(stage, quotes, 600)
    richer = quotes[2]._replace(price=301)
    terms = [stage.view("quoteDigest", quote)[:26] for quote in (quotes[2], richer)]
    with refused("WrongTerms", richer.trade_id, *terms):
        stage.send("revealMany", [*quotes[:2], richer], [SECRET] * 3, sender="seller")
    outcome = stage.send("revealMany", quotes, [SECRET] * 3, sender="seller")
    stage.wait_until(outcome.time + 901)
    with refused("WrongTerms", richer.trade_id, *terms):
        stage.send("finalizeMany", [*quotes[:2], richer], sender="seller")
    assert states(stage, quotes) == [State.REVEALED] * 3
