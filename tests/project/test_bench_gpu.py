"""The benchmark of devices says what it measured, and says so where there is nothing to measure."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from node.params.architecture import Architecture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return `scripts/bench_gpu.py`."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("scripts.bench_gpu")


def test_without_a_device_the_benchmark_is_skipped_visibly(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = bench.rows()
    assert row["case"].startswith("skipped: ")
    assert row["value"] == 0


def test_a_device_is_measured_in_shares_and_against_its_own_rates(bench: ModuleType) -> None:
    small = bench.Sizes(
        square=32, copied=2**12, decoder=(16, 1, 2, 16), widths=(12, 8, 3), rows=64, compiles=False
    )
    rows = bench.measured(torch.device("cpu"), small)
    told = {row["case"]: row for row in rows}
    for part in ("products (GEMM)", "assignments", "transfers"):
        assert 0 <= told[f"transformer16x1 {part}, share of the time"]["value"] <= 1
    assert told["a trial by unit-alpha, 64 rows"]["ratio"] > 0
    assert told["copy to the device, page-locked"]["value"] > 0
    against = [row for row in rows if row["against"] == bench.PEAK]
    assert {row["unit"] for row in against} == {"TFLOP/s", "GB/s"}
    assert all(row["ratio"] > 0 for row in against)


def test_what_a_trial_sends_to_a_device_is_both_models_and_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    devices = importlib.import_module("scripts.bench_devices")
    monkeypatch.setattr(devices, "PERCEPTRON", Architecture("mlp", {"widths": [784, 8, 10]}))
    times, all_of_it = devices.transfers("unit-alpha")
    assert times["value"] == 1
    assert all_of_it["ratio"] == pytest.approx(1, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_the_whole_benchmark_runs_on_cuda(bench: ModuleType) -> None:
    assert len(bench.rows()) > 10
