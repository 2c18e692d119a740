"""The gas of every operation is committed, near its floor, and does not drift."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from contracts.gas import committed, floor, measure, table

ROOT = Path(__file__).resolve().parents[2]


def test_gas_is_as_committed() -> None:
    assert table() == committed(), "run scripts/compile_contracts.py --gas and look at the change"


def test_no_operation_is_below_its_floor_or_far_above_it() -> None:
    for row in measure():
        assert row.floor <= row.gas <= 1.05 * row.floor, row


def test_funding_and_revealing_keep_within_their_budgets() -> None:
    gas = {row.operation: row.gas for row in measure()}
    assert gas["fund"] <= 63_500
    assert gas["reveal"] <= 47_900


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


def test_the_benchmark_has_a_row_for_each_operation(bench: ModuleType) -> None:
    rows = bench.rows()
    assert {row["case"]: row["value"] for row in rows} == {
        operation: entry["gas"] for operation, entry in committed().items()
    }
    for row in rows:
        assert set(row) == {"case", "value", "unit", "against", "ratio"}
        assert (row["unit"], row["against"]) == ("gas", "floor")
        assert 1 <= row["ratio"] < 1.05
