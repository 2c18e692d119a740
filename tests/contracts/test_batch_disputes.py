"""A bad trade is taken out of its batch, and the others are paid."""

from __future__ import annotations

import pytest
from eth_utils.crypto import keccak

from contracts.batch import Plan, secret_of
from contracts.stage import ETHER, GAS, ZERO, Outcome, Quote, RevertedError, Stage
from node.protocol import delivery, merkle
from tests.contracts.batching import (
    close,
    close_by_leg,
    credit,
    four_trades,
    leg,
    lock,
    planned,
    reveal,
)
from tests.contracts.conftest import Refused
from tests.contracts.deliveries import DH, noise
from tests.contracts.goods import evidence_of, spoilt


@pytest.fixture
def quotes(stage: Stage) -> list[Quote]:
    return four_trades(stage)


# Disputes


def dispute(stage: Stage, made: Plan, place: int, gas: int = GAS) -> Outcome:
    quote = made.quotes[place]
    arguments = (made.batch, made.digests, place, quote, evidence_of(quote))
    return stage.send("disputeLeg", *arguments, sender="stranger", gas=gas)


@pytest.fixture
def with_bad(stage: Stage, quotes: list[Quote]) -> Plan:
    """Return a locked batch whose second trade is bad."""
    bad = spoilt(stage, 1, "buyer", "rival")
    made = planned(stage, [quotes[0], bad, quotes[3]])
    lock(stage, made)
    return made


def test_a_bad_trade_is_taken_out_and_the_others_are_paid(
    stage: Stage, with_bad: Plan, refused: Refused
) -> None:
    outcome = reveal(stage, with_bad, 0b111)
    bad = with_bad.quotes[1]
    (event,) = dispute(stage, with_bad, 1).events
    assert event.name == "LegDisputed"
    fields = {"batchId": with_bad.batch_id, "leg": 1, "index": 0, "amount": bad.price}
    assert event.fields == fields
    assert credit(stage, bad.buyer) == bad.price
    stage.wait_until(outcome.time + with_bad.batch.dispute_window + 1)
    with refused("NotAllGood", 0b111, 0b010):
        close(stage, with_bad)
    close_by_leg(stage, with_bad)
    others = sum(quote.price for quote in with_bad.quotes if quote != bad)
    accounts = {*(account for account, _, _ in with_bad.payouts), bad.buyer}
    assert sum(credit(stage, account) for account in accounts) == bad.price + others
    assert credit(stage, bad.seller) == 0


def test_the_last_of_64_trades_is_revealed_disputed_and_closed_as_any_other(stage: Stage) -> None:
    """The broker encrypted and signed the last one; the one before is never revealed."""
    buyer = stage.accounts["buyer"]
    stage.send("deposit", ZERO, buyer, 6_400, sender="stranger", value=6_400)
    good = [leg(stage, number, "buyer", "seller", price=100, fee=0) for number in range(63)]
    bad = spoilt(stage, 63, "buyer", "seller", price=100, fee=0, encryptor=stage.accounts["broker"])
    made = planned(stage, [*good, bad])
    lock(stage, made)
    reveal(stage, made, 1)
    everything = (1 << 64) - 1 & ~(1 << 62)
    outcome = reveal(stage, made, everything)
    assert stage.view("batchOf", made.batch_id) == (True, outcome.time, everything, 0)
    assert [event.name for event in dispute(stage, made, 63).events][:2] == [
        "LegDisputed",
        "Slashed",
    ]
    assert stage.view("batchOf", made.batch_id)[3] == 1 << 63
    assert credit(stage, buyer) == 100
    stage.wait_until(made.batch.closes_from + made.batch.dispute_window + 1)
    close_by_leg(stage, made)
    assert credit(stage, stage.accounts["seller"]) == 62 * 100
    assert stage.view("deposits", ZERO, buyer) == 100


def test_the_price_of_a_bad_trade_goes_back_once(
    stage: Stage, with_bad: Plan, refused: Refused
) -> None:
    reveal(stage, with_bad, 0b111)
    dispute(stage, with_bad, 1)
    with refused("LegSettled", 1):
        dispute(stage, with_bad, 1)
    assert credit(stage, with_bad.quotes[1].buyer) == with_bad.quotes[1].price


def test_a_trade_is_disputed_once_revealed_and_in_its_window(
    stage: Stage, with_bad: Plan, refused: Refused
) -> None:
    reveal(stage, with_bad, 0b101)
    with refused("NotRevealed", 1):
        dispute(stage, with_bad, 1)
    until = reveal(stage, with_bad, 0b010).time + with_bad.batch.dispute_window
    stage.wait_until(until + 1)
    with refused("DisputeClosed", until + 1, until):
        dispute(stage, with_bad, 1)


