"""The benchmark of deliveries plays what a node does, and says so in rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from node.protocol import tree_hashing

ROOT = Path(__file__).resolve().parents[2]
MIB = 9  # more than a batch of leaves for each process


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """Return `scripts/bench_delivery.py`."""
    spec = importlib.util.spec_from_file_location(
        "bench_delivery", ROOT / "scripts" / "bench_delivery.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_is_set_against_plain_hashing_of_the_same_file(bench: ModuleType) -> None:
    rows = bench.rows(mib=MIB, rounds=1)
    assert all(row.keys() == {"case", "value", "unit", "against", "ratio"} for row in rows)
    rates = {row["case"]: row for row in rows if row["unit"] == "MB/s"}
    assert list(rates) == [f"{case}, {MIB} MiB" for case in bench.CASES]
    assert rates[f"{bench.PLAIN}, {MIB} MiB"]["ratio"] == 1
    assert all(row["against"].startswith(bench.PLAIN) for row in rates.values())
    peaks = [row for row in rows if row["unit"] == "MiB"]
    assert [row["case"].partition(": ")[2] for row in peaks] == [
        "one process",
        "one process, kept",
        "second process",
    ]
    assert all(5 < row["value"] < 64 for row in peaks)
    (how,) = (row for row in rows if row["unit"] == "")
    assert how["value"] == ("SHA extensions" if tree_hashing.IN_C else "hashlib")


def test_each_part_is_measured_in_all_ways_that_are_here(bench: ModuleType) -> None:
    rows = bench.unit_rows(rounds=1)
    ways = ("by hashlib", "in C") if tree_hashing.IN_C else ("by hashlib",)
    parts = ("a leaf", "a leaf of each of two blobs", "a node")
    assert [row["case"] for row in rows] == [
        *(f"{part}, {way}" for way in ways for part in parts),
        "ChaCha20, for both",
        "plain SHA-256, for both",
    ]
    assert all(row["unit"] == "µs" and row["value"] > 0 for row in rows)
    assert all(row["ratio"] == 1 for row in rows if "by hashlib" in row["case"])


def test_goods_of_a_file_that_is_another_are_not_measured(
    bench: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / ("00" * 32)
    path.write_bytes(b"not what hashes to zero")
    for case in list(bench.CASES)[1:]:
        with pytest.raises(Exception, match="0000"):
            bench.play(case, path)
