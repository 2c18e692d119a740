"""The header of the canonical encoding: one for each layout, and none for anything else."""

from __future__ import annotations

import math
from collections.abc import Callable

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol import parameters
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.parameters import Layout, TensorSpec

names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=24)
specs = st.builds(
    TensorSpec,
    name=names,
    dtype=st.sampled_from(sorted(parameters.DTYPE_BYTES)),
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
)
layouts = st.lists(specs, min_size=1, max_size=8, unique_by=lambda s: s.name).map(
    parameters.make_layout
)


@given(layouts)
def test_a_layout_survives_its_header(layout: Layout) -> None:
    header = parameters.encode_header(layout)
    assert parameters.decode_header(header) == layout
    assert header == cbor2.dumps([[s.name, s.dtype, list(s.shape)] for s in layout], canonical=True)


@given(layouts, st.data())
def test_the_order_in_which_tensors_are_named_does_not_matter(
    layout: Layout, draw: st.DataObject
) -> None:
    shuffled = draw.draw(st.permutations(layout))
    assert parameters.make_layout(shuffled) == layout


def test_names_are_sorted_as_their_bytes_are() -> None:
    unsorted = ["b", "a", "Z", "é", "z", "𝔞", "\uffee", "a.10", "a.2"]
    layout = parameters.make_layout(TensorSpec(name, "F32", ()) for name in unsorted)
    assert [s.name.encode() for s in layout] == sorted(name.encode() for name in unsorted)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_layout_or_a_named_refusal(data: bytes) -> None:
    try:
        layout = parameters.decode_header(data)
    except RemoteProtocolError:
        return
    assert parameters.encode_header(layout) == data


@given(layouts, st.data())
def test_a_changed_header_is_another_layout_or_a_named_refusal(
    layout: Layout, draw: st.DataObject
) -> None:
    header = bytearray(parameters.encode_header(layout))
    at = draw.draw(st.integers(0, len(header) - 1))
    header[at] ^= draw.draw(st.integers(1, 255))
    try:
        other = parameters.decode_header(bytes(header))
    except RemoteProtocolError:
        return
    assert other != layout
    assert parameters.encode_header(other) == bytes(header)


A, B = ["a", "F32", [2]], ["b", "F32", [2]]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({}, "malformed-header"),
        ("a", "malformed-header"),
        (None, "malformed-header"),
        ([], "no-tensors"),
        ([["a", "F32"]], "malformed-header"),
        ([[*A, 1]], "malformed-header"),
        (["abc"], "malformed-header"),
        ([B, A], "unsorted-names"),
        ([A, A], "duplicate-name"),
        ([["", "F32", [2]]], "bad-tensor-name"),
        ([[b"a", "F32", [2]]], "bad-tensor-name"),
        ([[1, "F32", [2]]], "bad-tensor-name"),
        ([["a\0", "F32", [2]]], "bad-tensor-name"),
        ([["a\n", "F32", [2]]], "bad-tensor-name"),
        ([["\u202ea", "F32", [2]]], "bad-tensor-name"),
        ([["é" * 129, "F32", [2]]], "bad-tensor-name"),
        ([["a", "f32", [2]]], "bad-dtype"),
        ([["a", "F8_E4M3", [2]]], "bad-dtype"),
        ([["a", 1, [2]]], "bad-dtype"),
        ([["a", [], [2]]], "bad-dtype"),
        ([["a", "F32", 2]], "bad-shape"),
        ([["a", "F32", "2"]], "bad-shape"),
        ([["a", "F32", [0]]], "bad-shape"),
        ([["a", "F32", [-1]]], "bad-shape"),
        ([["a", "F32", [True]]], "bad-shape"),
        ([["a", "F32", [None]]], "bad-shape"),
        ([["a", "F32", [2**63]]], "bad-shape"),
        ([["a", "F32", [1] * 9]], "bad-shape"),
        ([["a", "F32", [2**40] * 8]], "too-many-bytes"),
        ([["a", "F32", [2**30]], ["b", "F64", [2**38]]], "too-many-bytes"),
        ([[f"{i:05}", "U8", []] for i in range(10_001)], "too-many-tensors"),
        ([["a", "F32", [1.0]]], "malformed"),
    ],
)
def test_what_is_no_layout_is_refused_by_name(rows: object, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        parameters.decode_header(cbor2.dumps(rows, canonical=True))
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    "other",
    [
        lambda header: header + b"\0",
        lambda header: header[:-1],
        lambda header: b"\x98\x01" + header[1:],  # the same count, in two bytes
        lambda header: b"\x9f" + header[1:] + b"\xff",  # the same array, of indefinite length
        lambda header: b"\xd9\xd9\xf7" + header,  # the same array, tagged as CBOR
    ],
)
def test_a_layout_has_no_second_header(other: Callable[[bytes], bytes]) -> None:
    header = parameters.encode_header((TensorSpec("a", "F32", (2,)),))
    with pytest.raises(RemoteProtocolError, match="malformed"):
        parameters.decode_header(other(header))


