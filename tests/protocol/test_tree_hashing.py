"""Whoever hashes leaves, in C or by hashlib, comes to the same hashes."""

from __future__ import annotations

import array
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256, shake_256
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.protocol import merkle, plain_tree_hashing, tree_hashing
from node.protocol.errors import LocalProtocolError

try:
    from node.protocol import _tree_hashing
except ImportError as error:
    why_not = f"leaves are not hashed in C here: {error}"
    IMPLEMENTATIONS = [
        pytest.param(plain_tree_hashing, id="hashlib"),
        pytest.param(None, id="C", marks=pytest.mark.skip(reason=why_not)),
    ]
else:
    IMPLEMENTATIONS = [
        pytest.param(plain_tree_hashing, id="hashlib"),
        pytest.param(_tree_hashing, id="C"),
    ]
LAST_INDEX = 2**64 - 1
NOISE = shake_256(b"leaves").digest(70 * 1024)
lengths = st.integers(0, 6 * 1024) | st.builds(
    lambda leaves, more: max(0, leaves * 1024 + more), st.integers(0, 66), st.integers(-2, 2)
)
reuse_implementation = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=IMPLEMENTATIONS)
def hashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return an implementation, which is the one that `merkle` uses meanwhile."""
    module = cast("ModuleType", request.param)
    monkeypatch.setattr(merkle, "tree_hashing", module)
    return module


@pytest.fixture(params=IMPLEMENTATIONS[1:])
def in_c(request: pytest.FixtureRequest) -> ModuleType:
    return cast("ModuleType", request.param)


def by_the_rules(data: bytes, first: int) -> bytes:
    leaves = [data[at : at + 1024] for at in range(0, len(data), 1024)]
    return b"".join(
        sha256(b"\0" + (first + i).to_bytes(8) + len(leaf).to_bytes(4) + leaf).digest()
        for i, leaf in enumerate(leaves)
    )


@reuse_implementation
@given(length=lengths, offset=st.integers(0, 99), first=st.integers(0, LAST_INDEX - 99))
def test_leaves_anywhere_in_memory_are_hashed_as_the_rules_say(
    hashing: ModuleType, length: int, offset: int, first: int
) -> None:
    data = memoryview(NOISE)[offset : offset + length]
    other = memoryview(bytearray(NOISE[::-1]))[99 - offset : 99 - offset + length]
    want = by_the_rules(bytes(data), first), by_the_rules(bytes(other), first)
    assert hashing.leaf_hashes(data, first) == merkle.leaf_hashes(data, first) == want[0]
    assert hashing.leaf_hashes_of_two(data, other, first) == want
    assert merkle.leaf_hashes_of_two(data, other, first) == want


@reuse_implementation
@given(data=st.binary(max_size=5_000), first=st.integers(0, LAST_INDEX - 9))
def test_any_bytes_are_hashed_as_the_rules_say(
    hashing: ModuleType, data: bytes, first: int
) -> None:
    assert hashing.leaf_hashes(data, first) == by_the_rules(data, first)
    assert hashing.leaf_hashes_of_two(data, data, first) == (by_the_rules(data, first),) * 2


def test_a_leaf_of_every_length_is_padded_as_the_rules_say(hashing: ModuleType) -> None:
    for length in range(1025):
        data = NOISE[length : 2 * length]
        assert hashing.leaf_hashes(data, 7) == by_the_rules(data, 7)
        assert hashing.leaf_hashes_of_two(data, data[::-1], 7) == (
            by_the_rules(data, 7),
            by_the_rules(data[::-1], 7),
        )


@reuse_implementation
@given(nodes=st.integers(0, 40) | st.just(1050), offset=st.integers(0, 99))
def test_nodes_are_hashed_as_the_rules_say(hashing: ModuleType, nodes: int, offset: int) -> None:
    pairs = memoryview(NOISE)[offset : offset + 64 * nodes]
    assert hashing.parents(pairs) == b"".join(
        sha256(b"\1" + pairs[at : at + 64]).digest() for at in range(0, len(pairs), 64)
    )


def test_indices_go_as_far_as_64_bits_and_no_farther(hashing: ModuleType) -> None:
    for data in (b"x", NOISE[:1024], NOISE[:2048], NOISE[:2049]):
        last = LAST_INDEX - (len(data) - 1) // 1024
        want = by_the_rules(data, last)
        assert merkle.leaf_hashes(data, last) == want
        assert merkle.leaf_hashes_of_two(data, data, last) == (want, want)
        for index in (last + 1, 2**64, 2**70, -1):
            with pytest.raises(LocalProtocolError):
                merkle.leaf_hashes(data, index)
            with pytest.raises(LocalProtocolError):
                merkle.leaf_hashes_of_two(data, data, index)
    assert merkle.leaf_hash(LAST_INDEX, b"x") == by_the_rules(b"x", LAST_INDEX)
    for index in (-1, 2**64):
        with pytest.raises(LocalProtocolError):
            merkle.leaf_hash(index, b"x")


def test_what_is_not_bytes_is_hashed_as_the_bytes_that_it_is(hashing: ModuleType) -> None:
    numbers = array.array("I", range(700))
    table = memoryview(NOISE[:2100]).cast("B", (3, 700))
    assert merkle.leaf_hashes(memoryview(numbers)) == by_the_rules(numbers.tobytes(), 0)
    assert merkle.leaf_hashes(table) == by_the_rules(NOISE[:2100], 0)
    assert merkle.leaf_hashes_of_two(memoryview(numbers), NOISE[:2800]) == (
        by_the_rules(numbers.tobytes(), 0),
        by_the_rules(NOISE[:2800], 0),
    )
    assert merkle.leaf_hash(5, memoryview(numbers)[:256]) == by_the_rules(
        numbers[:256].tobytes(), 5
    )
    with pytest.raises(LocalProtocolError):
        merkle.leaf_hash(5, memoryview(numbers)[:257])


def test_bytes_that_do_not_lie_together_are_refused(hashing: ModuleType) -> None:
    scattered = memoryview(NOISE)[::2]
    with pytest.raises(BufferError):
        merkle.leaf_hashes(scattered)
    with pytest.raises(BufferError):
        merkle.leaf_hashes_of_two(scattered, scattered)
    with pytest.raises(BufferError):
        merkle.leaf_hashes_of_two(NOISE[: len(scattered)], scattered)
    with pytest.raises(TypeError):
        merkle.leaf_hashes(memoryview(array.array("I", range(700)))[::2])


def test_a_tree_is_the_same_whoever_hashes(hashing: ModuleType) -> None:
    data = NOISE[:67_890]
    hashes = merkle.leaf_hashes(data)
    root = merkle.root_of(data)
    assert root.hex() == "a176cc75c21c1fce0c9adf1ea6d4b9404f61691c9b81f81edebe7a6211cf5472"
    leaves = merkle.leaf_count(len(data))
    for index in (0, 1, leaves - 1):
        path = merkle.proof(hashes, index)
        leaf = hashes[32 * index : 32 * index + 32]
        assert merkle.verify_proof(root, leaf, index, path, leaves, len(data))
        assert not merkle.verify_proof(root, leaf, index ^ 1, path, leaves, len(data))
    assert merkle.verify_leaves(hashes, 0, data, len(data)) is None


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("leaf_hashes", (memoryview(NOISE)[::2], 0), BufferError),
        ("leaf_hashes", (memoryview(NOISE)[::-1], 0), BufferError),
        ("leaf_hashes", ("text", 0), TypeError),
        ("leaf_hashes", (None, 0), TypeError),
        ("leaf_hashes", (b"x",), TypeError),
        ("leaf_hashes", (b"x", 0, 0), TypeError),
        ("leaf_hashes", (b"x", 0.0), TypeError),
        ("leaf_hashes", (b"x", -1), OverflowError),
        ("leaf_hashes", (b"x", 2**64), OverflowError),
        ("leaf_hashes", (bytes(1025), LAST_INDEX), OverflowError),
        ("leaf_hashes_of_two", (b"x", b"xy", 0), ValueError),
        ("leaf_hashes_of_two", (b"x", "y", 0), TypeError),
        ("leaf_hashes_of_two", (b"x", b"y"), TypeError),
        ("leaf_hashes_of_two", (b"x", b"y", None), TypeError),
        ("leaf_hashes_of_two", (b"x", memoryview(b"xy")[::2], 2**64), OverflowError),
        ("leaf_hashes_of_two", (bytes(1025), bytes(1025), LAST_INDEX), OverflowError),
        ("leaf_hashes_of_two", (NOISE[:100], memoryview(NOISE)[:200:2], 0), BufferError),
        ("parents", (bytes(63),), ValueError),
        ("parents", (bytes(96),), ValueError),
        ("parents", (memoryview(NOISE)[:128:2],), BufferError),
        ("parents", ("text",), TypeError),
        ("parents", (), TypeError),
    ],
)
def test_the_module_in_c_checks_its_arguments_itself(
    in_c: ModuleType, name: str, arguments: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        getattr(in_c, name)(*arguments)


def test_the_module_in_c_keeps_hold_of_no_buffer(in_c: ModuleType) -> None:
    one, other = bytearray(NOISE), bytearray(NOISE)
    in_c.leaf_hashes(one, 0)
    in_c.leaf_hashes_of_two(one, other, 0)
    in_c.parents(memoryview(one)[:64])
    for arguments in ((one, b"x", 0), (one, other, -1), (one, other, None)):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            in_c.leaf_hashes_of_two(*arguments)
    with pytest.raises(OverflowError):
        in_c.leaf_hashes(one, -1)
    with pytest.raises(ValueError, match="pairs"):
        in_c.parents(one[:-1])
    one.append(1)  # which is an error while somebody else looks at it
    other.append(1)


@pytest.fixture
def no_thread_is_interrupted() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(100)
    yield
    sys.setswitchinterval(usual)


def test_other_threads_run_while_leaves_are_hashed_in_c(
    in_c: ModuleType, no_thread_is_interrupted: None
) -> None:
    data = bytes(64 << 20)
    began, steps = threading.Event(), []

    def work() -> None:
        began.set()
        in_c.leaf_hashes(data, 0)
        steps.append("hashed")

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    steps.append("meanwhile")
    thread.join()
    assert steps == ["meanwhile", "hashed"]


WITHOUT = """
import sys
sys.modules["node.protocol._tree_hashing"] = None
from node.protocol import merkle, tree_hashing
print(tree_hashing.IN_C, merkle.root_of(bytes(5000)).hex())
"""


def test_a_machine_without_the_module_hashes_by_hashlib() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["False", merkle.root_of(bytes(5000)).hex()]


def test_the_module_in_c_is_used_where_it_is(in_c: ModuleType) -> None:
    assert tree_hashing.IN_C
    assert tree_hashing.leaf_hashes is in_c.leaf_hashes
    assert tree_hashing.leaf_hashes_of_two is in_c.leaf_hashes_of_two
    assert tree_hashing.parents is in_c.parents
