"""Tensors, their one encoding, and their one root."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cbor2
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.params import encoding
from node.params.errors import ProfileError
from node.params.profile import Limits
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, RemoteProtocolError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip

Tensors = dict[str, torch.Tensor]


@st.composite
def parameter_sets(draw: st.DrawFn) -> Tensors:
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors = {}
    for name in names:
        shape = draw(st.lists(st.integers(1, 5), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        tensors[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
        if dtype.is_floating_point:
            tensors[name] = torch.randn(shape, generator=generator).to(dtype)
    return tensors


def same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(parameter_sets())
def test_every_parameter_set_survives_its_encoding(tensors: Tensors) -> None:
    data = encoding.encode_tensors(tensors)
    decoded = encoding.decode_tensors(data, encoding.layout_of(tensors))
    assert same(decoded, tensors)
    assert encoding.encode_tensors(decoded) == data
    assert encoding.weights_root(tensors) == merkle.root_of(data)
    assert same(encoding.decode_tensors(memoryview(bytearray(data))), tensors)


@quick
@given(tensors=parameter_sets(), draw=st.data())
def test_one_root_whatever_the_file_looks_like(
    tmp_path: Path, tensors: Tensors, draw: st.DataObject
) -> None:
    root = encoding.weights_root(tensors)
    names = draw.draw(st.permutations(sorted(tensors)))
    header: dict[str, object] = {"__metadata__": {"note": draw.draw(st.text(max_size=9))}}
    data = b""
    for name in names:  # a file in an order that the public writer would never choose
        raw = bytes(tensors[name].reshape(-1).view(torch.uint8).tolist())
        (spec,) = encoding.layout_of({name: tensors[name]})
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
        data += raw
    text = safetensors_json(header)
    shuffled, plain = tmp_path / "shuffled.safetensors", tmp_path / "plain.safetensors"
    shuffled.write_bytes(struct.pack("<Q", len(text)) + text + data)
    encoding.save_safetensors(tensors, plain, {"another": "note"})
    assert same(safetensors.torch.load_file(plain), tensors)
    assert same(safetensors.torch.load_file(shuffled), tensors)
    for path in (shuffled, plain):
        assert encoding.weights_root(encoding.load_safetensors(path)) == root


def safetensors_json(header: object) -> bytes:
    return json.dumps(header).encode()


def test_the_encoding_is_what_the_design_says_to_the_byte() -> None:
    tensors = {"w": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(3, dtype=torch.int16)}
    header = cbor2.dumps([["a", "I16", []], ["w", "F32", [1, 2]]], canonical=True)
    want = struct.pack(">I", len(header)) + header + struct.pack("<h2f", 3, 1.5, -2.0)
    assert encoding.encode_tensors(tensors) == want


def test_a_subset_has_the_root_of_the_subset() -> None:
    whole = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.ones(1)}
    subset = {"c": whole["c"], "a": whole["a"]}
    assert encoding.weights_root(subset) == encoding.weights_root(
        {"a": torch.ones(3), "c": torch.ones(1)}
    )
    assert encoding.weights_root(subset) != encoding.weights_root(whole)


def test_name_shape_dtype_and_sign_of_zero_all_count() -> None:
    base = {"a": torch.zeros(4)}
    others: list[Tensors] = [
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, 1)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": -torch.zeros(4)},
    ]
    roots = {encoding.weights_root(tensors) for tensors in [base, *others]}
    assert len(roots) == 7


def test_views_strides_and_gradients_leave_no_trace() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    plain = encoding.weights_root({"a": base.t().clone(memory_format=torch.contiguous_format)})
    assert encoding.weights_root({"a": base.t()}) == plain
    assert encoding.weights_root({"a": torch.nn.Parameter(base.t())}) == plain
    wide = torch.zeros(4, 6)
    wide[:, ::2] = base.t()
    assert encoding.weights_root({"a": wide[:, ::2]}) == plain


def test_encoding_lends_memory_and_decoding_owns_it() -> None:
    tensor = torch.zeros(1000)
    _, lent = encoding.encoded_chunks({"a": tensor})
    assert isinstance(lent, memoryview)
    tensor[0] = 1
    assert lent[:4] == struct.pack("<f", 1)
    data = bytearray(encoding.encode_tensors({"a": tensor}))
    decoded = encoding.decode_tensors(memoryview(data))
    data[-4000:] = bytes(4000)
    assert decoded["a"][0] == 1
    decoded["a"][1] = 2  # writable, as a trainer needs it


def test_a_file_is_decoded_as_its_bytes_are(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(300, 7), "b": torch.tensor([True])}
    path = tmp_path / "blob"
    path.write_bytes(encoding.encode_tensors(tensors))
    assert same(encoding.decode_file(path, encoding.layout_of(tensors)), tensors)
    for length in (0, 3, 10, 8000):
        path.write_bytes(encoding.encode_tensors(tensors)[:length])
        with pytest.raises(RemoteProtocolError, match="truncated"):
            encoding.decode_file(path)
    with pytest.raises(ProfileError, match="not-a-regular-file"):
        encoding.decode_file(tmp_path)


def encoded(header: object, payload: bytes) -> bytes:
    text = cbor2.dumps(header, canonical=True)
    return struct.pack(">I", len(text)) + text + payload


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (encoded([["a", "F32", [2]]], bytes(7)), "truncated"),
        (encoded([["a", "F32", [2]]], bytes(9)), "trailing-bytes"),
        (encoded([["b", "F32", [2]], ["a", "F32", [1]]], bytes(12)), "unsorted-names"),
        (encoded([["a", "F32", [2]]], struct.pack("<2f", 1, float("nan"))), "not-finite"),
        (encoded([["a", "F32", [2**36]]], bytes(8)), "truncated"),  # refused unallocated
        (encoded([["a", "F32", [3]]], bytes(12)), "wrong-shape"),
        (encoded([["a", "I32", [2]]], bytes(8)), "wrong-dtype"),
        (encoded([["b", "F32", [2]]], bytes(8)), "missing-tensor"),
        (encoded([["a", "F32", [2]], ["b", "F32", [1]]], bytes(12)), "unexpected-tensor"),
    ],
)
def test_what_is_not_the_expected_encoding_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refusal:
        encoding.decode_tensors(data, encoding.layout_of({"a": torch.zeros(2)}))
    assert refusal.value.reason == reason


def test_numbers_that_are_none_are_refused_in_every_dtype() -> None:
    for dtype, payload, reason in [
        ("BF16", b"\0\0\x80\x7f", "not-finite"),
        ("F16", b"\0\0\0\xfc", "not-finite"),
        ("F64", struct.pack("<2d", float("nan"), 0), "not-finite"),
        ("BOOL", b"\1\2", "bad-bool"),
    ]:
        with pytest.raises(ProfileError) as refusal:
            encoding.decode_tensors(encoded([["a", dtype, [2]]], payload))
        assert refusal.value.reason == reason


def test_the_caps_are_the_callers_to_set() -> None:
    data = encoding.encode_tensors({"a": torch.zeros(4), "b": torch.zeros(4)})
    with pytest.raises(RemoteProtocolError, match="too-many-bytes"):
        encoding.decode_tensors(data, limits=Limits(total_bytes=31))
    with pytest.raises(RemoteProtocolError, match="too-many-tensors"):
        encoding.decode_tensors(data, limits=Limits(tensors=1))


@quick
@given(data=st.binary(max_size=120))
def test_any_bytes_decode_or_are_refused_by_name(data: bytes) -> None:
    try:
        tensors = encoding.decode_tensors(data)
    except RemoteProtocolError:
        return
    assert encoding.encode_tensors(tensors) == data


@quick
@given(tensors=parameter_sets(), draw=st.data())
def test_a_changed_encoding_is_another_set_or_refused_by_name(
    tensors: Tensors, draw: st.DataObject
) -> None:
    data = bytearray(encoding.encode_tensors(tensors))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    try:
        other = encoding.decode_tensors(bytes(data))
    except RemoteProtocolError:
        return
    assert encoding.encode_tensors(other) == bytes(data)
    assert encoding.weights_root(other) != encoding.weights_root(tensors)


def test_what_has_no_encoding_is_our_own_mistake() -> None:
    for tensor in (
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, device="meta"),
        torch.zeros(0),
        torch.zeros([1] * 9),
        torch.eye(2).to_sparse(),
    ):
        with pytest.raises(LocalProtocolError):
            encoding.layout_of({"a": tensor})
    with pytest.raises(LocalProtocolError, match="no-tensors"):
        encoding.encode_tensors({})
    with pytest.raises(LocalProtocolError, match="bad-tensor-name"):
        encoding.encode_tensors({"": torch.zeros(1)})


def test_saving_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shared = torch.arange(6.0)
    encoding.save_safetensors({"a": shared, "b": shared[2:]}, path, {"epoch": "1"})
    before = path.read_bytes()
    with pytest.raises(LocalProtocolError, match="not-finite"):
        encoding.save_safetensors({"a": torch.tensor([float("inf")])}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    loaded = encoding.load_safetensors(path)
    assert loaded["b"].tolist() == [2, 3, 4, 5]
