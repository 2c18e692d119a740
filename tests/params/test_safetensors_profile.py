"""Hostile safetensors files: each class is refused by its own name, and nothing is mapped."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.params import profile
from node.params.encoding import layout_of, load_safetensors, save_safetensors
from node.params.errors import ProfileError
from node.params.profile import Limits
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.parameters import Layout, TensorSpec

reuse_folder = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

GOOD: dict[str, Any] = {
    "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
}
EXPECTED: Layout = (TensorSpec("b", "F32", (2,)), TensorSpec("w", "F32", (2, 3)))
DATA = struct.pack("<8f", *range(8))


def file_of(header: object, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_tensor(**changes: object) -> dict[str, Any]:
    """The good header with another entry for `b`, the last tensor."""
    return {**GOOD, "b": {**GOOD["b"], **changes}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer.safetensors"


def refusal(path: Path, expected: Layout | None = EXPECTED) -> str:
    """The reason for which the file is refused: by its header, or by its numbers."""
    with pytest.raises(ProfileError) as caught:
        load_safetensors(path, expected)
    return caught.value.reason


def test_a_plain_file_is_taken_whatever_its_order_and_padding(path: Path) -> None:
    path.write_bytes(file_of({"__metadata__": {"format": "pt"}, **GOOD}))
    header = profile.check_header(path, EXPECTED)
    assert header.layout == EXPECTED
    assert header.metadata == {"format": "pt"}
    turned = json.dumps({"b": GOOD["b"], "w": GOOD["w"]}).encode() + b"     "
    path.write_bytes(file_of(turned))
    tensors = load_safetensors(path, EXPECTED)
    assert tensors["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["b"].tolist() == [6, 7]


def test_what_the_public_writer_writes_is_taken_and_read_alike(path: Path) -> None:
    torch.manual_seed(1)
    tensors = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 1, 2).double(),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
    }
    safetensors.torch.save_file(tensors, path, {"epoch": "3"})
    ours, theirs = load_safetensors(path, layout_of(tensors)), safetensors.torch.load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


NOT_JSON_ENOUGH = [
    b"",
    b"[]",
    b"{",
    b"{}}",
    b'{"w":}',
    b" {}",
    b"\xef\xbb\xbf{}",
    b'{"\xff":1}',
    b"{}\0",
    b'{"w":NaN}',
    b'{"w":-Infinity}',
    b'{"w":1e999}',
    b'{"w":2.0}',
    b'{"w":' + b"9" * 5000 + b"}",
    b'{"w":' + b"[" * 90_000,
    b'{"w":' + b'{"a":' * 15_000,
]


@pytest.mark.parametrize("header", NOT_JSON_ENOUGH, ids=range(len(NOT_JSON_ENOUGH)))
def test_a_header_that_is_no_plain_json_object(path: Path, header: bytes) -> None:
    path.write_bytes(file_of(header))
    assert refusal(path) == "malformed-header"


@pytest.mark.parametrize(
    "header",
    [
        b'{"b":1,"b":1}',
        b'{"b":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"a":"1","a":"2"}}',
        b'{"__metadata__":{},"__metadata__":{}}',
        b'{"b":1,"\\u0062":1}',
    ],
)
def test_a_key_twice(path: Path, header: bytes) -> None:
    path.write_bytes(file_of(header))
    assert refusal(path) == "duplicate-key"


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD["b"], "pickle": "cos"},
        {"dtype": "F32", "shape": [2]},
        [],
        None,
        "F32",
        {**GOOD["b"], "data_offsets": [24]},
        {**GOOD["b"], "data_offsets": [24, 32, 32]},
        {**GOOD["b"], "data_offsets": ["24", "32"]},
        {**GOOD["b"], "data_offsets": [24, True]},
        {**GOOD["b"], "data_offsets": {"0": 24}},
    ],
)
def test_an_entry_with_unknown_missing_or_odd_fields(path: Path, entry: object) -> None:
    path.write_bytes(file_of({**GOOD, "b": entry}))
    assert refusal(path) == "malformed-tensor"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        None,
        "text",
        {"a": 1},
        {"a": None},
        {"a": {"b": "c"}},
        {str(i): "" for i in range(257)},
        {"a": "b" * 64 * 1024},
        {"a" * 64 * 1024: "b"},
    ],
)
def test_metadata_that_is_not_a_little_text(path: Path, metadata: object) -> None:
    path.write_bytes(file_of({"__metadata__": metadata, **GOOD}))
    assert refusal(path) == "bad-metadata"


def test_megabytes_of_metadata_are_refused_unread(path: Path) -> None:
    path.write_bytes(file_of({"__metadata__": {"a": "b" * (5 << 20)}, **GOOD}))
    assert refusal(path) == "header-too-large"
    assert refusal(path, None) == "header-too-large"


def test_blanks_count_as_header_too(path: Path) -> None:
    text = json.dumps(GOOD).encode()
    path.write_bytes(file_of(text.ljust(100_400)))
    assert refusal(path, ()) == "header-too-large"
    profile.check_header(path, EXPECTED)
    path.write_bytes(file_of(text.ljust(100_401)))
    assert refusal(path, EXPECTED) == "header-too-large"
    assert refusal(path, None) == "header-too-large"


def test_a_header_length_of_exabytes_is_refused_unallocated(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert refusal(path) == "header-too-large"
    assert refusal(path, None) == "header-too-large"


@pytest.mark.parametrize("count", [10_001, 100_000])
def test_a_flood_of_tiny_tensors(path: Path, count: int) -> None:
    entry = {"dtype": "U8", "shape": [1]}
    flood = {f"{i:x}": {**entry, "data_offsets": [i, i + 1]} for i in range(count)}
    path.write_bytes(file_of(flood, bytes(count)))
    assert refusal(path) == "header-too-large"
    assert refusal(path, None) in {"header-too-large", "too-many-tensors"}
    with pytest.raises(ProfileError, match="too-many-tensors"):
        profile.check_header(path, limits=Limits(header_bytes=1 << 24))


def test_zero_size_tensors_even_those_that_share_an_offset(path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}
    path.write_bytes(file_of({**GOOD, "e": empty, "f": empty}))
    assert refusal(path) == "bad-shape"
    assert refusal(path, None) == "bad-shape"


@pytest.mark.parametrize("shape", [2, "2", [2.0, 1], [[2]], [-2], [True], [None], [1] * 9, [2**62]])
def test_a_shape_that_is_none(path: Path, shape: object) -> None:
    path.write_bytes(file_of(with_tensor(shape=shape)))
    # a float is refused where numbers are read, before anybody knows that it is a size
    assert refusal(path) == ("malformed-header" if shape == [2.0, 1] else "bad-shape")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "f32", "", 4, None, ["F32"], "U64", "C64"])
def test_a_dtype_that_we_do_not_know(path: Path, dtype: object) -> None:
    path.write_bytes(file_of(with_tensor(dtype=dtype)))
    assert refusal(path) == "bad-dtype"


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\u202eb", "\ud800", "x" * 257, "é" * 129])
def test_a_name_that_cannot_be_one(path: Path, name: str) -> None:
    path.write_bytes(file_of({"w": GOOD["w"], name: GOOD["b"]}))
    assert refusal(path) == "bad-tensor-name"
    assert refusal(path, None) == "bad-tensor-name"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "B", "b "])
def test_a_name_that_was_not_expected(path: Path, name: str) -> None:
    path.write_bytes(file_of({"w": GOOD["w"], name: GOOD["b"]}))
    assert refusal(path) == "missing-tensor"
    more = {"dtype": "U8", "shape": [1], "data_offsets": [32, 33]}
    path.write_bytes(file_of({**GOOD, name: more}, DATA + b"\0"))
    assert refusal(path) == "unexpected-tensor"


def test_another_dtype_or_shape_than_expected(path: Path) -> None:
    path.write_bytes(file_of(with_tensor(dtype="I32")))
    assert refusal(path) == "wrong-dtype"
    path.write_bytes(file_of(with_tensor(shape=[2, 1])))
    assert refusal(path) == "wrong-shape"
    path.write_bytes(file_of({"w": {**GOOD["w"], "shape": [3, 2]}, "b": GOOD["b"]}))
    assert refusal(path) == "wrong-shape"


@pytest.mark.parametrize(
    "offsets", [[0, 8], [16, 24], [25, 33], [32, 24], [-8, 0], [24, 31], [24, 10**4000], [2**63, 8]]
)
def test_bytes_that_are_shared_skipped_or_outside(path: Path, offsets: list[int]) -> None:
    path.write_bytes(file_of(with_tensor(data_offsets=offsets)))
    assert refusal(path) == "bad-offsets"
    with pytest.raises(ProfileError, match="bad-offsets") as caught:
        profile.check_header(path)
    assert len(caught.value.detail) < 200  # a log line, however long the numbers


def test_a_file_that_is_too_long_or_too_short(path: Path) -> None:
    whole = file_of(GOOD)
    path.write_bytes(whole + b"#!/bin/sh")
    assert refusal(path) == "trailing-bytes"
    for length in [0, 7, 8, 20, len(whole) - 33, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refusal(path) == "truncated"
        assert refusal(path, None) == "truncated"


def test_no_tensors_at_all(path: Path) -> None:
    for header in [b"{}", b'{"__metadata__":{}}']:
        path.write_bytes(file_of(header, b""))
        assert refusal(path, None) == "no-tensors"
        assert refusal(path) in {"no-tensors", "missing-tensor"}


def test_more_bytes_than_were_agreed(path: Path) -> None:
    path.write_bytes(file_of(GOOD))
    assert profile.check_header(path, limits=Limits(total_bytes=32)).layout == EXPECTED
    with pytest.raises(ProfileError, match="too-many-bytes"):
        profile.check_header(path, limits=Limits(total_bytes=31))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_number_that_is_not_finite(path: Path, dtype: torch.dtype, poison: float) -> None:
    tensors = {"w": torch.zeros(5, 7, dtype=dtype)}
    tensors["w"][3, 4] = poison
    safetensors.torch.save_file(tensors, path)
    profile.check_header(path, layout_of(tensors))
    assert refusal(path, layout_of(tensors)) == "not-finite"
    with pytest.raises(LocalProtocolError, match="not-finite"):
        save_safetensors(tensors, path)


def test_a_boolean_that_is_neither(path: Path) -> None:
    header = {"m": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}}
    path.write_bytes(file_of(header, b"\0\1\2"))
    assert refusal(path, None) == "bad-bool"
    path.write_bytes(file_of(header, b"\0\1\1"))
    assert load_safetensors(path)["m"].tolist() == [False, True, True]


def test_a_folder_a_pipe_a_socket_or_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert refusal(pipe) == "not-a-regular-file"
    assert refusal(tmp_path) == "not-a-regular-file"
    assert refusal(Path(os.devnull)) == "not-a-regular-file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path / "socket") == "unreadable"
    assert refusal(tmp_path / "nothing") == "unreadable"
    assert refusal(tmp_path / "null\0byte") == "unreadable"
    (tmp_path / "link").symlink_to(pipe)
    assert refusal(tmp_path / "link") == "not-a-regular-file"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal(tmp_path / "loop") == "unreadable"


def test_a_link_to_a_regular_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(file_of(GOOD))
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    assert profile.check_header(tmp_path / "link", EXPECTED).layout == EXPECTED


def only_profile_errors(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for expected in (EXPECTED, None):
        try:
            tensors = load_safetensors(path, expected)
        except ProfileError:
            continue
        # what we take, the public parser takes too, and reads the same from it
        theirs = safetensors.torch.load_file(path)
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)


@reuse_folder
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    only_profile_errors(tmp_path / "fuzz", content)
    only_profile_errors(tmp_path / "fuzz", file_of(content))
    only_profile_errors(tmp_path / "fuzz", file_of(b"{" + content + b"}"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "w", "b"]), inner
        )
    ),
    max_leaves=12,
)


@reuse_folder
@given(header=json_values)
def test_arbitrary_json_is_refused_by_name(tmp_path: Path, header: object) -> None:
    only_profile_errors(tmp_path / "fuzz", file_of(header))


@reuse_folder
@given(edits=st.lists(st.tuples(st.integers(0), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_mutated_file_is_refused_by_name_or_read_as_others_read_it(
    tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    content = file_of({"__metadata__": {"format": "pt"}, **GOOD})
    for position, replacement in edits:
        at = position % len(content)
        content = content[:at] + replacement + content[at + max(1, len(replacement)) :]
    only_profile_errors(tmp_path / "fuzz", content)


def test_the_refusals_are_errors_of_the_peer() -> None:
    assert issubclass(ProfileError, RemoteProtocolError)


def test_a_header_of_brackets_ends_in_an_error_and_not_in_a_dead_process(tmp_path: Path) -> None:
    # py-evm raises the recursion limit as it is imported; the C decoder then has no bound
    header = b'{"a":' + b"[" * 90_000
    path = tmp_path / "deep.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    code = (
        "import sys, pathlib; sys.setrecursionlimit(1_000_000)\n"
        "from node.params.profile import ProfileError, check_header\n"
        f"try: check_header(pathlib.Path({str(path)!r}))\n"
        "except ProfileError as error: print(error.reason)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "malformed-header"
