"""The benchmark of replicas makes its set from a seed, and says what it found in rows."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from broker_node.verify.replicas import Likeness
from node.params.architecture import Architecture, random_init
from scripts import replica_families as families

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """Return `scripts/bench_replicas.py`."""
    name = "bench_replicas"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def alike(value: float) -> Likeness:
    return Likeness(activations=value, layers=(value,), weights=value)


def test_the_area_under_the_curve_is_how_often_a_copy_is_above(bench: ModuleType) -> None:
    assert bench.auc([0.1, 0.2], [0.3, 0.4]) == 1
    assert bench.auc([0.3, 0.4], [0.1, 0.2]) == 0
    assert bench.auc([0.1, 0.3], [0.2, 0.3]) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_the_threshold_stands_half_way_and_a_quarter_of_a_merge_is_no_copy(
    bench: ModuleType,
) -> None:
    kinds = {
        bench.SAME: [alike(0.2), alike(0.5)],
        bench.OTHER: [alike(0.4)],
        "one start, other classes, 3 epochs": [alike(0.9)],
        "copy: int8": [alike(0.8), alike(0.7)],
        bench.QUARTER: [alike(0.1)],
    }
    assert bench.calibrated([kinds]) == pytest.approx(0.6)


def test_the_set_is_the_same_for_the_same_seed_and_every_kind_has_its_rows(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(bench.SETTINGS["digits"], rows=64, epochs=(1, 2), tuned=(1,))
    monkeypatch.setattr(bench, "SETTINGS", {"digits": tiny})
    monkeypatch.setattr(bench, "SEEDS", (0, 0))
    monkeypatch.setattr(bench.replica_families, "FAMILIES", {})
    first, second = bench.pairs("digits", 0), bench.pairs("digits", 0)
    assert first == second
    monkeypatch.setattr(bench, "pairs", lambda name, seed: first)
    rows = bench.rows()
    assert rows[0]["value"] == bench.calibrated([first])
    cases = {row["case"] for row in rows}
    assert cases >= {f"digits {kind}" for kind in first}
    areas = {row["case"]: row["value"] for row in rows if row["unit"] == "ROC-AUC"}
    assert areas["digits copy: renumbered and rescaled"] == 1
    assert set(rows[1]) <= {"case", "value", "unit", "against", "ratio"}


@pytest.mark.parametrize("architecture", [families.NETWORK, families.TEXT_MODEL])
def test_norms_and_heads_of_a_copy_are_disguised_too(
    bench: ModuleType, architecture: Architecture
) -> None:
    model: Any = architecture.model
    generator = torch.Generator().manual_seed(0)
    rows_RF = torch.rand(8, model.input_width(), generator=generator)
    if architecture == families.TEXT_MODEL:
        rows_RF = model.random_rows(8, generator).float()
    models = {
        (start, part): random_init(architecture, start) for start, part in ((0, 0), (1, 0), (1, 1))
    }
    trained = families.Trained(
        architecture=architecture, models=models, tuned=models, probes_RF=rows_RF
    )
    found = families.pairs(trained, 0, same=bench.SAME, other=bench.OTHER)
    assert (len(found[bench.SAME]), len(found[bench.OTHER])) == (1, 1)
    strangers = [one.score for kind in (bench.SAME, bench.OTHER) for one in found[kind]]
    hidden = {"copy: what enters norms 8 times"}
    if architecture == families.TEXT_MODEL:
        hidden |= {"copy: heads in other bases"}
    assert hidden < set(found)
    for kind in hidden | {"copy: renumbered and rescaled"}:
        assert min(one.score for one in found[kind]) > 0.99 > max(strangers)
