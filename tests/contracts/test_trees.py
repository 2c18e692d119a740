"""A tree says what each function of a contract does; each of its leaves is the name of a test."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from contracts import load_artifact
from tests.contracts.guards import Functions, blanked

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
SIGNATURES = "the signatures of a quorum"
NO_FUNCTIONS = {"constructor", "no function at all", SIGNATURES}
OTHERWISE = "otherwise"

STANDS_AT = {
    "_requireQuorum": SIGNATURES,
    "_fund": "fund",
    "_pull": "fund",
    "requireFundable": "fund",
    "_reveal": "reveal",
    "_finalize": "finalize",
    "requireBad": "requireBad",
    "convict": "convict",
    "_sum": "deposit",
}
"""Checks that several functions make. Each of their errors has a branch at the heading named here;
any other function that makes the check has a branch for one of them."""

RARE = {"_sum"}
"""Of a token that lies alone: no branch anywhere else."""

NEVER = {
    ("convict", "NoBond"): "with a bond its markets are forgotten: the caller is none of them",
    ("revealMany", "WrongState"): "trades in other states are passed over",
    ("finalizeMany", "WrongState"): "trades in other states are passed over",
}
"""Errors that a function cannot come to, though its source says otherwise."""

UNREACHABLE = {"HashingFailed"}
"""With too little gas for the precompile there is none left to say so either."""


class Tree:
    """A contract, its functions, and the leaves under each."""

    def __init__(self, name: str) -> None:
        lines = (HERE / f"{name}.tree").read_text().splitlines()
        depths = [len(re.match(r"[│├└─ ]*", line)[0]) // 4 for line in lines]  # type: ignore[index]
        self.name, self.contract = name, lines[0]
        self.leaves: dict[str, list[str]] = {}
        self.branches: dict[str, dict[str, list[str]]] = {}
        """By heading and branch, the leaves; those of no branch are under `OTHERWISE`."""
        for line, depth, next_ in zip(lines, depths, [*depths[1:], 0], strict=True):
            text = line[4 * depth :]
            if depth == 1:
                heading, branch = text, OTHERWISE
                self.leaves[heading], self.branches[heading] = [], {}
            if next_ <= depth:
                self.leaves[heading].append(text)
                self.branches[heading].setdefault(branch, []).append(text)
            elif depth > 1:
                branch = text

    @property
    def functions(self) -> list[str]:
        """Everything that has a heading of its own, or shares one."""
        return [name for heading in self.leaves for name in heading.split(", ")]


def named_in(stem: str) -> list[str]:
    """Return what the tests of a file are called, in words."""
    written = (HERE / f"test_{stem}.py").read_text()
    names = re.findall(r"^def test_(\w+)\(", written, re.MULTILINE)
    return [name.replace("_", " ") for name in names]


@cache
def errors_in(stem: str) -> dict[str, frozenset[str]]:
    """Return the words that a test of a file quotes, errors among them, by what it is called."""
    written = ast.parse((HERE / f"test_{stem}.py").read_text())
    return {
        test.name.removeprefix("test_").replace("_", " "): frozenset(
            node.value
            for node in ast.walk(test)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        for test in written.body
        if isinstance(test, ast.FunctionDef)
    }


def without_branch(tree: Tree, heading: str, name: str, deployed: str) -> set[str]:
    """Return what a function raises of which no branch tells."""
    scope = FUNCTIONS.bases(deployed)
    function = "_requireQuorum" if name == SIGNATURES else name
    if name == "constructor":
        scope = frozenset({tree.contract})
    if not FUNCTIONS.has(function, scope):
        return set()  # a variable, or a function of the library
    quoted: dict[str, frozenset[str]] = {}
    for stem in TESTS[tree.name].split():
        quoted |= errors_in(stem)
    told = frozenset[str]().union(
        *(
            quoted[leaf]
            for branch, leaves in tree.branches[heading].items()
            for leaf in leaves
            if branch != OTHERWISE
        )
    )
    apart = {check for check, at in STANDS_AT.items() if at != name}
    errors, met = FUNCTIONS.raised(function, scope, apart)
    missing = {error for error in errors - told - UNREACHABLE if (name, error) not in NEVER}
    return missing | {check for check in met - RARE if not FUNCTIONS.raised(check, scope)[0] & told}


FUNCTIONS = Functions("\n".join(blanked(path.read_text()) for path in SOURCES.rglob("*.sol")))
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
    ours = FUNCTIONS.bases(contract) - {"IBrokerRegistry", "IParameterEscrow"}
    trees = [tree for tree in TREES.values() if tree.contract in ours]
    assert {tree.contract for tree in trees} == ours
    functions = {e["name"] for e in load_artifact(contract).abi if e["type"] == "function"}
    in_trees = Counter(name for tree in trees for name in tree.functions)
    assert functions - set(in_trees) == set(), "in no tree"
    assert set(in_trees) - functions - NO_FUNCTIONS == set(), "no such function"
    assert {name for name in functions if in_trees[name] > 1} == set(), "in two trees"


@pytest.mark.parametrize("name", TREES)
def test_every_error_of_a_function_has_a_branch(name: str) -> None:
    tree = TREES[name]
    for deployed in DEPLOYED:
        if tree.contract in FUNCTIONS.bases(deployed):
            for heading in tree.branches:
                for function in heading.split(", "):
                    missing = without_branch(tree, heading, function, deployed)
                    assert missing == set(), f"{function}: {sorted(missing)}"


def test_every_custom_error_is_asserted_by_name() -> None:
    sources = "".join(source.read_text() for source in SOURCES.rglob("*.sol"))
    declared = re.findall(r"^ +error (\w+)\(", sources, re.MULTILINE)
    tests = sorted(set(HERE.glob("test_*.py")) - {Path(__file__).resolve()})
    written = "".join(test.read_text() for test in tests)
    asserted = re.findall(r'"([A-Z]\w+)"', written)
    assert len(declared) > 50
    assert set(declared) - set(asserted) == UNREACHABLE
