"""The papers' studies on the floor: what is compared, how, and beside which figures."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from node.devnet.arms import ARMS
from node.devnet.floor import Floor
from node.devnet.spec import RunSpec

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reproduce() -> Any:
    name = "reproduce_script"
    spec = importlib.util.spec_from_file_location(name, CHECKOUT / "scripts" / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(
        protocol="paper", priced=False, data_folder=None, seeds=2, first=0, jobs=1, json=False
    )


def small(tmp_path: Path, **changes: Any) -> RunSpec:
    spec = RunSpec(folder=tmp_path, dataset="digits", rounds=3, priced=False, protocol="paper")
    return replace(spec, **changes)


def played(reproduce: Any, name: str, seed: int, a: float, b: float) -> Any:
    return reproduce.Played(name, seed, [a, b], [[(0, 50.0), (1, a)], [(0, 50.0), (1, b)]], 4, 3)


def test_every_study_plays_its_cases_with_every_seed(
    reproduce: Any, options: argparse.Namespace
) -> None:
    counts = {
        study: len(make(options, range(2))) for study, (make, _, _) in reproduce.STUDIES.items()
    }
    assert counts == {"table1": 8, "table2": 12, "linear": 4, "convergence": 4}


def test_differences_are_taken_within_each_seed(
    reproduce: Any, options: argparse.Namespace
) -> None:
    found = reproduce.summary(
        "table1",
        [
            played(reproduce, "aligned", 0, 90, 80), played(reproduce, "aligned", 1, 70, 60),
            played(reproduce, "out-of-market", 1, 60, 55),
            played(reproduce, "out-of-market", 0, 80, 75),
        ],
    )  # fmt: skip
    assert [row["case"] for row in found["rows"]] == ["out-of-market", "aligned"]
    assert found["rows"][1]["paper"] == (86.96, 86.96)
    first, second = found["differences"]
    assert (first["of"], first["against"], first["agent"]) == ("aligned", "out-of-market", "A")
    assert (first["mean"], first["low"], first["high"]) == (10, 10, 10)
    assert (second["agent"], second["mean"], second["n"]) == ("B", 5, 2)
    reproduce.show("Table 1", found, options)


def test_a_target_that_is_never_reached_is_not_averaged(reproduce: Any) -> None:
    found = reproduce.summary(
        "convergence",
        [played(reproduce, "never trade", 0, 55, 55), played(reproduce, "always trade", 0, 90, 70)],
    )
    assert {(r["target"], r["case"]): r["mean_epochs"] for r in found["epochs_to"]} == {
        (60, "never trade"): None, (60, "always trade"): 2,
        (70, "never trade"): None, (70, "always trade"): 2,
        (80, "never trade"): None, (80, "always trade"): 2,
    }  # fmt: skip


def test_only_the_layers_that_are_traded_change_hands(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = Floor(small(tmp_path), ARMS["aligned"], seed=0).play()
    part = Floor(small(tmp_path), ARMS["aligned"], seed=0, layers=frozenset({0})).play()
    none = Floor(small(tmp_path), ARMS["out-of-market"], seed=0).play()
    assert whole.traded > 0
    assert part.traded > 0
    assert whole.curves != part.curves != none.curves
    assert [c[:5] for c in part.curves] == [c[:5] for c in none.curves]


def test_an_agent_that_always_trades_takes_what_gains_nothing_too(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = small(tmp_path)
    always = Floor(spec, ARMS["fedavg"], seed=0, always=True).play()
    assert always.traded == always.possible == 2 * spec.rounds
    never = Floor(spec, ARMS["aligned"], seed=0, least_ratio=100.0).play()
    assert never.traded == 0
    assert never.lost == {"gain": never.possible}
