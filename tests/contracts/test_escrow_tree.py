"""`escrow.tree` says what the escrow does; each of its leaves is the name of a test, and back."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = ("test_escrow_fund.py", "test_escrow_settlement.py")
INTERFACE = HERE.parents[1] / "contracts" / "src" / "IParameterEscrow.sol"


def leaves() -> list[str]:
    """Return the lines of the tree under which there is nothing more."""
    lines = (HERE / "escrow.tree").read_text().splitlines()
    depths = [len(re.match(r"[│├└─ ]*", line)[0]) for line in lines]  # type: ignore[index]
    deeper = [*depths[1:], 0]
    return [line[d:] for line, d, next_ in zip(lines, depths, deeper, strict=True) if next_ <= d]


def test_every_leaf_is_a_test_and_every_test_a_leaf() -> None:
    written = "".join((HERE / name).read_text() for name in TESTS)
    tests = re.findall(r"^def test_(\w+)\(", written, re.MULTILINE)
    assert sorted(leaf.replace(" ", "_") for leaf in leaves()) == sorted(tests)


def test_every_custom_error_is_asserted_by_name() -> None:
    declared = re.findall(r"^    error (\w+)\(", INTERFACE.read_text(), re.MULTILINE)
    written = "".join((HERE / name).read_text() for name in TESTS)
    asserted = re.findall(r'refused\("(\w+)"', written)
    assert len(declared) > 10
    assert set(asserted) == set(declared)
