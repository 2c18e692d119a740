"""Bonds: how they are put up, and how they are lost."""

from __future__ import annotations

from typing import Any

import pytest
from eth_utils.crypto import keccak

from contracts import load_artifact
from contracts.stage import BOND, ETHER, SECRET, ZERO, RevertedError, Stage
from tests.contracts.conftest import Deploy, Refused
from tests.contracts.deliveries import Delivery, deliver, flipped, noise
from tests.contracts.evidence import alone, credit, in_batch, prove, to_registry, two_quotes

DAY = 86_400
EXIT_DELAY = 100 * DAY


# bond, serve


def test_a_bond_can_be_added_to(stage: Stage) -> None:
    outcome = to_registry(stage, "bond", sender="broker", value=1)
    (event,) = outcome.events
    broker = stage.accounts["broker"].lower()
    assert event == ("Bonded", {"broker": broker, "amount": 1, "bond": BOND + 1})
    assert stage.balance(stage.registry.address) == BOND + 1


def test_a_small_bond_is_refused(stage: Stage, refused: Refused) -> None:
    for value in (0, BOND - 1):
        with refused("BondTooSmall", value, BOND):
            to_registry(stage, "bond", sender="rival", value=value)


def test_where_no_bond_is_asked_for_one_is_put_up_all_the_same(
    stage: Stage, refused: Refused
) -> None:
    stage.registry = stage.deploy(load_artifact("BrokerRegistry"), 0)
    with refused("BondTooSmall", 0, 0):
        to_registry(stage, "bond", sender="rival")
    to_registry(stage, "bond", sender="rival", value=1)


def test_only_a_bonded_account_serves(stage: Stage, refused: Refused) -> None:
    rival = stage.accounts["rival"].lower()
    for function, arguments in (("serve", (stage.escrow.address,)), ("giveNotice", ())):
        with refused("NoBond", rival):
            to_registry(stage, function, *arguments, sender="rival")


def test_a_broker_serves_sixteen_markets_and_no_more(stage: Stage, refused: Refused) -> None:
    for number in range(1, 16):
        to_registry(stage, "serve", "0x" + bytes([number] * 20).hex(), sender="broker")
    with refused("TooManyMarkets", 16):
        to_registry(stage, "serve", "0x" + "ff" * 20, sender="broker")
    bond, leaves_at, markets = stage.view("brokerOf", stage.accounts["broker"], of=stage.registry)
    assert (bond, leaves_at, len(markets)) == (BOND, 0, 16)


def test_a_market_is_listed_once(stage: Stage) -> None:
    """Else its place would be of no use to another, and it would be told twice of a slashing."""
    broker, escrow = stage.accounts["broker"], stage.escrow.address
    assert to_registry(stage, "serve", escrow, sender="broker").events == ()
    assert stage.view("brokerOf", broker, of=stage.registry)[2] == (escrow.lower(),)


def test_a_broker_answers_to_the_market_that_it_serves(stage: Stage) -> None:
    broker, market = stage.accounts["broker"].lower(), "0x" + "11" * 20
    for ask in ("serves", "answersTo"):
        assert not stage.view(ask, broker, market, of=stage.registry)
    (event,) = to_registry(stage, "serve", market, sender="broker").events
    assert event == ("Serving", {"broker": broker, "market": market})
    for ask in ("serves", "answersTo"):
        assert stage.view(ask, broker, market, of=stage.registry)


# notice


def test_who_gave_no_notice_takes_nothing(stage: Stage, refused: Refused) -> None:
    for role in ("broker", "rival"):
        with refused("NoNotice", stage.accounts[role].lower()):
            to_registry(stage, "takeBond", sender=role)


