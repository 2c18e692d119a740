"""Copies of adapters are known in any gauge, and whoever learned by itself is left alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.computing import whole
from broker_node.verify.replicas import ADAPTER_THRESHOLD, ReplicaError, find_replicas, likeness
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.adapters import Adapter, Base, fitted, inner, weighted_sum
from node.params.architecture import Architecture, random_init
from tests.params.learned_adapters import (
    FOLDER,
    PERCEPTRON,
    adapter_of,
    base_of,
    buyers,
    louder,
    rows_of,
    strangers,
    trained,
    verified,
)


@pytest.fixture(scope="module")
def base() -> Base:
    torch.set_num_threads(1)
    return base_of(PERCEPTRON)


@pytest.fixture(scope="module")
def rows() -> ValidationSet:
    return ValidationSet.of(split_test(load_digits(FOLDER)).validation)


def disguises(adapter: Adapter, base: Base, other: Adapter) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(3)
    architecture, tensors = adapter.architecture, adapter.tensors
    turned = {}
    for module in adapter.lora.modules:
        a, b = adapter.factors(module)
        m = torch.randn(module.rank, module.rank, generator=generator, dtype=torch.float64)
        names = module.factors
        turned[names[0]] = (m @ a.double()).float()
        turned[names[1]] = (b.double() @ torch.linalg.inv(m)).float()
    steps = {name: tensor.abs().max() / 127 for name, tensor in tensors.items()}
    half = {each.path: [max(1, each.rank // 2), each.alpha] for each in adapter.lora.modules}
    ranks = Adapter(
        Architecture("lora", {**architecture.config, "modules": half}),
        random_init(Architecture("lora", {**architecture.config, "modules": half}), 0),
    )
    tuned = trained(architecture, tensors, rows_of(range(10), 500), 20, base)
    return {
        "as it is": adapter,
        "another gauge": Adapter(architecture, turned),
        "half the rank": fitted(adapter, ranks.lora)[0],
        "twice as loud": louder(adapter),
        "noise": Adapter(
            architecture,
            {
                name: tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
                for name, tensor in tensors.items()
            },
        ),
        "int8": Adapter(
            architecture, {n: (t / steps[n]).round() * steps[n] for n, t in tensors.items()}
        ),
        "tuned": Adapter(architecture, tuned),
        "blended": weighted_sum(
            [
                (0.6 / inner(adapter, adapter) ** 0.5, adapter),
                (0.4 / inner(other, other) ** 0.5, other),
            ]
        ),
    }


def test_copies_of_an_adapter_are_known_in_any_gauge_rank_and_scale(
    base: Base, rows: ValidationSet
) -> None:
    """And those that learned by themselves, even from the same rows, are left alone."""
    modules = [{f"layers.{place}": [rank, 4] for place in range(3)} for rank in (4, 8)]
    independent = [
        adapter_of(base, modules[seed % 2], rows_of(range(10), 900 - 50 * seed), 60, seed=20 + seed)
        for seed in range(5)
    ]
    models = [verified(each, base) for each in independent]
    alone = [found.likeness.score for found in find_replicas(models, rows.inputs_RF)]
    assert max(alone) < ADAPTER_THRESHOLD
    copied = {
        name: likeness(models[1], verified(copy, base), rows.inputs_RF).score
        for name, copy in disguises(independent[1], base, independent[2]).items()
    }
    assert min(copied.values()) >= ADAPTER_THRESHOLD, copied
    # the area under the curve of all pairs: every copy is nearer than any two that are none
    assert all(copy > pair for copy, pair in itertools.product(copied.values(), alone))
    (finding,) = find_replicas([models[1], verified(louder(independent[1]), base)], rows.inputs_RF)
    assert finding.replica


def test_what_cannot_be_compared_says_why(base: Base, rows: ValidationSet) -> None:
    ours = verified(buyers(PERCEPTRON), base)
    fresh = Adapter(ours.architecture, random_init(ours.architecture, 3))
    for other, reason in (
        (verified(fresh, base), "constant"),
        (verified(strangers(PERCEPTRON), base_of(PERCEPTRON, seed=9)), "mismatch"),
        (whole(ours), "mismatch"),
    ):
        with pytest.raises(ReplicaError) as refused:
            likeness(ours, other, rows.inputs_RF)
        assert refused.value.reason == reason