def test_the_last_second_of_the_window_is_in_time(stage: Stage, with_bad: Plan) -> None:
    stage.wait_until(reveal(stage, with_bad, 0b111).time + with_bad.batch.dispute_window)
    dispute(stage, with_bad, 1)


def test_a_dispute_shows_the_trade_itself(stage: Stage, with_bad: Plan, refused: Refused) -> None:
    reveal(stage, with_bad, 0b111)
    bad = with_bad.quotes[1]
    richer = bad._replace(price=bad.price + 1)
    digest = stage.view("quoteDigest", richer)
    shown_ = evidence_of(bad)
    with refused("WrongPart", digest, with_bad.digests[1]):
        stage.send(
            "disputeLeg", with_bad.batch, with_bad.digests, 1, richer, shown_, sender="rival"
        )
    with refused("WrongPart", with_bad.digests[1], with_bad.digests[0]):
        stage.send("disputeLeg", with_bad.batch, with_bad.digests, 0, bad, shown_, sender="rival")
    digests = (*with_bad.digests[:1], digest, *with_bad.digests[2:])
    with refused("WrongPart", keccak(b"".join(digests)), with_bad.batch.quotes):
        stage.send("disputeLeg", with_bad.batch, digests, 1, richer, shown_, sender="rival")
    for place in (3, 64, 2**256 - 1):
        with refused("NoSuchLeg", place, 3):
            arguments = (with_bad.batch, with_bad.digests, place, bad, shown_)
            stage.send("disputeLeg", *arguments, sender="rival")


def test_a_good_trade_of_a_batch_cannot_be_disputed(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    bad = spoilt(stage, 1, "buyer", "rival")
    key = delivery.delivery_key(secret_of(bad.trade_id), DH, bad.trade_id)
    goods = delivery.Keystream(key).apply(noise(100))
    good = bad._replace(goods_root=merkle.root_of(goods))
    made = planned(stage, [good])
    lock(stage, made)
    reveal(stage, made, 1)
    with refused("GoodLeaf", good.trade_id, 0):
        evidence = evidence_of(good)._replace(leaf=goods)
        stage.send("disputeLeg", made.batch, made.digests, 0, good, evidence, sender="stranger")


def test_a_broker_that_encrypted_badly_in_a_batch_loses_its_bond(
    stage: Stage, quotes: list[Quote]
) -> None:
    bad = spoilt(stage, 1, "buyer", "rival", encryptor=stage.accounts["broker"])
    made = planned(stage, [bad])
    lock(stage, made)
    reveal(stage, made, 1)
    outcome = dispute(stage, made, 0)
    assert [event.name for event in outcome.events] == ["LegDisputed", "Slashed", "Unseated"]
    assert outcome.events[1].fields["burnt"] == ETHER - ETHER // 10
    assert outcome.events[1].fields["victim"] == bad.buyer.lower()


def test_no_broker_keeps_its_bond_for_a_batch_by_sending_little_gas(
    stage: Stage, quotes: list[Quote]
) -> None:
    made = planned(stage, [spoilt(stage, 1, "buyer", "rival", encryptor=stage.accounts["broker"])])
    lock(stage, made)
    reveal(stage, made, 1)
    refusals = set()
    for gas in range(200_000, 900_000, 5_000):
        try:
            outcome = dispute(stage, made, 0, gas=gas)
        except RevertedError as error:
            refusals.add(error.name)
            continue
        break
    assert [event.name for event in outcome.events] == ["LegDisputed", "Slashed", "Unseated"]
    assert refusals == {"unnamed", "TooLittleGas"}


def test_only_a_broker_that_signed_the_batch_loses_its_bond_for_it(refused: Refused) -> None:
    """Those who sign can name whom they like as the encryptor; of a batch, trade by trade."""
    stage = Stage(("broker", "second", "third"), threshold=2)
    four_trades(stage)
    named = ("third", "broker", "rival", "second")
    bad = [
        spoilt(stage, number, "buyer", "rival", price=50, encryptor=stage.accounts[role])
        for number, role in enumerate(named)
    ]
    made = planned(stage, bad)
    lock(stage, made, signatures=stage.signatures(made.digest, "broker", "second"))
    reveal(stage, made, 0b1111)
    convicted = []
    for place in range(4):
        outcome = dispute(stage, made, place)
        slashed = [event.fields["broker"] for event in outcome.events if event.name == "Slashed"]
        convicted.append(slashed)
    broker, second = stage.accounts["broker"].lower(), stage.accounts["second"].lower()
    assert convicted == [[], [broker], [], [second]]
    assert stage.view("serves", stage.accounts["third"], stage.escrow.address, of=stage.registry)