def test_a_bond_leaves_a_hundred_days_after_the_notice(stage: Stage, refused: Refused) -> None:
    outcome = to_registry(stage, "giveNotice", sender="broker")
    assert [event.name for event in outcome.events] == ["NoticeGiven", "Unseated"]
    leaves_at = outcome.time + EXIT_DELAY
    stage.wait_until(leaves_at - 1)
    with refused("TooEarlyToLeave", leaves_at - 1, leaves_at):
        to_registry(stage, "takeBond", sender="broker")
    stage.wait_until(leaves_at)
    to_registry(stage, "takeBond", sender="broker")
    broker = stage.accounts["broker"]
    assert credit(stage, broker) == BOND
    to_registry(stage, "withdraw", ZERO, broker, sender="stranger")
    assert stage.balance(stage.registry.address) == 0
    assert not stage.view("answersTo", broker, stage.escrow.address, of=stage.registry)


def test_a_notice_ends_all_service(stage: Stage, refused: Refused) -> None:
    quote, broker = stage.quote(), stage.accounts["broker"].lower()
    signature = stage.signature(quote)
    assert stage.view("serves", broker, stage.escrow.address, of=stage.registry)
    to_registry(stage, "giveNotice", sender="broker")
    assert not stage.view("serves", broker, stage.escrow.address, of=stage.registry)
    with refused("NotSeated", 0, broker):
        stage.send("fund", quote, signature, sender="buyer", value=quote.price)
    with refused("NotServing", broker):
        stage.send("seat", broker, sender="broker")
    for function, arguments, value in (
        ("bond", (), BOND), ("serve", (stage.escrow.address,), 0), ("giveNotice", (), 0)
    ):  # fmt: skip
        with refused("HasGivenNotice", broker):
            to_registry(stage, function, *arguments, sender="broker", value=value)


def test_a_bond_answers_for_its_broker_until_it_is_taken(stage: Stage, refused: Refused) -> None:
    outcome = to_registry(stage, "giveNotice", sender="broker")
    stage.wait_until(outcome.time + EXIT_DELAY + 1)
    prove(stage, *two_quotes(stage))
    with refused("NoNotice", stage.accounts["broker"].lower()):
        to_registry(stage, "takeBond", sender="broker")


def leaving(stage: Stage) -> tuple[Delivery, int]:
    """Fund a bad delivery of the longest times, and let its encryptor give notice at once.

    Return it, and when the encryptor may leave.
    """
    broker, now = stage.accounts["broker"], stage.now()
    longest = {"reveal_by": now + 30 * DAY, "grace": 7 * DAY, "dispute_window": 30 * DAY}
    bad = deliver(stage, noise(1024), flipped(0), encryptor=broker, **longest)
    stage.fund(bad.quote)
    return bad, to_registry(stage, "giveNotice", sender="broker").time + EXIT_DELAY


@pytest.mark.parametrize("revealed_after", [37 * DAY, 70 * DAY - 1])
def test_a_bond_outlasts_the_longest_dispute(
    stage: Stage, refused: Refused, revealed_after: int
) -> None:
    """After 37 days anyone refunds; who leaves that open has another 33 in which the bond is up."""
    broker, funded = stage.accounts["broker"].lower(), stage.now()
    bad, leaves_at = leaving(stage)
    stage.wait_until(funded + revealed_after)
    until = stage.send("reveal", bad.quote, SECRET, sender="seller").time + 30 * DAY
    stage.wait_until(until)
    with refused("TooEarlyToLeave", until, leaves_at):
        to_registry(stage, "takeBond", sender="broker")
    outcome = stage.send("dispute", bad.quote, bad.evidence(0), sender="rival")
    assert [event.name for event in outcome.events] == ["Disputed", "Slashed"]
    with refused("NoNotice", broker):
        to_registry(stage, "takeBond", sender="broker")
    assert credit(stage, broker) == 0


