"""A leaf that is bad is always provable, and an honest encryptor is never convicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol import cbor, delivery, merkle
from node.protocol.dispute import Evidence, disputable_until, proves_bad
from node.protocol.quote import Quote
from node.protocol.schema import from_map, to_map
from node.protocol.types import Digest, UnixTime
from tests.protocol import cast
from tests.protocol.bad_goods import Goods, bad_goods

SECRET = cast.word("the secret of a bad delivery")
LENGTHS = st.one_of(st.integers(1, 3_000), st.sampled_from([1_023, 1_024, 1_025, 8_192, 8_193]))


def terms(goods: Goods) -> Quote:
    return goods.terms(cast.quote())


def some_bad_goods(*, length: int = 2_500, bad: int = 1) -> Goods:
    return bad_goods(SECRET, cast.TRADE_ID, length=length, bad=bad)


@given(length=LENGTHS, place=st.floats(0, 1, exclude_max=True))
def test_the_bad_leaf_convicts_and_no_other_does(length: int, place: float) -> None:
    leaves = merkle.leaf_count(length)
    bad = int(place * leaves)
    goods = some_bad_goods(length=length, bad=bad)
    quote = terms(goods)
    assert [proves_bad(quote, goods.show(index)) for index in range(leaves)] == [
        index == bad for index in range(leaves)
    ]


WRONG: list[tuple[str, Any]] = [
    ("secret", Digest(b"\x66" * 32)),
    ("dh", Digest(b"\x66" * 32)),
    ("index", 0),
    ("index", 2),
    ("index", 3),
    ("index", 5),  # 1 + 2^depth: the same sides, level by level
    ("leaf", b""),
    ("leaf", bytes(1_024)),
    ("leaf", bytes(1_025)),
    ("goods_path", ()),
    ("goods_path", (Digest(bytes(32)),) * 3),
    ("offered", Digest(b"\x66" * 32)),
    ("offer_path", ()),
    ("offer_path", (Digest(bytes(32)),) * 3),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_evidence_with_anything_else_in_it_proves_nothing(name: str, value: Any) -> None:
    goods = some_bad_goods()
    evidence = goods.show(1)
    assert proves_bad(terms(goods), evidence)
    assert not proves_bad(terms(goods), dataclasses.replace(evidence, **{name: value}))


def test_a_size_that_is_not_the_goods_proves_nothing() -> None:
    goods = some_bad_goods()
    quote = terms(goods)
    for other in (
        dataclasses.replace(quote, leaf_count=4),
        dataclasses.replace(quote, byte_length=2_501),
        dataclasses.replace(quote, byte_length=0),
    ):
        for index in (1, 3):
            assert not proves_bad(other, dataclasses.replace(goods.show(1), index=index))


def test_a_buyer_cannot_convict_with_a_key_of_its_own() -> None:
    """Goods that are good under the dh that was committed to are garbage under any other."""
    goods = some_bad_goods()
    honest = dataclasses.replace(
        goods,
        delivered=delivery.Keystream(delivery.delivery_key(SECRET, goods.dh, cast.TRADE_ID)).apply(
            goods.offered
        ),
    )
    quote = terms(honest)
    for dh in (goods.dh, Digest(bytes(32)), cast.word("another dh")):
        for index in range(3):
            shown = dataclasses.replace(honest.show(index), dh=dh)
            assert not proves_bad(quote, shown)


def test_evidence_outlives_a_restart_and_shows_no_secret() -> None:
    evidence = some_bad_goods().show(1)
    assert from_map(Evidence, cbor.decode(cbor.encode(to_map(evidence)))) == evidence
    for secret in (evidence.secret, evidence.dh):
        assert secret.hex() not in repr(evidence)
        assert repr(secret) not in repr(evidence)


def test_a_dispute_is_heard_until_its_window_is_over_or_for_as_long_as_nobody_knows() -> None:
    quote = cast.quote()
    assert disputable_until(quote, UnixTime(1_000)) == 1_000 + quote.dispute_window
    assert disputable_until(quote, UnixTime(0)) == quote.lapses_after
