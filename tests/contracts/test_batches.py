"""Many trades from deposits: locked together, revealed in parts, paid account by account."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from contracts.batch import shown
from contracts.stage import ZERO, Quote, Stage
from tests.contracts.batching import (
    ALL,
    INTEGERS,
    close,
    close_by_leg,
    credit,
    deposits,
    four_trades,
    leg,
    lock,
    planned,
    reveal,
)
from tests.contracts.conftest import Refused
from tests.contracts.deliveries import DH, Evidence

DAY = 86_400


@pytest.fixture
def quotes(stage: Stage) -> list[Quote]:
    return four_trades(stage)


# From the lock to the payment


def test_a_batch_is_locked_revealed_and_paid_in_one_movement_an_account(
    stage: Stage, quotes: list[Quote]
) -> None:
    made = planned(stage, quotes)
    (event,) = lock(stage, made).events
    assert event.name == "BatchLocked"
    assert event.fields["batchId"] == made.batch_id
    assert event.fields["digests"] == made.digests
    words = tuple(value.lower() if isinstance(value, str) else value for value in made.batch)
    assert event.fields["batch"] == words
    assert deposits(stage) == [1_000 - 100 - 300, 1_000 - 200, 1_000 - 400]
    outcome = reveal(stage, made, ALL)
    assert outcome.events[0].fields["secrets"] == tuple(shown(made.quotes, ALL))
    assert stage.view("batchOf", made.batch_id) == (True, outcome.time, ALL, 0)
    stage.wait_until(outcome.time + made.batch.dispute_window + 1)
    close(stage, made)
    assert stage.view("batchOf", made.batch_id) == (False, 0, 0, 0)
    # who spent 400 and sold for 199 has 201 less in deposit; who spent 200 has it back
    assert deposits(stage) == [1_000 - 400 + 199, 1_000, 1_000 - 400 + 298]
    dues = {"buyer": 0, "seller": 497 - 200, "rival": 0, "treasury": 6}
    for role, due in dues.items():
        assert credit(stage, stage.accounts[role]) == due
    assert stage.balance(stage.escrow.address) == 3_000


def test_a_mutual_trade_settles_as_one_movement_of_the_difference(stage: Stage) -> None:
    """Both have just what their own price takes; in the end one has the difference less."""
    for role, held in (("buyer", 100), ("seller", 80)):
        stage.send("deposit", ZERO, stage.accounts[role], held, sender="stranger", value=held)
    pair = [
        leg(stage, 0, "buyer", "seller", price=100, fee=0),
        leg(stage, 1, "seller", "buyer", price=80, fee=0),
    ]
    made = planned(stage, pair)
    lock(stage, made)
    outcome = reveal(stage, made, 0b11)
    stage.wait_until(outcome.time + made.batch.dispute_window + 1)
    moved = [event for event in close(stage, made).events if event.name == "Deposited"]
    assert [event.fields["amount"] for event in moved] == [80, 80]
    assert deposits(stage)[:2] == [80, 80]
    assert [credit(stage, stage.accounts[role]) for role in ("buyer", "seller")] == [0, 20]


def test_nobody_is_paid_before_the_dispute_window_has_passed(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    opens = reveal(stage, made, ALL).time + made.batch.dispute_window + 1
    stage.wait_until(opens - 1)
    for end in (close, close_by_leg):
        with refused("TooEarly", opens - 1, opens):
            end(stage, made)
    stage.wait_until(opens)
    close_by_leg(stage, made)
    for account, back, rest in made.payouts:
        assert credit(stage, account) == back + rest
    with refused("UnknownBatch", made.batch_id):
        close(stage, made)


def test_secrets_come_in_parts(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    reveal(stage, made, 0b0001)
    with refused("NothingNew", 0b0001, 0b0001):
        reveal(stage, made, 0b0001)
    with refused("NothingNew", 0, 0b0001):
        stage.send(
            "revealBatch", made.batch, shown(made.quotes, 0), 1 << 4, sender="stranger"
        )  # a bit of no trade
    outcome = reveal(stage, made, 0b0111)
    stage.wait_until(outcome.time + made.batch.dispute_window + 1)
    with refused("NotAllGood", 0b0111, 0):
        close(stage, made)
    outcome = reveal(stage, made, 0b1000)
    stage.wait_until(outcome.time + made.batch.dispute_window + 1)
    close(stage, made)


def test_a_missing_secret_is_waited_for(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    reveal(stage, made, 0b1101)
    closes_from = made.batch.closes_from
    stage.wait_until(closes_from)
    with refused("TooEarly", closes_from, closes_from + 1):
        close_by_leg(stage, made)
    reveal(stage, made, 0b0010)
    assert stage.view("batchOf", made.batch_id) == (True, closes_from, ALL, 0)


def test_a_missing_secret_gives_the_price_back_to_the_deposit(
    stage: Stage, quotes: list[Quote]
) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    reveal(stage, made, 0b1101)
    missing = made.quotes[1]
    stage.wait_until(made.batch.closes_from + 1)
    before = stage.view("deposits", ZERO, missing.buyer)
    close_by_leg(stage, made)
    assert stage.view("deposits", ZERO, missing.buyer) == before + missing.price
    paid = sum(quote.price for quote in made.quotes if quote != missing)
    assert sum(credit(stage, account) for account, _, _ in made.payouts) == paid


def test_a_batch_without_a_secret_is_undone(stage: Stage, quotes: list[Quote]) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    stage.wait_until(made.batch.closes_from + 1)
    close_by_leg(stage, made)
    assert deposits(stage) == [1_000] * 3


def test_a_late_secret_shuts_no_other_out_and_nobody_puts_the_end_off_for_ever(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    reveal(stage, made, 0b0001)
    stage.wait_until(made.batch.closes_from + 5)
    reveal(stage, made, 0b0010)
    last = made.batch.closes_from + made.batch.dispute_window
    stage.wait_until(last)
    assert reveal(stage, made, 0b0100).time == last
    stage.wait_until(last + 1)
    with refused("RevealsOver", last + 1, last):
        reveal(stage, made, 0b1000)
    end = last + made.batch.dispute_window
    stage.wait_until(end)
    with refused("TooEarly", end, end + 1):
        close_by_leg(stage, made)
    stage.wait_until(end + 1)
    close_by_leg(stage, made)


def test_a_batch_is_over_97_days_after_its_lock_at_the_latest(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    """And so while the bond of a broker is up that gave notice in the second of the lock."""
    locked = stage.now()
    longest: dict[str, Any] = {
        "fund_by": locked + 600,
        "reveal_by": locked + 30 * DAY,
        "grace": 7 * DAY,
        "dispute_window": 30 * DAY,
    }
    made = planned(stage, [quote._replace(**longest) for quote in quotes])
    assert lock(stage, made).time == locked
    stage.wait_until(locked + 67 * DAY)
    reveal(stage, made, 0b0001)
    stage.wait_until(locked + 67 * DAY + 1)
    with refused("RevealsOver", locked + 67 * DAY + 1, locked + 67 * DAY):
        reveal(stage, made, 0b0010)
    stage.wait_until(locked + 97 * DAY + 1)
    close_by_leg(stage, made)
    assert stage.view("EXIT_DELAY", of=stage.registry) > 97 * DAY


def test_a_secret_in_the_last_second_is_not_late(stage: Stage, quotes: list[Quote]) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    stage.wait_until(made.batch.closes_from)
    reveal(stage, made, 0b0001)
    stage.wait_until(made.batch.closes_from + 5)
    outcome = reveal(stage, made, 0b0010)
    assert stage.view("batchOf", made.batch_id) == (True, outcome.time, 0b0011, 0)


def test_a_wrong_secret_is_refused(stage: Stage, quotes: list[Quote], refused: Refused) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    secrets = shown(made.quotes, ALL)
    for short in (secrets[:3], [*secrets, bytes(32)], []):
        with refused("LengthsDiffer", 4, len(short)):
            stage.send("revealBatch", made.batch, short, ALL, sender="stranger")
    for wrong in ([*secrets[:3], bytes(32)], [bytes(32), *secrets[1:]]):
        commitments = b"".join(
            hashlib.sha256(secret).digest() if ALL >> place & 1 else secret
            for place, secret in enumerate(wrong)
        )
        with refused("WrongPart", keccak(commitments), made.batch.commitments):
            stage.send("revealBatch", made.batch, wrong, ALL, sender="stranger")


def test_no_step_accepts_other_parts_than_those_locked(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    lock(stage, made)
    changes: list[dict[str, Any]] = [
        {"asset": stage.accounts["rival"]},
        *({name: getattr(made.batch, name) - 1} for name in INTEGERS),
        *({name: bytes(32)} for name in ("commitments", "quotes", "movements", "payouts")),
    ]
    for change in changes:
        changed = made.batch._replace(**change)
        kinds = ["address", "uint8", "uint64", "uint64", *["bytes32"] * 4]
        with refused("UnknownBatch", keccak(encode(kinds, changed))):
            stage.send("closeBatch", changed, made.payouts, sender="stranger")
    outcome = reveal(stage, made, ALL)
    stage.wait_until(outcome.time + made.batch.dispute_window + 1)
    for richer in (
        [(account, back, rest + 1) for account, back, rest in made.payouts],
        [(account, back + 1, rest) for account, back, rest in made.payouts],
    ):
        given = keccak(encode(["(address,uint256,uint256)[]"], [richer]))
        with refused("WrongPart", given, made.batch.payouts):
            stage.send("closeBatch", made.batch, richer, sender="stranger")
    fewer = made.movements[:3]
    others = (made.accounts[::-1], made.movements)
    for accounts, movements in ((made.accounts, fewer), others):
        given = keccak(encode(["address[]", "uint256[]"], [accounts, movements]))
        with refused("WrongPart", given, made.batch.movements):
            stage.send("closeBatchByLeg", made.batch, accounts, movements, sender="stranger")


def test_a_batch_that_was_never_locked_is_unknown(
    stage: Stage, quotes: list[Quote], refused: Refused
) -> None:
    made = planned(stage, quotes)
    evidence = Evidence(bytes(32), DH, 0, bytes(100), (), bytes(32), ())
    shown_ = (made.batch, made.digests, 0, made.quotes[0], evidence)
    with refused("UnknownBatch", made.batch_id):
        stage.send("disputeLeg", *shown_, sender="stranger")
    for step in (close, close_by_leg, lambda s, m: reveal(s, m, ALL)):
        with refused("UnknownBatch", made.batch_id):
            step(stage, made)