def test_ten_thousand_tensors_are_allowed_and_a_vast_header_is_not() -> None:
    layout = parameters.make_layout(TensorSpec(f"{i:05}", "U8", ()) for i in range(10_000))
    assert parameters.decode_header(parameters.encode_header(layout)) == layout
    with pytest.raises(RemoteProtocolError, match="header-too-large"):
        parameters.decode_header(bytes(parameters.MAX_HEADER_BYTES + 1))


def test_the_cap_on_bytes_can_be_lowered() -> None:
    header = parameters.encode_header((TensorSpec("a", "F32", (256,)),))
    assert parameters.decode_header(header, max_bytes=1024)
    with pytest.raises(RemoteProtocolError, match="too-many-bytes"):
        parameters.decode_header(header, max_bytes=1023)


@given(layouts)
def test_the_spans_lie_end_to_end(layout: Layout) -> None:
    start = len(parameters.preamble(layout))
    at = start
    for spec, begin, end in parameters.spans(layout, start):
        assert begin == at
        assert end - begin == math.prod(spec.shape) * parameters.DTYPE_BYTES[spec.dtype]
        at = end
    assert at == parameters.encoded_length(layout)
    assert parameters.parse_preamble(parameters.preamble(layout), at) == (layout, start)


@pytest.mark.parametrize(
    ("head", "extra", "reason"),
    [
        (b"", 0, "truncated"),
        (b"\0\0\0", 0, "truncated"),
        (b"\0\0\0\x09abc", 0, "truncated"),
        (b"\xff\xff\xff\xff", 0, "header-too-large"),
        (b"\0\0\0\0", 0, "malformed"),
        (None, -1, "truncated"),
        (None, 1, "trailing-bytes"),
    ],
)
def test_an_encoding_of_another_length_is_refused(
    head: bytes | None, extra: int, reason: str
) -> None:
    layout = (TensorSpec("a", "F32", (2,)),)
    head = parameters.preamble(layout) if head is None else head
    with pytest.raises(RemoteProtocolError) as refusal:
        parameters.parse_preamble(head, parameters.encoded_length(layout) + extra)
    assert refusal.value.reason == reason


def test_a_malformed_spec_cannot_be_made() -> None:
    with pytest.raises(LocalProtocolError, match="bad-tensor-name"):
        TensorSpec("\ud800", "F32", (1,))
    with pytest.raises(LocalProtocolError, match="bad-shape"):
        TensorSpec("a", "F32", (0,))
    one, two = TensorSpec("a", "F32", (1,)), TensorSpec("b", "F32", (1,))
    with pytest.raises(LocalProtocolError, match="unsorted-names"):
        parameters.encode_header((two, one))
    with pytest.raises(LocalProtocolError, match="duplicate-name"):
        parameters.make_layout([one, one])
    with pytest.raises(LocalProtocolError, match="no-tensors"):
        parameters.make_layout([])
