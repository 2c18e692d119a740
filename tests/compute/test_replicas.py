"""A copy is known under its disguises, and those that learned by themselves are left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from broker_node.align.weight_matching import weight_matching
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.replicas import ReplicaError, find_replicas, likeness
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, part_of, permutation_spec, random_init
from node.params.encoding import weights_root
from node.params.permutation import permute, rescale
from node.params.recipe import interpolate
from node.protocol.types import ONE, Digest, Millionths

NET = Architecture("mlp", {"widths": [64, 24, 24, 10]})


def model(
    tensors: dict[str, torch.Tensor],
    layers: tuple[int, ...] = (),
    architecture: Architecture = NET,
) -> Verified:
    part = part_of(architecture, tensors, layers)
    return verify(
        Received(
            weights_root=weights_root(part),
            architecture=architecture,
            tensors=part,
            layers=layers,
        )
    )


def started(seed: int) -> dict[str, torch.Tensor]:
    return random_init(NET, seed)


def moved(tensors: dict[str, torch.Tensor], seed: int = 5) -> dict[str, torch.Tensor]:
    """Renumber and rescale, by as much as 2⁻⁸ … 2⁸."""
    spec = permutation_spec(NET)
    generator = torch.Generator().manual_seed(seed)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.exp2(16 * torch.rand(group.size, generator=generator) - 8)
        for name, group in spec.groups.items()
    }
    return rescale(spec, permute(spec, tensors, permutations), scales)


def noisy(share: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return lambda tensors: {
        name: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


def eight_bits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    steps = {name: tensor.abs().max() / 127 for name, tensor in tensors.items()}
    return {name: (tensor / steps[name]).round() * steps[name] for name, tensor in tensors.items()}


def half_of_a_merge(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    aligned = weight_matching(model(started(99)), model(tensors), seed=0)
    return interpolate(started(99), aligned.transformed, Millionths(ONE * 6 // 10))


DISGUISES: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "as it is": lambda tensors: tensors,
    "fp16": lambda tensors: {name: tensor.half().float() for name, tensor in tensors.items()},
    "int8": eight_bits,
    "noise 10%": noisy(0.1),
    "noise 50%": noisy(0.5),
    "blended": half_of_a_merge,
}


@pytest.fixture(scope="module")
def rows_RF(validation: ValidationSet) -> torch.Tensor:
    return validation.inputs_RF[:100]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_is_known_renumbered_rescaled_and(disguise: str, rows_RF: torch.Tensor) -> None:
    copy = moved(DISGUISES[disguise](started(1)))
    (finding,) = find_replicas([model(started(1)), model(copy)], rows_RF)
    assert finding.replica
    if disguise == "as it is":
        assert finding.likeness.activations == pytest.approx(1, abs=1e-5)
        assert finding.likeness.weights == pytest.approx(1, abs=1e-5)


def test_models_that_started_apart_are_not_replicas(rows_RF: torch.Tensor) -> None:
    findings = find_replicas([model(started(seed)) for seed in range(4)], rows_RF)
    places = [(finding.first, finding.second) for finding in findings]
    assert places == list(itertools.combinations(range(4), 2))
    assert not any(finding.alike for finding in findings)


def test_what_rows_do_not_touch_makes_nobody_alike(rows_RF: torch.Tensor) -> None:
    # one start, and all that was learned stands in the half of the inputs that rows have
    seen = torch.arange(64) < 32
    rows_RF = rows_RF * seen
    ours, theirs = started(1), started(1)
    for side, seed in ((ours, 2), (theirs, 3)):
        learned = started(seed)
        side["layers.0.weight"][:, seen] = 3 * learned["layers.0.weight"][:, seen]
        side["layers.0.weight"][:, ~seen] *= 10
        side["layers.0.bias"] = learned["layers.0.bias"]
    alike = likeness(model(ours), model(theirs), rows_RF)
    assert alike.weights > 0.85
    assert alike.layers[0] < 0.5


def test_the_likeness_is_the_mean_over_hidden_layers_and_the_same_from_both_sides(
    rows_RF: torch.Tensor,
) -> None:
    ours, theirs = model(started(1)), model(moved(noisy(0.7)(started(1))))
    there, back = likeness(ours, theirs, rows_RF), likeness(theirs, ours, rows_RF)
    assert len(there.layers) == 2
    assert there.activations == pytest.approx(sum(there.layers) / 2)
    assert there.activations == pytest.approx(back.activations, abs=1e-6)


def test_the_answers_do_not_count_for_who_learned_the_task_gives_them(
    rows_RF: torch.Tensor,
) -> None:
    ours, theirs = started(1), started(2)
    other = theirs | {name: 0 * theirs[name] + 1 for name in theirs if "layers.2" in name}
    assert likeness(model(ours), model(theirs), rows_RF).layers != ()
    assert len(likeness(model(ours), model(other), rows_RF).layers) == 2


@pytest.mark.parametrize("layers", [(0,), (0, 1), (1, 2)])
def test_a_sold_part_that_is_copied_is_known_beside_a_whole_model(
    layers: tuple[int, ...], rows_RF: torch.Tensor
) -> None:
    spec = permutation_spec(NET)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    copy = permute(spec, started(1), dict.fromkeys(spec.groups, order))
    models = [model(started(1)), model(copy, layers), model(started(2), layers)]
    found = {(one.first, one.second): one for one in find_replicas(models, rows_RF)}
    assert found[0, 1].replica
    assert found[0, 1].likeness.activations == pytest.approx(1, abs=1e-5)
    assert not found[0, 2].alike
    assert not found[1, 2].alike


def findings_of(
    models: list[Verified], rows_RF: torch.Tensor, lineage: list[tuple[int, int]]
) -> list[tuple[bool, bool, bool]]:
    roots = [one.weights_root for one in models]
    edges = [(roots[parent], roots[child]) for parent, child in lineage]
    return [
        (found.alike, found.related, found.replica)
        for found in find_replicas(models, rows_RF, lineage=edges)
    ]


def test_a_lineage_that_receipts_prove_is_exempt(rows_RF: torch.Tensor) -> None:
    base, child, grandchild = (
        model(tensors) for tensors in (started(1), noisy(0.1)(started(1)), noisy(0.2)(started(1)))
    )
    exempt, caught = (True, True, False), (True, False, True)
    assert findings_of([base, child], rows_RF, []) == [caught]
    assert findings_of([base, child], rows_RF, [(0, 1)]) == [exempt]
    assert findings_of([base, child], rows_RF, [(1, 0)]) == [exempt]
    # by way of another, and as two that were made of one
    assert findings_of([base, child, grandchild], rows_RF, [(0, 1), (1, 2)]) == [exempt] * 3
    assert findings_of([base, child, grandchild], rows_RF, [(0, 1), (0, 2)]) == [exempt] * 3
    # two parents of one are no kin, and loops end
    assert findings_of([base, child, grandchild], rows_RF, [(0, 2), (1, 2)]) == [
        caught,
        exempt,
        exempt,
    ]
    assert findings_of([base, child], rows_RF, [(0, 1), (1, 0)]) == [exempt]
    strange = Digest(bytes(32))
    (found,) = find_replicas([base, child], rows_RF, lineage=[(strange, base.weights_root)])
    assert found.replica


def test_no_lineage_excuses_the_same_bytes_offered_twice(rows_RF: torch.Tensor) -> None:
    one = model(started(1))
    assert findings_of([one, one], rows_RF, [(0, 1)]) == [(True, False, True)]


def test_the_threshold_is_the_callers(rows_RF: torch.Tensor) -> None:
    models = [model(started(1)), model(started(2))]
    (found,) = find_replicas(models, rows_RF, threshold=-1.0)
    assert found.replica


def refused(reason: str, act: Callable[..., object], *given: Any) -> None:
    with pytest.raises(ReplicaError) as refusal:
        act(*given)
    assert refusal.value.reason == reason


def test_what_cannot_be_compared_is_refused_by_name(rows_RF: torch.Tensor) -> None:
    ours = model(started(1))
    small = Architecture("mlp", {"widths": [64, 3, 10]})
    refused("mismatch", likeness, ours, model(random_init(small, 1), (), small), rows_RF)
    parts = [model(started(1), layers) for layers in ((0,), (1,))]
    refused("mismatch", likeness, *parts, rows_RF)
    linear = Architecture("linear", {"inputs": 64, "outputs": 10})
    lines = [model(random_init(linear, seed), (), linear) for seed in (1, 2)]
    refused("no-hidden-units", likeness, *lines, rows_RF)
    last = [model(started(seed), (2,)) for seed in (1, 2)]
    refused("no-hidden-units", likeness, *last, rows_RF)
    shapes = Architecture("random", {"shapes": {"a": [2]}})
    shaped = [model(random_init(shapes, seed), (), shapes) for seed in (1, 2)]
    refused("no-hidden-units", likeness, *shaped, rows_RF)
    for wrong in (rows_RF[:1], rows_RF[:, :5], rows_RF[0], rows_RF / 0):
        refused("wrong-rows", likeness, ours, ours, wrong)


def test_a_model_that_answers_all_alike_is_no_likeness_of_anything(rows_RF: torch.Tensor) -> None:
    constant = started(1) | {"layers.0.weight": torch.zeros(24, 64)}
    refused("constant", likeness, model(started(1)), model(constant), rows_RF)
    refused("constant", likeness, model(constant), model(constant), rows_RF)
