"""One byte string for each value, and an answer to every byte string."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.protocol import cbor
from node.protocol.cbor import MAX_DEPTH, Value
from node.protocol.errors import LocalProtocolError, RemoteProtocolError

scalars: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, -24, -25, -256, -257]),
    st.binary(max_size=300),
    st.text(max_size=300),
)
values: st.SearchStrategy[Value] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.text(max_size=30), inner, max_size=6),
    ),
    max_leaves=20,
)

# heads of every kind in any order: nearer to CBOR than bytes at random are
HEADS = b"""
00 17 1818 20 40 4161 60 6161 626162 80 81 82 a0 a1 a2
f4 f5 f6 1900ff 1817 5801 7861 98 b8 9f ff c0 f93c00
"""
nearly = st.lists(
    st.sampled_from([bytes.fromhex(head.decode()) for head in HEADS.split()]), max_size=30
).map(b"".join)


def depth_of(value: Value) -> int:
    match value:
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
    return 0


def refused(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        cbor.decode(data)
    assert caught.value.reason == "malformed"
    return caught.value.detail


def nested(depth: int, opening: bytes = b"\x81") -> bytes:
    return opening * depth + b"\x00"


@settings(max_examples=150, deadline=None)
@given(value=values.filter(lambda v: depth_of(v) <= MAX_DEPTH))
def test_what_is_sent_is_what_is_read(value: Value) -> None:
    assert cbor.decode(cbor.encode(value)) == value


@settings(max_examples=150, deadline=None)
@given(value=values.filter(lambda v: depth_of(v) <= MAX_DEPTH))
def test_the_bytes_are_those_of_another_canonical_encoder(value: Value) -> None:
    assert cbor.encode(value) == cbor2.dumps(value, canonical=True)
    assert cbor2.loads(cbor.encode(value)) == value


@settings(max_examples=500, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), nearly))
@example(b"")
@example(b"\xff")
def test_every_byte_string_is_a_value_or_is_refused_by_name(data: bytes) -> None:
    reason = "malformed"
    try:
        assert cbor.encode(cbor.decode(data)) == data
    except RemoteProtocolError as error:
        reason = error.reason
    assert reason == "malformed"


@settings(max_examples=200, deadline=None)
@given(value=values.filter(lambda v: depth_of(v) <= MAX_DEPTH), edit=st.data())
def test_no_second_byte_string_stands_for_the_same_value(value: Value, edit: st.DataObject) -> None:
    data = bytearray(cbor.encode(value))
    at = edit.draw(st.integers(0, len(data) - 1))
    match edit.draw(st.sampled_from(["flip", "drop", "insert"])):
        case "flip":
            data[at] ^= edit.draw(st.integers(1, 255))
        case "drop":
            del data[at]
        case _:
            data.insert(at, edit.draw(st.integers(0, 255)))
    try:
        read = cbor.decode(bytes(data))
    except RemoteProtocolError:
        return
    assert cbor.encode(read) == data


@settings(max_examples=60, deadline=None)
@given(value=values.filter(lambda v: depth_of(v) <= MAX_DEPTH))
def test_a_value_cut_short_is_refused(value: Value) -> None:
    data = cbor.encode(value)
    for length in range(0, len(data), 1 + len(data) // 50):
        refused(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("1800", id="0 in two bytes"),
        pytest.param("1817", id="23 in two bytes"),
        pytest.param("190000", id="0 in three"),
        pytest.param("1900ff", id="255 in three"),
        pytest.param("1a0000ffff", id="65535 in five"),
        pytest.param("1b00000000ffffffff", id="2^32-1 in nine"),
        pytest.param("3817", id="-24 in two"),
        pytest.param("3900ff", id="-256 in three"),
        pytest.param("5800", id="the length of no bytes, in one byte"),
        pytest.param("580161", id="the length of one byte, in one byte"),
        pytest.param("78016b", id="the length of a text"),
        pytest.param("980100", id="the length of an array"),
        pytest.param("b801616100", id="the length of a map"),
        pytest.param("a17801610000", id="the length of a key"),
    ],
)
def test_a_longer_form_of_a_number_is_refused(data: str) -> None:
    assert "written in" in refused(bytes.fromhex(data))
    cbor2.loads(bytes.fromhex(data)[: -1 if data.endswith("610000") else None])  # it is CBOR


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("a2 6162 00 6161 00", "two keys in the wrong order"),
        ("a2 626161 00 6162 00", "a longer key before a shorter one"),
        ("a2 6161 00 6161 01", "one key twice"),
        ("a3 6161 00 6162 00 6161 00", "one key again later"),
        ("a2 60 00 60 00", "the empty key twice"),
        ("a2 6161 00 60 00", "the empty key last"),
    ],
)
def test_keys_that_are_unsorted_or_repeated_are_refused(data: str, why: str) -> None:
    assert "out of order or repeated" in refused(bytes.fromhex(data)), why


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("c0 60", "a tag"),
        ("c2 41 01", "a big number"),
        ("d9d9f7 00", "self-described CBOR"),
        ("d8 1c 80", "a shared value"),
        ("f9 3c00", "a half float"),
        ("fa 3f800000", "a float"),
        ("fb 3ff0000000000000", "a double"),
        ("f9 7e00", "not a number"),
        ("f7", "undefined"),
        ("e0", "an unassigned simple value"),
        ("f3", "another"),
        ("f8 ff", "a simple value in two bytes"),
        ("f8 14", "false, the long way"),
        ("5f 41 00 ff", "bytes in pieces"),
        ("7f 61 61 ff", "text in pieces"),
        ("9f 00 ff", "an array without a length"),
        ("bf 61 61 00 ff", "a map without a length"),
        ("ff", "a break"),
        ("1c", "a reserved length"),
        ("1d", "a reserved length"),
        ("1e", "a reserved length"),
        ("1f", "an integer without a length"),
        ("3f", "a negative one without a length"),
        ("fc", "a reserved simple value"),
        ("3b 8000000000000000", "a negative integer under 64 bits"),
        ("3b ffffffffffffffff", "the most negative that CBOR has"),
        ("a1 00 00", "a key that is a number"),
        ("a1 41 61 00", "a key that is bytes"),
        ("a1 80 00", "a key that is an array"),
        ("a1 f6 00", "a key that is nothing"),
        ("61 ff", "text that is not UTF-8"),
        ("62 c0 80", "an overlong NUL"),
        ("63 ed a0 80", "half of a surrogate pair"),
        ("a1 61 ff 00", "a key that is not UTF-8"),
        ("00 00", "two values"),
        ("80 80", "two arrays"),
        ("f6 f6", "nothing, twice"),
    ],
)
def test_what_the_language_lacks_is_refused(data: str, what: str) -> None:
    refused(bytes.fromhex(data))


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61\x61"])
def test_nesting_is_read_to_the_agreed_depth_and_no_further(opening: bytes) -> None:
    deepest = nested(MAX_DEPTH, opening)
    assert cbor.encode(cbor.decode(deepest)) == deepest
    assert "nested deeper" in refused(nested(MAX_DEPTH + 1, opening))


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x60", b"\x82\x00", b"\xd8\x1c"])
def test_a_bomb_of_nesting_is_refused_and_not_followed(opening: bytes) -> None:
    refused(nested(100_000, opening))


@pytest.mark.parametrize("major", ["5", "7", "9", "b"])
@pytest.mark.parametrize("count", [2**32, 2**63, 2**64 - 1])
def test_an_announced_size_allocates_nothing(major: str, count: int) -> None:
    detail = refused(bytes.fromhex(major + "b") + count.to_bytes(8, "big") + b"\x00" * 100)
    assert ("short" if major in "57" else "announced in 100 bytes") in detail


def test_an_array_of_arrays_that_announce_more_than_is_left_is_refused() -> None:
    # each level is small enough by itself: only the sum is not
    refused(b"\x98\x64" + b"\x98\x5a" * 50)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        2**64,
        -(2**63) - 1,
        {1: 2},
        {b"a": 1},
        {None: 1},
        (1, 2),
        {1, 2},
        bytearray(b"a"),
        memoryview(b"a"),
        ...,
        [1.0],
        {"a": {"b": 1.0}},
        "\ud800",
        {"\udfff": 1},
        ["\ud800"],
    ],
)
def test_we_send_nothing_that_the_language_lacks(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        cbor.encode(value)


def test_we_send_nothing_deeper_than_we_read() -> None:
    value: Value = None
    for _ in range(MAX_DEPTH):
        value = [value]
    assert cbor.decode(cbor.encode(value)) == value
    with pytest.raises(LocalProtocolError, match="nested deeper"):
        cbor.encode([value])


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Value] = []
    endless.append(endless)
    with pytest.raises(LocalProtocolError, match="nested deeper"):
        cbor.encode(endless)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (2**64 - 1, "1bffffffffffffffff"),
        (-1, "20"),
        (-(2**63), "3b7fffffffffffffff"),
        (b"", "40"),
        ("ü", "62c3bc"),
        ([1, [2]], "82018102"),
        ({"b": 1, "a": 2, "aa": 3, "": 4}, "a46004616102616201626161" + "03"),
        ([False, True, None], "83f4f5f6"),
    ],
)
def test_the_bytes_are_the_ones_written_down(value: Value, data: str) -> None:
    assert cbor.encode(value).hex() == data
    assert cbor.decode(bytes.fromhex(data)) == value
