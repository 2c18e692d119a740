"""A tree says what each function of a contract does; each of its leaves is the name of a test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from contracts import load_artifact

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "contracts" / "src"

# Where the tests of a tree are. All that these files test stands in a tree.
TESTS = {
    "batches": "batches batch_consents batch_disputes batch_log bounds escrow_fund",
    "broker_quorum": "quorum escrow_fund",
    "broker_registry": "registry bounds forced_ether",
    "clearing_house": "clearing_house clearing_claims clearing_expiry bounds forced_ether",
    "credits": "escrow_settlement tokens bounds",
    "delivery_court": "dispute",
    "deposits": "deposits tokens bounds",
    "escrow": "escrow_fund escrow_settlement many tokens dispute escrow_digest forced_ether",
}
MORE_THAN_CALLS = {"escrow_digest"}
"""What is tested there besides has no function of a contract to stand under."""

DEPLOYED = ("BrokerRegistry", "ClearingHouse", "DeliveryCourt", "ParameterEscrow")
NO_FUNCTIONS = {"constructor", "no function at all", "the signatures of a quorum"}

UNREACHABLE = {"HashingFailed"}
"""With too little gas for the precompile there is none left to say so either."""


class Tree:
    """A contract, its functions, and the leaves under each."""

    def __init__(self, name: str) -> None:
        lines = (HERE / f"{name}.tree").read_text().splitlines()
        depths = [len(re.match(r"[│├└─ ]*", line)[0]) // 4 for line in lines]  # type: ignore[index]
        self.contract = lines[0]
        self.leaves: dict[str, list[str]] = {}
        for line, depth, next_ in zip(lines, depths, [*depths[1:], 0], strict=True):
            text = line[4 * depth :]
            if depth == 1:
                heading = text
                self.leaves[heading] = []
            if next_ <= depth:
                self.leaves[heading].append(text)

    @property
    def functions(self) -> list[str]:
        """Everything that has a heading of its own, or shares one."""
        return [name for heading in self.leaves for name in heading.split(", ")]


def named_in(stem: str) -> list[str]:
    """Return what the tests of a file are called, in words."""
    written = (HERE / f"test_{stem}.py").read_text()
    names = re.findall(r"^def test_(\w+)\(", written, re.MULTILINE)
    return [name.replace("_", " ") for name in names]


def bases(contract: str) -> set[str]:
    """Return those of our contracts of which a contract is made, itself among them."""
    source = SOURCES / f"{contract}.sol"
    if not source.is_file():
        return set()
    named = re.search(rf"\bcontract {contract} is ([\w, ]+\w)", source.read_text())
    return {contract}.union(*(bases(name) for name in (named[1].split(", ") if named else ())))


TREES = {name: Tree(name) for name in TESTS}


def test_every_tree_is_read() -> None:
    assert {path.stem for path in HERE.glob("*.tree")} == set(TREES)


@pytest.mark.parametrize("name", TREES)
def test_every_leaf_is_a_test(name: str) -> None:
    tests = Counter(test for stem in TESTS[name].split() for test in named_in(stem))
    for heading, leaves in TREES[name].leaves.items():
        assert len(leaves) == len(set(leaves)), heading
        for leaf in leaves:
            assert tests[leaf] == 1, f"{heading}: {leaf}"


@pytest.mark.parametrize("stem", sorted({s for stems in TESTS.values() for s in stems.split()}))
def test_every_test_is_a_leaf(stem: str) -> None:
    trees = [TREES[name] for name, stems in TESTS.items() if stem in stems.split()]
    leaves = {leaf for tree in trees for under in tree.leaves.values() for leaf in under}
    if stem not in MORE_THAN_CALLS:
        assert set(named_in(stem)) <= leaves


@pytest.mark.parametrize("contract", DEPLOYED)
def test_every_function_that_can_be_called_is_in_a_tree(contract: str) -> None:
    trees = [tree for tree in TREES.values() if tree.contract in bases(contract)]
    assert {tree.contract for tree in trees} == bases(contract) - {"IBrokerRegistry"} - {
        "IParameterEscrow"
    }
    functions = {e["name"] for e in load_artifact(contract).abi if e["type"] == "function"}
    in_trees = Counter(name for tree in trees for name in tree.functions)
    assert functions - set(in_trees) == set(), "in no tree"
    assert set(in_trees) - functions - NO_FUNCTIONS == set(), "no such function"
    assert {name for name in functions if in_trees[name] > 1} == set(), "in two trees"


def test_every_custom_error_is_asserted_by_name() -> None:
    sources = "".join(source.read_text() for source in SOURCES.rglob("*.sol"))
    declared = re.findall(r"^ +error (\w+)\(", sources, re.MULTILINE)
    tests = sorted(set(HERE.glob("test_*.py")) - {Path(__file__).resolve()})
    written = "".join(test.read_text() for test in tests)
    asserted = re.findall(r'"([A-Z]\w+)"', written)
    assert len(declared) > 50
    assert set(declared) - set(asserted) == UNREACHABLE
