"""A message cannot be malformed: not when we make one, and not when a peer sends one."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import node.protocol
from node.protocol import cbor, messages
from node.protocol.cbor import Value
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.fees import MAX_FEE_BASIS_POINTS
from node.protocol.messages import Book, NoDeal, Submit
from node.protocol.offer import MAX_LIFETIME, BrokerNotice, Offer, Receipt
from node.protocol.quote import Quote
from node.protocol.sale import SaleRecord
from node.protocol.schema import (
    MAX_BYTES,
    MAX_ITEMS,
    MAX_PEER_ID,
    MAX_TEXT,
    Message,
    checksummed,
    fields_of,
    from_map,
    raw_address,
    to_map,
)
from node.protocol.types import UINT64_MAX, UINT256_MAX, Address, Digest, Millionths, Wei
from tests.protocol import cast, strategies
from tests.protocol.strategies import MESSAGES, STREAMED

WHOLE: dict[type[Any], Any] = {
    Offer: cast.OFFER,
    BrokerNotice: cast.NOTICE,
    Receipt: cast.receipt(),
    Quote: cast.quote(),
    SaleRecord: cast.sale_record(),
    type(cast.EVALUATION): cast.EVALUATION,
    type(cast.deal()): cast.deal(),
}


def refused_from_peer(cls: type[Any], value: Value) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        from_map(cls, value)
    assert caught.value.reason == "malformed"
    return caught.value.detail


def test_these_are_all_the_messages_there_are() -> None:
    found = set()
    for module in pkgutil.iter_modules(node.protocol.__path__):
        members = vars(importlib.import_module(f"node.protocol.{module.name}")).values()
        found |= {m for m in members if inspect.isclass(m) and issubclass(m, Message)}
    assert found - {Message} == set(MESSAGES)


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda c: c.__name__)
def test_every_message_comes_back_as_it_was_sent(cls: type[Any]) -> None:
    @settings(max_examples=30, deadline=None)
    @given(message=strategies.messages(cls))
    def holds(message: Any) -> None:
        sent = cbor.encode(to_map(message))
        assert from_map(cls, cbor.decode(sent)) == message

    holds()


@pytest.mark.parametrize("cls", STREAMED, ids=lambda c: c.__name__)
def test_every_message_of_a_stream_comes_back_under_its_kind(cls: type[Any]) -> None:
    @settings(max_examples=10, deadline=None)
    @given(message=strategies.messages(cls))
    def holds(message: Any) -> None:
        assert messages.decode(messages.encode(message)) == message

    holds()


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=100))
def test_every_byte_string_on_a_stream_is_a_message_or_is_refused(data: bytes) -> None:
    reason = "malformed"
    try:
        assert messages.encode(messages.decode(data)) == data
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason in {"malformed", "unknown-kind"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "malformed"),
        (["ask"], "malformed"),
        (["ask", {}, {}], "malformed"),
        ({"ask": {}}, "malformed"),
        ([1, {}], "malformed"),
        (["ask", []], "malformed"),
        (["ask", None], "malformed"),
        (["Ask", {"ask": b""}], "unknown-kind"),
        (["", {}], "unknown-kind"),
        (["offer", {}], "unknown-kind"),
    ],
)
def test_a_stream_speaks_in_kinds_and_maps(value: Value, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        messages.decode(cbor.encode(value))
    assert caught.value.reason == reason


@pytest.mark.parametrize("cls", WHOLE, ids=lambda c: c.__name__)
def test_no_field_may_be_missing_and_none_added(cls: type[Any]) -> None:
    whole = to_map(WHOLE[cls])
    for name in whole:
        assert name in refused_from_peer(cls, {k: v for k, v in whole.items() if k != name})
    assert "surprise" in refused_from_peer(cls, {**whole, "surprise": 0})
    for other in (None, [], b"", 0, "", list(whole.values())):
        refused_from_peer(cls, other)


@pytest.mark.parametrize("cls", WHOLE, ids=lambda c: c.__name__)
def test_no_field_takes_a_value_of_another_type(cls: type[Any]) -> None:
    whole = to_map(WHOLE[cls])
    samples: list[Value] = [None, True, 1, -1, b"\x01", "x", [], {}]
    for name, right in whole.items():
        for wrong in samples:
            if type(wrong) is type(right) or (cls, name, wrong) == (SaleRecord, "quote", None):
                continue
            detail = refused_from_peer(cls, {**whole, name: wrong})
            assert name in detail.lower()


BOUNDS: list[tuple[type[Any], str, list[Any], list[Any]]] = [
    (Offer, "reserve", [0, UINT256_MAX], [-1, UINT256_MAX + 1, 1.0, True, b"", None]),
    (Offer, "nonce", [0, UINT64_MAX], [-1, UINT64_MAX + 1, 0.0, False, "1"]),
    (Offer, "issued_at", [cast.NOW], [-1, UINT64_MAX + 1, None]),
    (Offer, "weights_root", [bytes(32)], [b"", bytes(31), bytes(33), "0" * 32, bytearray(32)]),
    (
        Offer,
        "seller",
        [cast.BUYER.account, "0x" + "00" * 20],
        [
            "",
            "0x",
            cast.BUYER.account.lower(),
            cast.BUYER.account.upper(),
            cast.BUYER.account[2:] + "00",
            cast.BUYER.account + "0",
            cast.BUYER.account[:-1],
            "0x" + " 0" * 20,
            "0x" + "zz" * 20,
            raw_address(cast.BUYER.account),
        ],
    ),
    (Offer, "peer_id", ["", "x" * MAX_PEER_ID], ["x" * (MAX_PEER_ID + 1), "é" * 65, b"x", None]),
    (
        Offer,
        "task",
        ["", "x" * MAX_TEXT, "é" * (MAX_TEXT // 2), "\0"],
        ["x" * (MAX_TEXT + 1), "é" * (MAX_TEXT // 2 + 1), b"x", "\ud800", "a\udfff"],
    ),
    (
        Offer,
        "addresses",
        [(), ("",) * MAX_ITEMS],
        [("",) * (MAX_ITEMS + 1), [], ("x" * (MAX_TEXT + 1),), (b"x",), "x", None, ("\ud800",)],
    ),
    (Offer, "layers", [(), (0, UINT64_MAX)], [(-1,), (UINT64_MAX + 1,), (True,), [1], 1]),
    (BrokerNotice, "fee_basis_points", [0, MAX_FEE_BASIS_POINTS], [MAX_FEE_BASIS_POINTS + 1, -1]),
    (type(cast.EVALUATION), "gain", [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63, 0.5]),
    (Submit, "statement", [b"", bytes(MAX_BYTES)], [bytes(MAX_BYTES + 1), "", bytearray(1)]),
    (Book, "statements", [(), (b"",) * MAX_ITEMS], [(b"",) * (MAX_ITEMS + 1), ("",), b""]),
    (NoDeal, "reason", ["no-surplus"], ["x" * (MAX_TEXT + 1), None]),
    (SaleRecord, "quote", [None, cast.quote()], [cast.OFFER, {}, 0]),
]
SUBMIT, BOOK, NO_DEAL = Submit(statement=b""), Book(statements=()), NoDeal(reason="")


@pytest.mark.parametrize(
    ("cls", "field", "allowed", "forbidden"),
    BOUNDS,
    ids=[f"{cls.__name__}.{field}" for cls, field, _, _ in BOUNDS],
)
def test_a_field_holds_what_its_type_allows_and_nothing_else(
    cls: type[Any], field: str, allowed: list[Any], forbidden: list[Any]
) -> None:
    whole = (WHOLE | {Submit: SUBMIT, Book: BOOK, NoDeal: NO_DEAL})[cls]
    for value in allowed:
        good = dataclasses.replace(whole, **{field: value})
        assert from_map(cls, cbor.decode(cbor.encode(to_map(good)))) == good
    for value in forbidden:
        with pytest.raises(LocalProtocolError, match=field):
            dataclasses.replace(whole, **{field: value})


@pytest.mark.parametrize(
    "wrong",
    [b"\0", b"\0\1", b"\1" + bytes(32), bytes(33), 0, 1, "1", None],
    ids=repr,
)
def test_an_amount_has_one_form_and_at_most_256_bits(wrong: Value) -> None:
    assert "reserve" in refused_from_peer(Offer, {**to_map(cast.OFFER), "reserve": wrong})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("nonce", -1),
        ("expires_at", cast.NOW),
        ("expires_at", cast.NOW + MAX_LIFETIME + 1),
        ("weights_root", bytes(31)),
        ("seller", bytes(19)),
        ("seller", bytes(21)),
        ("peer_id", "x" * (MAX_PEER_ID + 1)),
        ("task", "x" * (MAX_TEXT + 1)),
        ("addresses", [""] * (MAX_ITEMS + 1)),
        ("addresses", [["x"]]),
        ("layers", [-1]),
    ],
)
def test_what_would_be_our_fault_is_the_peers_in_its_message(field: str, wrong: Value) -> None:
    refused_from_peer(Offer, {**to_map(cast.OFFER), field: wrong})


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LIFETIME + 1])
@pytest.mark.parametrize(
    "said",
    [cast.OFFER, cast.revocation(cast.OFFER_DIGEST), cast.NOTICE, cast.receipt()],
    ids=lambda m: type(m).__name__,
)
def test_nothing_is_said_for_ever_or_for_no_time(said: Any, lifetime: int) -> None:
    with pytest.raises(LocalProtocolError, match="expire"):
        dataclasses.replace(said, expires_at=said.issued_at + lifetime)
    for good in (1, MAX_LIFETIME):
        dataclasses.replace(said, expires_at=said.issued_at + good)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fee": Wei(cast.PRICE + 1)}, "fee"),
        ({"fund_by": cast.REVEAL_BY}, "fund_by"),
        ({"reveal_by": cast.FUND_BY - 1}, "fund_by"),
    ],
)
def test_no_quote_contradicts_itself(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(LocalProtocolError, match=what):
        cast.quote(**changes)
    refused_from_peer(
        Quote,
        to_map(cast.quote()) | {k: b"\xff" * 4 if k == "fee" else v for k, v in changes.items()},
    )


def test_a_fault_inside_a_nested_message_is_named() -> None:
    whole = to_map(cast.deal())
    inner = whole["quote"]
    assert isinstance(inner, dict)
    assert "leaf_count" in refused_from_peer(
        type(cast.deal()), {**whole, "quote": {**inner, "leaf_count": -1}}
    )


def test_a_refusal_does_not_repeat_what_a_peer_wrote_at_length() -> None:
    detail = refused_from_peer(Offer, {**to_map(cast.OFFER), "task": "\x01" * 100_000})
    assert len(detail) < 500
    detail = refused_from_peer(Offer, {**to_map(cast.OFFER), "\x01" * 10_000: 0})
    assert len(detail) < 500


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cast.OFFER.reserve = Wei(0)  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):
        cast.OFFER.surprise = 1  # type: ignore[attr-defined]


@given(raw=st.binary(min_size=20, max_size=20))
@settings(max_examples=50, deadline=None)
def test_an_address_is_its_twenty_bytes(raw: bytes) -> None:
    assert raw_address(checksummed(raw)) == raw


@pytest.mark.parametrize("length", [0, 19, 21, 32])
def test_an_address_has_twenty_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        checksummed(bytes(length))


def test_a_type_that_the_schema_does_not_know_is_our_own_fault() -> None:
    @dataclasses.dataclass(frozen=True)
    class Strange(Message):
        number: float

    with pytest.raises(LocalProtocolError, match="no kind"):
        fields_of(Strange)


def test_a_message_inside_another_is_not_hashed_with_it() -> None:
    kinds = dict(fields_of(type(cast.deal())))
    with pytest.raises(LocalProtocolError, match="signed by its own digest"):
        kinds["quote"].to_word(cast.quote())


def test_the_words_of_a_field_are_those_of_solidity() -> None:
    kinds = dict(fields_of(type(cast.EVALUATION)))
    assert kinds["gain"].to_word(Millionths(-1)) == b"\xff" * 32
    assert kinds["base_root"].to_word(Digest(bytes(32))) == bytes(32)
    assert dict(fields_of(Offer))["seller"].to_word(Address("0x" + "00" * 20)) == bytes(32)