def test_a_reveal_that_nobody_refunded_for_seventy_days_finds_no_bond(stage: Stage) -> None:
    """The buyer has its price back all the same."""
    bad, leaves_at = leaving(stage)
    stage.wait_until(leaves_at - 29 * DAY)
    stage.send("reveal", bad.quote, SECRET, sender="seller")
    stage.wait_until(leaves_at)
    to_registry(stage, "takeBond", sender="broker")
    outcome = stage.send("dispute", bad.quote, bad.evidence(0), sender="rival")
    assert [event.name for event in outcome.events] == ["Disputed"]
    assert credit(stage, stage.accounts["broker"]) == BOND
    assert stage.view("credits", ZERO, bad.quote.buyer) == bad.quote.price


# equivocation


def test_two_quotes_of_one_trade_cost_the_bond(stage: Stage) -> None:
    outcome = prove(stage, *two_quotes(stage))
    assert [event.name for event in outcome.events] == ["Slashed", "Unseated"]
    assert outcome.events[0].fields == {
        "broker": stage.accounts["broker"].lower(),
        "victim": stage.accounts["buyer"].lower(),
        "reporter": stage.accounts["rival"].lower(),
        "toVictim": BOND // 20,
        "toReporter": BOND // 20,
        "burnt": BOND - BOND // 10,
    }
    for role in ("rival", "buyer"):
        assert credit(stage, stage.accounts[role]) == BOND // 20
    assert credit(stage, "0x" + "00" * 18 + "dead") == BOND - BOND // 10


def test_where_two_buyers_have_quotes_of_one_trade_neither_gets_a_part(stage: Stage) -> None:
    """One of the two may be the broker's own, shown before the other could be."""
    first, second = stage.quote(), stage.quote(buyer=stage.accounts["rival"])
    broker = stage.accounts["broker"]
    outcome = prove(stage, broker, alone(stage, first), alone(stage, second))
    assert outcome.events[0].fields["victim"] == "0x" + "00" * 18 + "dead"
    assert credit(stage, stage.accounts["buyer"]) == 0
    assert credit(stage, stage.accounts["rival"]) == BOND // 20  # as the reporter
    assert credit(stage, "0x" + "00" * 18 + "dead") == BOND - BOND // 20


@pytest.mark.parametrize("places", ["first", "second", "both", "one batch"])
def test_two_quotes_of_one_trade_cost_the_bond_in_batches_too(
    stage: Stage, places: str, refused: Refused
) -> None:
    broker = stage.accounts["broker"]
    first, second = stage.quote(), stage.quote(price=ETHER)
    others = [stage.quote(trade_id=bytes([n]) * 32) for n in (1, 2)]
    one, other = alone(stage, first), alone(stage, second)
    if places != "second":
        one = in_batch(stage, [*others, first], 2)
    if places in ("second", "both"):
        other = in_batch(stage, [second, *others], 0)
    if places == "one batch":
        both = [others[0], first, second]
        one, other = in_batch(stage, both, 1), in_batch(stage, both, 2)
    outcome = prove(stage, broker, one, other)
    assert [event.name for event in outcome.events] == ["Slashed", "Unseated"]
    assert credit(stage, stage.accounts["rival"]) == BOND // 20
    with refused("NoBond", broker.lower()):
        prove(stage, broker, other, one)


def test_a_quote_is_shown_at_its_place_in_a_batch(stage: Stage, refused: Refused) -> None:
    broker = stage.accounts["broker"]
    first, second = stage.quote(), stage.quote(price=ETHER)
    elsewhere = stage.quote(trade_id=b"e" * 32)
    digest = stage.view("quoteDigest", second)
    _, digests, _, signature = in_batch(stage, [elsewhere, second], 1)
    for place in (0, 2, 2**256 - 1):
        with refused("NotInBatch", digest, place):
            prove(stage, broker, alone(stage, first), (second, digests, place, signature))
    changed = [digests[1], digests[0]]
    struct = keccak(keccak(text="Batch(bytes32[] quotes)") + keccak(b"".join(changed)))
    with refused("NotSignedBy", broker.lower(), stage.digest(struct)):
        prove(stage, broker, alone(stage, first), (second, changed, 0, signature))
    with refused("NotSignedBy", broker.lower(), digest):
        prove(stage, broker, alone(stage, first), (second, (), 0, signature))


