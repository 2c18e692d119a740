"""The gas of every operation is committed, near its floor, and does not drift."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from contracts.gas import Row, committed, floor, measure

ROOT = Path(__file__).resolve().parents[2]

BUDGETS = {
    "fund": 62_000,
    "reveal": 46_500,
    "dispute20": 240_000,
    "batch50": 22_000,
    "claim": 62_000,
}

# Where the floor leaves out what the operation is made of: the cipher, and the walk over the lists
# of a batch, which the calldata of two buyers nearly hides (EIP-7623); the consents of 50 do not.
ABOVE = {
    "dispute20": 1.8,
    "batch50": 1.1,
    "batch50, 50 buyers": 1.45,
    "further signature": 1.15,
    "claim, again": 1.1,
}


@cache
def measured() -> list[Row]:
    """Return the gas of every operation, measured once."""
    return measure()


def test_gas_is_as_committed() -> None:
    found = {row.operation: {"gas": row.gas, "floor": row.floor} for row in measured()}
    assert found == committed(), "run scripts/compile_contracts.py --gas and look at the change"


def test_no_operation_is_below_its_floor_or_far_above_it() -> None:
    for row in measured():
        assert row.floor <= row.gas <= ABOVE.get(row.operation, 1.075) * row.floor, row


def test_every_operation_keeps_within_its_budget() -> None:
    gas = {row.operation: row.gas for row in measured()}
    for operation, budget in BUDGETS.items():
        assert gas[operation] <= budget


def test_the_committed_table_keeps_within_every_budget() -> None:
    rows = committed()
    for operation, budget in BUDGETS.items():
        assert rows[operation]["floor"] <= rows[operation]["gas"] <= budget


def test_the_table_on_the_front_page_is_the_committed_one() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = committed()
    for operation in ("fund", "further signature", "reveal", "dispute20", "batch50", "claim"):
        gas, least = rows[operation]["gas"], rows[operation]["floor"]
        assert f"| {gas:,} | floor" in readme
        assert f" {least:,} | {gas / least:.3f} |" in readme
    for operation in ("finalize", "refund"):
        first, again = rows[f"{operation}, first"]["gas"], rows[f"{operation}, again"]["gas"]
        assert f"| {first:,} / {again:,} | floor |" in readme


def test_the_floor_of_calldata_is_what_the_fork_charges() -> None:
    assert floor(b"", 0) == 21_000
    assert floor(b"\x00\x01", 10_000) == 21_000 + 4 + 16 + 10_000
    assert floor(b"\x01" * 100, 0) == 21_000 + 40 * 100
    assert floor(b"", 9_000, given_back=4_800) == 30_000 - 4_800
    assert floor(b"", 9_000, given_back=9_600) == 30_000 - 6_000
    assert floor(b"", 0, given_back=4_800) == 21_000


def test_the_table_in_the_readme_is_the_committed_one() -> None:
    readme = (ROOT / "contracts" / "README.md").read_text()
    for operation, entry in committed().items():
        assert f"| {operation} | {entry['gas']:,} | {entry['floor']:,} |" in readme


def test_the_benchmark_has_a_row_for_each_operation(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", measured)
    rows = bench.rows()
    assert {row["case"]: row["value"] for row in rows} == {
        operation: entry["gas"] for operation, entry in committed().items()
    }
    for row in rows:
        assert set(row) == {"case", "value", "unit", "against", "ratio"}
        assert (row["unit"], row["against"]) == ("gas", "floor")
        assert 1 <= row["ratio"] < 1.8
