"""What the mutation check breaks: every guard of the contracts, each behind a switch of its own."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.contracts.conftest import script
from tests.contracts.guards import Functions, Weaver, blanked, errors_by_check

SOURCE = """
contract Till {
    function take(uint256 a, uint256 b) external pure {
        if (a < b || (a == 0 && b != 1)) {
            revert TooLittle(a); // if (a) revert Never();
        }
        _requireOpen(a);
    }

    function _requireOpen(uint256 a) private pure {
        require(a != 7);
        if (a > 9) revert Other.Closed(a);
    }
}
"""


@pytest.fixture(scope="module")
def mutation() -> ModuleType:
    """Return `scripts/mutate_contracts.py`, with the library whose sources the contracts import."""
    module = script("mutate_contracts")
    try:
        module.compiler.install()
    except module.compiler.MissingToolError as error:
        pytest.skip(str(error))
    return module


def test_every_part_of_a_guard_is_broken_once() -> None:
    weaver = Weaver(errors_by_check(blanked(SOURCE)))
    woven = weaver.weave("Till.sol", SOURCE)
    broken = [(m.line, m.kind, m.text, sorted(m.errors)) for m in weaver.mutants]
    assert sorted(broken) == [
        (4, "bound", "a <= b", ["TooLittle"]),
        (4, "clause", "(a == 0 && b != 1)", ["TooLittle"]),
        (4, "clause", "a < b", ["TooLittle"]),
        (4, "clause", "a == 0", ["TooLittle"]),
        (4, "clause", "b != 1", ["TooLittle"]),
        (5, "removed", "revert TooLittle(a)", ["TooLittle"]),
        (7, "not called", "_requireOpen(a)", ["", "Closed"]),
        (11, "removed", "require(a != 7)", [""]),
        (12, "bound", "a >= 9", ["Closed"]),
        (12, "removed", "revert Other.Closed(a)", ["Closed"]),
    ]
    switches = re.findall(r"block\.prevrandao != (\d+)", woven)
    assert sorted(map(int, switches)) == list(range(1, len(broken) + 1))


HOUSES = """
abstract contract Cellar {
    constructor(uint256 depth) { if (depth == 0) revert TooShallow(); }
    function store(uint256 a) external { _check(a); _roof(); }
    function _check(uint256 a) private pure { if (a > 9) revert TooMuch(a); }
    function _roof() internal virtual;
}
contract House is Cellar {
    function _roof() internal override { if (open) revert Rain(); Law.check(1); }
}
contract Shed {
    function _check(uint256 a) private pure { revert NeverInAHouse(a); }
}
library Law {
    function check(uint256 a) internal {
        try IHouse(a).store{gas: 9}(a) {} catch { revert Broken(); }
    }
}
"""


def test_what_a_function_raises_is_looked_up_in_the_contract_that_is_called() -> None:
    functions = Functions(HOUSES)
    house = functions.bases("House")
    assert house == {"House", "Cellar"}
    errors, met = functions.raised("store", house)
    assert (sorted(errors), sorted(met)) == (["Broken", "Rain", "TooMuch"], [])
    errors, met = functions.raised("store", house, ["check"])
    assert (sorted(errors), sorted(met)) == (["Rain", "TooMuch"], ["check"])
    assert functions.raised("constructor", house)[0] == {"TooShallow"}
    assert functions.has("store", house)
    assert not functions.has("store", frozenset({"Shed"}))
    with pytest.raises(KeyError):
        functions.raised("burn", house)


@pytest.mark.parametrize("on", range(11))
def test_with_a_switch_on_one_thing_is_broken(on: int) -> None:
    """What Solidity would make of the woven condition, made of Python's own words."""
    weaver = Weaver(errors_by_check(blanked(SOURCE)))
    woven = weaver.weave("Till.sol", SOURCE)
    begin = woven.index("if (") + 3
    condition = woven[begin : woven.index("{", begin)]
    condition = re.sub(
        r"\((block\.prevrandao != \d+) \? (.*?) : (.*?)\)", r"(\2 if \1 else \3)", condition
    )
    for word, python in (("||", " or "), ("&&", " and "), ("!(", "not (")):
        condition = condition.replace(word, python)
    condition = condition.replace("block.prevrandao", str(on))
    kind = {m.switch: (m.kind, m.text) for m in weaver.mutants if m.line == 4}.get(on)
    for a in range(3):
        for b in range(3):
            expected = {
                ("bound", "a <= b"): a <= b or (a == 0 and b != 1),
                ("clause", "a < b"): a == 0 and b != 1,
                ("clause", "(a == 0 && b != 1)"): a < b,
                ("clause", "a == 0"): a < b or b != 1,
                ("clause", "b != 1"): a < b or a == 0,
                None: a < b or (a == 0 and b != 1),
            }[kind]
            assert eval(condition, {"a": a, "b": b}) == expected, (condition, a, b)


def test_every_revert_of_the_contracts_is_broken(mutation: ModuleType) -> None:
    mutants, woven = mutation.woven()
    removed = [(m.source, m.line) for m in mutants if m.kind == "removed"]
    assert len(removed) == len(set(removed))
    for name, source in mutation.sources().items():
        if name.startswith("contracts/src/"):
            lines = blanked(source).splitlines()
            reverts = [
                i + 1 for i, line in enumerate(lines) if re.search(r"\brevert\b|\brequire\(", line)
            ]
            assert sorted(line for of, line in removed if of == name) == reverts, name
    assert len(mutants) > 200
    assert all(
        f"block.prevrandao != {m.switch})" in woven[m.source] or m.kind != "removed"
        for m in mutants
    )


def test_every_explanation_is_of_one_mutant(mutation: ModuleType) -> None:
    names = [mutant.name for mutant in mutation.woven()[0]]
    for name in mutation.EXPLAINED:
        assert names.count(name) == 1, name


def test_the_tests_that_name_the_error_come_first(mutation: ModuleType) -> None:
    mutant = next(m for m in mutation.woven()[0] if m.errors == {"NotBuyer"})
    first, then = mutation.rounds(mutant)
    assert first == ["tests/contracts/test_escrow_fund.py::test_only_the_buyer_can_fund"]
    assert sorted([*first, *then]) == sorted(mutation.tests())
    assert not any("invariants" in test or "gas" in test.partition("::")[0] for test in then)
