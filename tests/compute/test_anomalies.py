"""A scan of a merged model finds what is planted in plain sight, and never says more."""

from __future__ import annotations

import pytest
import torch

from broker_node.align.registry import ALIGNERS
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.anomalies import CHECKS, Scan, scan
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, random_init
from node.params.recipe import interpolate
from node.protocol.errors import LocalProtocolError
from node.protocol.types import ONE, Millionths

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def parents(pair: tuple[Verified, Verified]) -> tuple[Tensors, Tensors]:
    buyer, seller = pair
    aligned = ALIGNERS["weight-matching"](buyer, seller, seed=0)
    return dict(buyer.tensors), dict(aligned.transformed)


def merged_of(parents: tuple[Tensors, Tensors], alpha: int = ONE // 2) -> Tensors:
    return interpolate(*parents, Millionths(alpha))


@pytest.fixture
def architecture(pair: tuple[Verified, Verified]) -> Architecture:
    return pair[0].architecture


def seen(found: Scan) -> set[str]:
    assert found.verdict == ("found" if found.anomalies else "not found")
    assert all(anomaly.value > anomaly.limit for anomaly in found.anomalies)
    return {anomaly.check for anomaly in found.anomalies}


@pytest.mark.parametrize("alpha", [0, ONE // 4, ONE // 2, ONE])
def test_of_an_honest_merge_nothing_is_found_and_that_is_all_it_says(
    alpha: int,
    parents: tuple[Tensors, Tensors],
    architecture: Architecture,
    validation: ValidationSet,
) -> None:
    found = scan(architecture, merged_of(parents, alpha), parents, validation.inputs_RF)
    assert found.anomalies == ()
    assert (found.verdict, found.checks, found.rows) == ("not found", CHECKS, len(validation))


def test_a_boosted_layer_is_found(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged = merged_of(parents)
    merged["layers.1.weight"] *= 2
    found = scan(architecture, merged, parents, validation.inputs_RF)
    (anomaly,) = [one for one in found.anomalies if one.check == "spectral-norm"]
    assert anomaly.where == "layers.1.weight"


def test_one_unit_far_stronger_than_its_layer_is_found_whatever_its_scale(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged = merged_of(parents)
    merged["layers.0.weight"][3] *= 400
    merged["layers.0.bias"][3] *= 400
    found = scan(architecture, merged, parents, validation.inputs_RF)
    assert "lone-unit" in seen(found)
    assert {one.where for one in found.anomalies if one.check == "lone-unit"} == {"hidden.0[3]"}
    # the same factor taken off where the unit is read changes nothing that it computes
    merged["layers.1.weight"][:, 3] /= 400
    assert "lone-unit" not in seen(scan(architecture, merged, parents, validation.inputs_RF))


def test_a_strong_unit_that_no_row_wakes_is_found(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged = merged_of(parents)
    merged["layers.0.weight"][5] *= 6
    merged["layers.1.weight"][:, 5] *= 6
    merged["layers.0.bias"][5] = -1e4
    found = scan(architecture, merged, parents, validation.inputs_RF)
    dormant = [one.where for one in found.anomalies if one.check == "dormant-unit"]
    assert dormant == ["hidden.0[5]"]
    merged["layers.0.bias"][5] = 20.0
    awake = scan(architecture, merged, parents, validation.inputs_RF).anomalies
    assert ("dormant-unit", "hidden.0[5]") not in {(one.check, one.where) for one in awake}


def test_a_class_that_neither_parent_favours_so_is_found(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged = merged_of(parents)
    merged["layers.2.bias"][7] += 20
    found = scan(architecture, merged, parents, validation.inputs_RF)
    assert "class 7" in {one.where for one in found.anomalies}
    assert seen(found) == {"class-drift"}


def test_a_model_with_a_hole_in_it_is_found_and_not_computed_with(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged = merged_of(parents)
    merged["layers.0.bias"][0] = float("nan")
    assert seen(scan(architecture, merged, parents, validation.inputs_RF)) == {"not-finite"}


def test_what_cannot_be_looked_at_is_refused(
    parents: tuple[Tensors, Tensors], architecture: Architecture, validation: ValidationSet
) -> None:
    merged, rows_RF = merged_of(parents), validation.inputs_RF
    part = {name: tensor for name, tensor in merged.items() if "layers.0" in name}
    shapes = Architecture("random", {"shapes": {"a": [2]}})
    for wrong in (
        (architecture, merged, [], rows_RF),
        (architecture, merged, [part], rows_RF),
        (architecture, merged, parents, rows_RF[:, :3]),
        (architecture, merged, parents, rows_RF[:0]),
        (shapes, random_init(shapes, 1), [random_init(shapes, 2)], rows_RF),
    ):
        with pytest.raises(LocalProtocolError):
            scan(*wrong)
