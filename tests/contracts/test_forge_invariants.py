"""A green forge that played too little, or nothing, is a red one."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.contracts.conftest import script

MARKET = "[PASS] invariant_market() (runs: 10, calls: 1280, reverts: 0)\n"
CLEARING = "[PASS] invariant_clearing() (runs: 10, calls: 1280, reverts: 0)\n"


@pytest.fixture(scope="module")
def forge() -> ModuleType:
    """Return `scripts/forge_invariants.py`."""
    return script("forge_invariants")


@pytest.mark.parametrize(
    ("status", "said", "calls", "expected"),
    [
        (0, MARKET + CLEARING, 1280, 0),
        (1, MARKET + CLEARING, 1280, 1),
        (0, MARKET + CLEARING, 1281, 1),
        (0, MARKET, 1280, 1),
        (0, "No tests to run\n", 1280, 1),
        (0, MARKET + CLEARING.replace("PASS", "FAIL: Broken"), 1280, 1),
    ],
)
def test_both_invariants_are_held_for_all_calls(
    forge: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: str,
    calls: int,
    expected: int,
) -> None:
    monkeypatch.setattr(forge, "install", lambda: None)
    monkeypatch.setattr(forge, "play", lambda calls, seed: (status, said))
    assert forge.main(["--calls", str(calls)]) == expected


def test_where_forge_does_not_install_it_says_so(
    forge: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise forge.compile_contracts.MissingToolError("no such package")

    monkeypatch.setattr(forge, "install", missing)
    assert forge.main([]) == 2
    assert "forge was not run: no such package" in capsys.readouterr().err
