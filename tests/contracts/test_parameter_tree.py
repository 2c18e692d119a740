"""The tree on the chain is the tree of the nodes: any size, any leaf, the short last one too."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.stage import Contract, Stage
from node.protocol import merkle
from tests.contracts.conftest import Deploy, Refused
from tests.contracts.deliveries import noise

many = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
sizes = st.integers(1, 40 * merkle.LEAF_BYTES)


@pytest.fixture
def libraries(deploy: Deploy) -> Contract:
    return deploy("Libraries")


@many
@given(size=sizes, data=st.data())
def test_every_leaf_leads_to_the_root(
    stage: Stage, libraries: Contract, size: int, data: st.DataObject
) -> None:
    hashes = merkle.leaf_hashes(noise(size))
    leaves = merkle.leaf_count(size)
    index = data.draw(st.integers(0, leaves - 1) | st.just(leaves - 1))
    leaf, path = hashes[32 * index : 32 * index + 32], merkle.proof(hashes, index)
    root = stage.view("rootOf", leaf, index, path, leaves, size, of=libraries)
    assert root == merkle.root_of_hashes(hashes, size)


@many
@given(size=st.integers(1, 2**64 - 1), data=st.data())
@example(size=1, data=None)
@example(size=2**64 - 1, data=None)
def test_lengths_and_depths_are_those_of_the_nodes(
    stage: Stage, libraries: Contract, size: int, data: st.DataObject | None
) -> None:
    leaves = merkle.leaf_count(size)
    index = leaves - 1 if data is None else data.draw(st.integers(0, leaves - 1))
    length = stage.view("lengthOf", index, leaves, size, of=libraries)
    assert length == merkle.leaf_length(index, size)
    assert stage.view("depthOf", leaves, of=libraries) == merkle.depth(leaves)


@many
@given(size=st.integers(merkle.LEAF_BYTES + 1, 40 * merkle.LEAF_BYTES), data=st.data())
def test_a_leaf_at_another_place_leads_to_another_root(
    stage: Stage, libraries: Contract, size: int, data: st.DataObject
) -> None:
    hashes = merkle.leaf_hashes(noise(size))
    leaves = merkle.leaf_count(size)
    index = data.draw(st.integers(0, leaves - 1))
    places = 1 << merkle.depth(leaves)
    other = (index + data.draw(st.integers(1, places - 1))) % places
    leaf, path = hashes[32 * index : 32 * index + 32], merkle.proof(hashes, index)
    root = stage.view("rootOf", leaf, other, path, leaves, size, of=libraries)
    assert root != merkle.root_of_hashes(hashes, size)


def test_a_place_past_the_leaves_is_no_leaf(
    stage: Stage, libraries: Contract, refused: Refused
) -> None:
    for index in (3, 4, 2**256 - 1):
        with refused("NoSuchLeaf", index, 3):
            stage.view("lengthOf", index, 3, 2049, of=libraries)


@pytest.mark.parametrize(("leaves", "size"), [(0, 0), (1, 0), (0, 1), (1, 1025), (2, 1024)])
def test_a_leaf_count_is_that_of_its_bytes(
    stage: Stage, libraries: Contract, refused: Refused, leaves: int, size: int
) -> None:
    with refused("WrongLeafCount", leaves, size):
        stage.view("lengthOf", 0, leaves, size, of=libraries)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_path_is_as_long_as_the_tree_is_deep(
    stage: Stage, libraries: Contract, refused: Refused, length: int
) -> None:
    with refused("WrongPathLength", length, 2):
        stage.view("rootOf", bytes(32), 0, [bytes(32)] * length, 3, 2049, of=libraries)
