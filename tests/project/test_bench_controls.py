"""The controls of the benchmarks: what the buyer gains without a seller, stopped early and not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from broker_node.align.learned_gauge import STEPS  # noqa: E402
from node.data.rows import Rows  # noqa: E402
from node.params.architecture import random_init  # noqa: E402
from scripts import bench_quality, bench_transformers, text_models  # noqa: E402
from tests.project.test_bench_transformers import TEXT, TINY  # noqa: E402


def rows(part: str) -> Rows:
    return text_models.rows_of(text_models.parts(TEXT)[part], 8)


def test_the_language_models_have_a_control_that_takes_as_many_steps_as_the_gauge() -> None:
    torch.set_num_threads(1)
    buyer = text_models.verified(TINY, dict(random_init(TINY, 0)))
    before = bench_transformers.mean_loss(TINY, buyer.tensors, rows("report"))
    told = list(bench_transformers.control_of(buyer, rows("choice"), rows("report")))
    assert ["to the end" in row["case"] for row in told] == [True, False]
    assert f"after {STEPS} of {STEPS} steps" in told[0]["unit"]
    for row in told:
        assert row["value"] < before - 0.5, "a model that knew nothing learns from the rows"


@pytest.mark.parametrize("stopping", [False, True])
def test_a_model_that_tuning_only_harms_is_left_as_it_was_only_where_it_is_stopped(
    stopping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(text_models, "TUNING_RATE", 10.0)
    base = random_init(TINY, 0)
    side, steps = text_models.tuned(
        TINY, base, rows("choice"), seed=0, steps=12, stopping=stopping
    )  # fmt: skip
    assert steps == (0 if stopping else 12)
    assert (side is base) == stopping


def test_the_quality_of_merges_stands_beside_both_controls() -> None:
    both = {bench_quality.CONTROL, bench_quality.STOPPED}
    assert both <= set(bench_quality.CASES)
    assert both <= set(bench_quality.COMPARED)
