"""A clearing round fuses by the broker's alignment, also where that looks at rows."""

from __future__ import annotations

import pytest
import torch

from broker_node.clearing.measuring import Measuring
from broker_node.evaluate.validation import ValidationSet
from node.params.architecture import Architecture
from node.params.permutation import permute
from tests.compute.merging_cases import SEED, model, rows_for, started

FOUR = Architecture("mlp", {"widths": [6, 12, 10, 3]})


@pytest.mark.parametrize("method", ["weight-matching", "activation-matching", "universe"])
def test_a_model_fused_with_its_own_copy_in_another_order_stays_what_it_was(method: str) -> None:
    own = started(FOUR, 1)
    order = {"hidden.0": torch.randperm(12).tolist(), "hidden.1": torch.randperm(10).tolist()}
    copy = model(FOUR, permute(FOUR.model.permutation_spec(), own.tensors, order))
    rows = rows_for(FOUR, 200)
    measuring = Measuring(
        [own, copy],
        ValidationSet(rows.inputs_RF, rows.targets_R),
        rows=(100, 100),
        seed=SEED,
        method=method,
    )
    fused = measuring.fused(0, 0b11)
    for name, tensor in own.tensors.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-5, atol=1e-6)
    assert measuring.performance(0, 0b11) == measuring.performance(0, 0b01)
    measuring.close()
