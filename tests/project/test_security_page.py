"""The page on security claims nothing that no test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "SECURITY.md"
NAMED = re.compile(r"`(test_\w+|Test\w+)`")


def cases(source: str) -> set[str]:
    """Return the names of the tests of a module: functions, and the cases of state machines."""
    found = set()
    for statement in ast.parse(source).body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr="TestCase")):
                found.add(name)
    return {name for name in found if name.lower().startswith("test")}


def missing(page: str, tests: set[str]) -> list[str]:
    """Return the tests that a page names, and that are not there."""
    return sorted(set(NAMED.findall(page)) - tests)


@pytest.fixture(scope="module")
def tests() -> set[str]:
    modules = (ROOT / "tests").glob("*/test_*.py")
    return set().union(*(cases(module.read_text(encoding="utf-8")) for module in modules))


def test_every_test_that_the_page_names_is_there(tests: set[str]) -> None:
    assert missing(PAGE.read_text(encoding="utf-8"), tests) == []


def test_a_test_that_is_not_there_is_missed(tests: set[str]) -> None:
    assert missing("shown by `test_nobody_ever_wrote_this`.", tests) == [
        "test_nobody_ever_wrote_this"
    ]


def test_every_claim_of_what_holds_and_every_role_names_a_test() -> None:
    page = PAGE.read_text(encoding="utf-8")
    holds, roles = (
        page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for title in ("What holds, whoever misbehaves", "What each can do at worst")
    )
    claims = re.split(r"^\d+\. ", holds, flags=re.MULTILINE)[1:]
    claims += [role for role in re.split(r"^(?=\*\*)", roles, flags=re.MULTILINE) if role.strip()]
    assert len(claims) >= 15
    for claim in claims:
        assert NAMED.search(claim), f"nothing shows: {claim}"


@pytest.mark.parametrize(
    "role",
    ["seller", "buyer", "broker", "encryptor", "minority", "majority", "reporter", "network",
     "miners", "holds a key"],
)  # fmt: skip
def test_no_role_is_left_out(role: str) -> None:
    roles = re.findall(r"^\*\*.+?\*\*.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert any(role in line for line in roles)


def test_there_is_one_page_and_the_others_lead_to_it() -> None:
    pointer = (ROOT / "contracts" / "SECURITY.md").read_text(encoding="utf-8")
    assert "](../docs/SECURITY.md)" in pointer
    assert not NAMED.search(pointer)
    assert "](docs/SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
