"""A green slither that looked at nothing is a red one, and so is a finding without a reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.contracts.conftest import ROOT, script

SAID = "INFO:Slither:request.json analyzed (36 contracts with 102 detectors), 1 result(s) found"
FUNCTION = {
    "type": "function",
    "name": "pay",
    "type_specific_fields": {
        "signature": "pay(bytes32)",
        "parent": {"type": "contract", "name": "House", "type_specific_fields": {}},
    },
}
LINE = {"type": "node", "name": "x", "type_specific_fields": {"parent": FUNCTION}}


@pytest.fixture(scope="module")
def slither() -> ModuleType:
    """Return `scripts/slither_contracts.py`."""
    return script("slither_contracts")


def report(*elements: dict[str, Any]) -> dict[str, Any]:
    """Return what slither writes down of findings of one check."""
    results = [
        {"check": "timestamp", "elements": [element], "description": f"{place}\n"}
        for place, element in enumerate(elements)
    ]
    return {"success": True, "error": None, "results": {"detectors": results} if results else {}}


def program(folder: Path, says: str, written: dict[str, Any] | None, status: int = 0) -> Path:
    """Return a program that does what slither might."""
    command = folder / "slither"
    if written is not None:
        (folder / "written").write_text(json.dumps(written))
    copy = "cp written report.json" if written is not None else ":"
    command.write_text(f"#!/bin/sh\necho '{says}' >&2\n{copy}\nexit {status}\n")
    command.chmod(0o755)
    return command


def test_a_finding_is_known_by_its_function_whatever_its_line(
    slither: ModuleType, tmp_path: Path
) -> None:
    found = slither.run_slither(program(tmp_path, SAID, report(FUNCTION, LINE)), tmp_path)
    assert found == {("timestamp", "House.pay(bytes32)"): "0\n1"}


def test_nothing_found_is_well_if_all_was_looked_at(slither: ModuleType, tmp_path: Path) -> None:
    assert slither.run_slither(program(tmp_path, SAID, report()), tmp_path) == {}


@pytest.mark.parametrize(
    ("says", "written", "status"),
    [
        (f"ERROR:SlitherSolcParsing:it broke\n{SAID}", report(), 0),
        ("Traceback (most recent call last):", report(), 0),
        (SAID.replace("36", "0"), report(), 0),
        ("INFO:Slither:done", report(), 0),
        (SAID, report() | {"success": False, "error": "no"}, 0),
        (SAID, None, 0),
        (SAID, report(), 1),
    ],
)
def test_a_green_that_is_none(
    slither: ModuleType, tmp_path: Path, says: str, written: dict[str, Any] | None, status: int
) -> None:
    with pytest.raises(slither.SlitherError):
        slither.run_slither(program(tmp_path, says, written, status), tmp_path)


@pytest.mark.parametrize("change", ["none", "unexplained", "outlived"])
def test_every_finding_is_explained_and_every_explanation_is_of_one(
    slither: ModuleType, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    found = dict.fromkeys(slither.explanations(), "words")
    if change == "unexplained":
        found[slither.Finding("timestamp", "House.other()")] = "words"
    if change == "outlived":
        found.popitem()
    monkeypatch.setattr(slither, "install", lambda: None)
    monkeypatch.setattr(slither, "parse", lambda: None)
    monkeypatch.setattr(slither, "run_slither", lambda *_: found)
    assert slither.main([]) == (0 if change == "none" else 1)


def test_explanations_are_of_functions_that_there_are(slither: ModuleType) -> None:
    source = "".join(p.read_text() for p in (ROOT / "contracts" / "src").rglob("*.sol"))
    for finding, why in slither.explanations().items():
        name = finding.where.partition("(")[0].rpartition(".")[2]
        assert re.search(rf"function {name}\b|{name}\s*\(", source), finding
        assert why.endswith("."), finding
