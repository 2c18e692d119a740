"""Who can fund which quote: the first step of `escrow.tree`, error by error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from eth_tester.exceptions import TransactionFailed
from eth_utils.address import to_checksum_address
from eth_utils.hexadecimal import decode_hex, encode_hex

from contracts.stage import ETHER, SECRET, ZERO, Stage, State
from tests.contracts.signers import signer_of

Refused = Callable[..., AbstractContextManager[None]]

DAY = 86_400
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
UINT64_MAX = 2**64 - 1


def fund(stage: Stage, **changes: Any) -> None:
    """Fund a quote with these changes, properly signed, by its own buyer."""
    stage.fund(stage.quote(**changes))


def test_an_escrow_knows_its_registry_its_court_and_its_domain(stage: Stage) -> None:
    assert to_checksum_address(stage.view("registry")) == stage.registry.address
    assert to_checksum_address(stage.view("court")) == stage.court.address
    assert stage.view("threshold") == 1
    fields, name, version, chain_id, escrow, salt, extensions = stage.view("eip712Domain")
    assert (fields, name, version) == (b"\x0f", "pm-node", "1")
    assert chain_id == stage.chain.backend.chain.chain_id
    assert to_checksum_address(escrow) == stage.escrow.address
    assert (salt, extensions) == (bytes(32), ())


def test_a_funded_trade_tells_under_which_terms(stage: Stage) -> None:
    quote = stage.quote()
    assert stage.view("termsOf", quote.trade_id) == bytes(26)
    stage.fund(quote)
    assert stage.view("termsOf", quote.trade_id) == stage.view("quoteDigest", quote)[:26]


def test_funding_locks_the_price(stage: Stage) -> None:
    quote = stage.quote()
    assert stage.trade(quote.trade_id) == (State.NONE, 0)
    before = stage.balance(stage.accounts["buyer"])
    outcome = stage.fund(quote)
    assert stage.trade(quote.trade_id) == (State.FUNDED, outcome.time)
    assert stage.balance(stage.escrow.address) == quote.price
    assert before - stage.balance(stage.accounts["buyer"]) >= quote.price
    (event,) = outcome.events
    assert event.name == "Funded"
    assert event.fields == {
        "tradeId": quote.trade_id,
        "buyer": quote.buyer.lower(),
        "seller": quote.seller.lower(),
        "price": quote.price,
    }


def test_a_trade_is_funded_only_once_whatever_became_of_it(stage: Stage, refused: Refused) -> None:
    paid = stage.quote(trade_id=b"p" * 32)
    stage.fund(paid)
    with refused("WrongState", paid.trade_id, State.FUNDED):
        stage.fund(paid)
    outcome = stage.send("reveal", paid, SECRET, sender="seller")
    with refused("WrongState", paid.trade_id, State.REVEALED):
        stage.fund(paid)
    stage.wait_until(outcome.time + paid.dispute_window + 1)
    stage.send("finalize", paid, sender="seller")
    with refused("WrongState", paid.trade_id, State.PAID):
        stage.fund(stage.quote(trade_id=paid.trade_id))
    refunded = stage.quote(trade_id=b"r" * 32)
    stage.fund(refunded)
    stage.wait_until(refunded.reveal_by + refunded.grace + 1)
    stage.send("refund", refunded, sender="buyer")
    with refused("WrongState", refunded.trade_id, State.REFUNDED):
        stage.fund(stage.quote(trade_id=refunded.trade_id))


def test_only_the_buyer_can_fund(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    stranger, buyer = stage.accounts["stranger"].lower(), quote.buyer.lower()
    with refused("NotBuyer", stranger, buyer):
        stage.send("fund", quote, stage.signature(quote), sender="stranger", value=quote.price)


def test_a_quote_that_is_never_funded_locks_nothing(stage: Stage, refused: Refused) -> None:
    """A buyer that has a quote and leaves it costs the seller nothing, and cannot come late."""
    quote = stage.quote()
    with refused("WrongState", quote.trade_id, State.NONE):
        stage.send("reveal", quote, SECRET, sender="seller")
    stage.wait_until(quote.fund_by + 1)
    with refused("FundingClosed", quote.fund_by + 1, quote.fund_by):
        stage.fund(quote)
    stage.wait_until(quote.reveal_by + quote.grace + 1)
    for step in ("refund", "finalize"):
        with refused("WrongState", quote.trade_id, State.NONE):
            stage.send(step, quote, sender="seller")
    assert stage.balance(stage.escrow.address) == 0


def test_a_trade_without_a_price_is_refused(stage: Stage, refused: Refused) -> None:
    with refused("NoPrice", stage.quote().trade_id):
        fund(stage, price=0, fee=0)


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_payment_that_is_not_the_price_is_refused(
    stage: Stage, refused: Refused, difference: int
) -> None:
    quote = stage.quote()
    sent = quote.price + difference
    with refused("WrongPayment", ZERO, sent, quote.price):
        stage.send("fund", quote, stage.signature(quote), sender="buyer", value=sent)


def test_a_fee_above_the_price_is_refused(stage: Stage, refused: Refused) -> None:
    with refused("FeeAbovePrice", ETHER + 1, ETHER):
        fund(stage, price=ETHER, fee=ETHER + 1)


@pytest.mark.parametrize("field", ["seller", "fee_recipient"])
def test_a_recipient_that_could_never_withdraw_is_refused(
    stage: Stage, refused: Refused, field: str
) -> None:
    for nobody in (ZERO, stage.escrow.address):
        with refused("BadPayee", nobody.lower()):
            fund(stage, **{field: nobody})


def test_without_a_fee_its_recipient_does_not_matter(stage: Stage) -> None:
    fund(stage, fee=0, fee_recipient=ZERO)
    assert stage.trade(stage.quote().trade_id)[0] is State.FUNDED


def test_funding_closes_after_its_last_second(stage: Stage, refused: Refused) -> None:
    late, just = stage.quote(trade_id=b"l" * 32), stage.quote(trade_id=b"j" * 32)
    stage.wait_until(just.fund_by)
    stage.fund(just)
    stage.wait_until(late.fund_by + 1)
    with refused("FundingClosed", late.fund_by + 1, late.fund_by):
        stage.fund(late)


def test_a_reveal_deadline_not_after_the_funding_deadline_is_refused(
    stage: Stage, refused: Refused
) -> None:
    now = stage.now()
    with refused("BadDeadlines", now + 600, now + 600, now + 30 * DAY):
        fund(stage, reveal_by=now + 600)


@pytest.mark.parametrize("excess", [1, UINT64_MAX])
def test_a_reveal_deadline_too_far_away_is_refused(
    stage: Stage, refused: Refused, excess: int
) -> None:
    now = stage.now()
    reveal_by = min(now + 30 * DAY + excess, UINT64_MAX)
    with refused("BadDeadlines", now + 600, reveal_by, now + 30 * DAY):
        fund(stage, reveal_by=reveal_by)


@pytest.mark.parametrize("grace", [7 * DAY + 1, UINT64_MAX])
def test_a_grace_that_is_too_long_is_refused(stage: Stage, refused: Refused, grace: int) -> None:
    with refused("GraceTooLong", grace, 7 * DAY):
        fund(stage, grace=grace)


@pytest.mark.parametrize("window", [30 * DAY + 1, UINT64_MAX])
def test_a_dispute_window_that_is_too_long_is_refused(
    stage: Stage, refused: Refused, window: int
) -> None:
    with refused("DisputeWindowTooLong", window, 30 * DAY):
        fund(stage, dispute_window=window)


def test_times_near_the_end_of_their_type_neither_wrap_nor_lock(
    stage: Stage, refused: Refused
) -> None:
    with refused("BadDeadlines", UINT64_MAX, UINT64_MAX, stage.now() + 30 * DAY):
        fund(stage, fund_by=UINT64_MAX, reveal_by=UINT64_MAX)


@pytest.mark.parametrize(
    ("leaves", "length"),
    [
        (0, 0),
        (1, 0),
        (0, 1),
        (2, 1024),
        (1, 1025),
        (UINT64_MAX, UINT64_MAX),
        (2**54 - 1, UINT64_MAX),
    ],
)
def test_a_leaf_count_that_is_not_that_of_the_length_is_refused(
    stage: Stage, refused: Refused, leaves: int, length: int
) -> None:
    """It could be paid for, and never be disputed."""
    with refused("WrongLeafCount", leaves, length):
        fund(stage, leaf_count=leaves, byte_length=length)


@pytest.mark.parametrize(("leaves", "length"), [(1, 1), (1, 1024), (2, 1025), (2**54, UINT64_MAX)])
def test_the_leaf_count_of_the_length_is_accepted(stage: Stage, leaves: int, length: int) -> None:
    fund(stage, leaf_count=leaves, byte_length=length)
    assert stage.trade(stage.quote().trade_id)[0] is State.FUNDED


def test_the_longest_windows_are_accepted(stage: Stage) -> None:
    now = stage.now()
    longest = {"reveal_by": now + 30 * DAY, "grace": 7 * DAY, "dispute_window": 30 * DAY}
    quote = stage.quote(**longest)
    stage.fund(quote)
    stage.wait_until(now + 37 * DAY + 1)
    stage.send("refund", quote, sender="stranger")
    assert stage.trade(quote.trade_id)[0] is State.REFUNDED


def test_a_quote_signed_by_somebody_else_is_refused(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    with refused("NotSeated", 0, stage.accounts["rival"].lower()):
        signature = stage.signature(quote, "rival")
        stage.send("fund", quote, signature, sender="buyer", value=quote.price)


# What a field could be changed to, so that nothing but the signature stands against it.
CHANGES: dict[str, Callable[[Stage], Any]] = {
    "trade_id": lambda _: b"\x01" * 32,
    "seller": lambda stage: stage.accounts["rival"],
    "encryptor": lambda stage: stage.accounts["rival"],
    "price": lambda _: ETHER,
    "fee": lambda _: 1,
    "fee_recipient": lambda stage: stage.accounts["rival"],
    "offer_root": lambda _: b"\x02" * 32,
    "goods_root": lambda _: b"\x03" * 32,
    "leaf_count": lambda _: 1,
    "byte_length": lambda _: 1_048_578,
    "secret_commitment": lambda _: b"\x04" * 32,
    "dh_commitment": lambda _: b"\x05" * 32,
    "fund_by": lambda stage: stage.now() + 601,
    "reveal_by": lambda stage: stage.now() + 1201,
    "grace": lambda _: 0,
    "dispute_window": lambda _: 0,
    "receipt_hash": lambda _: b"\x06" * 32,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_quote_that_was_changed_after_signing_is_refused(
    stage: Stage, refused: Refused, field: str
) -> None:
    signed = stage.quote()
    changed = signed._replace(**{field: CHANGES[field](stage)})
    if field == "leaf_count":  # which is refused for its own sake without that length
        changed = changed._replace(byte_length=1024)
    assert changed != signed
    signature = stage.signature(signed)
    with refused("NotSeated", 0, signer_of(stage.view("quoteDigest", changed), signature)):
        stage.send("fund", changed, signature, sender="buyer", value=changed.price)


def test_a_quote_for_another_escrow_is_refused(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    signature = stage.signature(quote)
    twin = stage.market("ParameterEscrow", stage.court.address)
    stage.seat("broker", twin)
    with refused("NotSeated", 0, signer_of(stage.view("quoteDigest", quote, of=twin), signature)):
        stage.send("fund", quote, signature, sender="buyer", value=quote.price, to=twin)


def test_a_malleable_signature_is_refused(stage: Stage, refused: Refused) -> None:
    quote = stage.quote()
    signature = stage.signature(quote)
    high_s = (CURVE_ORDER - int.from_bytes(signature[32:64])).to_bytes(32)
    other_v = bytes([55 - signature[64]])
    with refused("BadSignature", 0):
        twin = signature[:32] + high_s + other_v
        stage.send("fund", quote, twin, sender="buyer", value=quote.price)


@pytest.mark.parametrize("length", [0, 64])
def test_a_cut_signature_is_refused(stage: Stage, refused: Refused, length: int) -> None:
    quote = stage.quote()
    with refused("BelowQuorum", 0, 1):
        signature = stage.signature(quote)[:length]
        stage.send("fund", quote, signature, sender="buyer", value=quote.price)


@pytest.mark.parametrize("v", [1, 26, 29, 255])
def test_a_malformed_signature_is_refused(stage: Stage, refused: Refused, v: int) -> None:
    quote = stage.quote()
    with refused("BadSignature", 0):
        signature = stage.signature(quote)[:64] + bytes([v])
        stage.send("fund", quote, signature, sender="buyer", value=quote.price)


def test_a_word_too_large_for_its_type_is_refused(stage: Stage) -> None:
    quote = stage.quote()
    data = bytearray(stage.escrow.calldata("fund", (quote, stage.signature(quote))))
    for word in range(19):
        encoded = quote[word] if isinstance(quote[word], int) else None
        if encoded is None and not str(quote[word]).startswith("0x"):
            continue  # a bytes32 fills its word
        if word in (5, 6):
            continue  # so does a uint256
        soiled = data.copy()
        soiled[4 + 32 * word] = 1
        transaction = {
            "from": quote.buyer,
            "to": stage.escrow.address,
            "gas": 500_000,
            "value": quote.price,
            "data": encode_hex(bytes(soiled)),
        }
        with pytest.raises(TransactionFailed):
            stage.chain.call(transaction, "pending")
    clean = {**transaction, "data": encode_hex(bytes(data))}
    assert decode_hex(stage.chain.call(clean, "pending")) == b""


def test_ether_sent_without_a_trade_is_refused(stage: Stage) -> None:
    for data in ("0x", "0x12345678"):
        transaction = {
            "from": stage.accounts["stranger"],
            "to": stage.escrow.address,
            "gas": 100_000,
            "value": 1,
            "data": data,
        }
        with pytest.raises(TransactionFailed):
            stage.chain.call(transaction, "pending")