def test_a_broker_that_is_a_contract_loses_its_bond_for_two_quotes(
    stage: Stage, deploy: Deploy, refused: Refused
) -> None:
    wallet = deploy("Wallet", stage.accounts["third"])
    call = stage.registry.calldata("bond", ())
    act = ("act", stage.registry.address, call)
    stage.send(*act, sender="third", value=BOND, to=wallet)
    first, second = stage.quote(), stage.quote(price=ETHER)
    signed = [alone(stage, quote, "third") for quote in (first, second)]
    forged = alone(stage, second, "second")
    with refused("NotSignedBy", wallet.address.lower(), stage.view("quoteDigest", second)):
        prove(stage, wallet.address, signed[0], forged)
    outcome = prove(stage, wallet.address, *signed)
    assert outcome.events[0].fields["broker"] == wallet.address.lower()
    assert stage.view("wasSlashed", wallet.address, of=stage.registry)


def test_who_lost_a_bond_is_no_broker_again(stage: Stage, refused: Refused) -> None:
    """Else the same proof would cost it another bond."""
    evidence = two_quotes(stage)
    prove(stage, *evidence)
    assert stage.view("wasSlashed", stage.accounts["broker"], of=stage.registry)
    assert not stage.view("wasSlashed", stage.accounts["rival"], of=stage.registry)
    broker = stage.accounts["broker"].lower()
    with refused("NoBond", broker):
        prove(stage, *evidence)
    with refused("WasSlashed", broker):
        to_registry(stage, "bond", sender="broker", value=BOND)


def test_what_is_no_conflict_slashes_nobody(stage: Stage, refused: Refused) -> None:
    broker, one, other = two_quotes(stage)
    first, second = one[0], other[0]
    elsewhere = stage.quote(trade_id=b"e" * 32)
    for pair in (
        (one, one),
        (one, in_batch(stage, [elsewhere, first], 1)),
        (one, alone(stage, elsewhere)),
    ):
        digests = [stage.view("quoteDigest", quote) for quote in (pair[0][0], pair[1][0])]
        with refused("NotAConflict", *digests):
            prove(stage, broker, *pair)
    digest = stage.view("quoteDigest", second)
    for forged in (
        alone(stage, second, "rival"),
        (second, (), 0, one[3]),
        (second, (), 0, b""),
    ):
        with refused("NotSignedBy", broker.lower(), digest):
            prove(stage, broker, one, forged)
        with refused("NotSignedBy", broker.lower(), digest):
            prove(stage, broker, forged, one)
    unsigned = [(quote, (), 0, b"") for quote in (first, second)]
    with refused("NotSignedBy", ZERO, stage.view("quoteDigest", first)):
        prove(stage, ZERO, *unsigned)


def test_quotes_of_two_markets_are_no_conflict(stage: Stage, refused: Refused) -> None:
    broker, one, (second, *_) = two_quotes(stage)
    twin = stage.market("ParameterEscrow", stage.court.address)
    theirs = stage.signatures(stage.view("quoteDigest", second, of=twin))
    with refused("NotSignedBy", broker.lower(), stage.view("quoteDigest", second)):
        prove(stage, broker, one, (second, (), 0, theirs))


def test_a_market_cannot_stop_a_slashing(stage: Stage, deploy: Deploy) -> None:
    deaf = deploy("DeafMarket")
    house = stage.clearing_house()
    to_registry(stage, "serve", deaf.address, sender="broker")
    last = stage.market("ClearingHouse", 1)
    stage.seat("broker", last)
    outcome = prove(stage, *two_quotes(stage))
    names = [event.name for event in outcome.events]
    assert names == ["Slashed", "Unseated", "Unseated", "Unseated"]
    for market in (stage.escrow, house, last):
        assert stage.view("seatOf", stage.accounts["broker"], of=market) == 1


def test_no_broker_keeps_its_seat_by_sending_little_gas(stage: Stage, refused: Refused) -> None:
    gas, needed = 80_000, 60_000 * 64 // 63 + 5_000
    refusals: list[tuple[int, RevertedError]] = []
    while True:
        try:
            outcome = to_registry(stage, "giveNotice", sender="broker", gas=gas)
        except RevertedError as error:
            refusals.append((gas, error))
            gas += 2_000
            continue
        break
    assert [event.name for event in outcome.events] == ["NoticeGiven", "Unseated"]
    assert {error.name for _, error in refusals} == {"TooLittleGas"}
    assert all(error.arguments[0] < needed for _, error in refusals)


def test_too_little_gas_is_said(stage: Stage, refused: Refused) -> None:
    with pytest.raises(RevertedError) as refusal:
        to_registry(stage, "giveNotice", sender="broker", gas=100_000)
    with refused("TooLittleGas", refusal.value.arguments[0], 60_000 * 64 // 63 + 5_000):
        to_registry(stage, "giveNotice", sender="broker", gas=100_000)


# conviction


def test_only_a_market_that_is_served_convicts(stage: Stage, refused: Refused) -> None:
    broker, rival = stage.accounts["broker"], stage.accounts["rival"]
    with refused("NotServedBy", rival.lower(), broker.lower()):
        to_registry(stage, "convict", broker, rival, rival, sender="rival")


@pytest.mark.parametrize("more", [0, 9, 10, 19, 20, BOND])
def test_nobody_gains_by_slashing_itself(stage: Stage, more: int) -> None:
    """The broker names its own account as a market, a victim and a reporter."""
    broker, bond = stage.accounts["broker"], BOND + more
    to_registry(stage, "bond", sender="broker", value=more)
    to_registry(stage, "serve", broker, sender="broker")
    outcome = to_registry(stage, "convict", broker, broker, broker, sender="broker")
    (slashed, _) = outcome.events
    tenth = slashed.fields["toVictim"] + slashed.fields["toReporter"]
    assert tenth == bond // 10
    assert 0 <= slashed.fields["toVictim"] - slashed.fields["toReporter"] <= 1
    assert slashed.fields["burnt"] == bond - tenth
    assert stage.balance(stage.registry.address) == bond
    assert credit(stage, broker) == tenth


def test_a_broker_is_convicted_once(stage: Stage, refused: Refused) -> None:
    """Its markets are forgotten with its bond: it answers to none of them any more."""
    broker = stage.accounts["broker"]
    to_registry(stage, "serve", broker, sender="broker")
    to_registry(stage, "convict", broker, broker, broker, sender="broker")
    assert not stage.view("answersTo", broker, stage.escrow.address, of=stage.registry)
    with refused("NotServedBy", broker.lower(), broker.lower()):
        to_registry(stage, "convict", broker, broker, broker, sender="broker")


@pytest.mark.parametrize("call", ["proveEquivocation", "convict"])
def test_no_slashing_passes_a_market_over_for_want_of_gas(stage: Stage, call: str) -> None:
    """Whoever reports chooses the gas, and could leave a slashed broker in its seat."""
    broker, sender = stage.accounts["broker"], "rival"
    arguments: tuple[Any, ...] = (stage.escrow.address, *two_quotes(stage))
    if call == "convict":
        to_registry(stage, "serve", broker, sender="broker")
        arguments, sender = (broker, broker, broker), "broker"
    refusals = set()
    for gas in range(100_000, 600_000, 10_000):
        try:
            outcome = to_registry(stage, call, *arguments, sender=sender, gas=gas)
        except RevertedError as error:
            refusals.add(error.name)
            continue
        break
    assert "TooLittleGas" in refusals
    assert [event.name for event in outcome.events] == ["Slashed", "Unseated"]
