"""Residual networks are traded as perceptrons are: described in JSON, aligned, merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from broker_node.align.registry import ALIGNERS
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import (
    Architecture,
    apply,
    layout,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.derivation.derive import derive
from node.params.encoding import weights_root
from node.params.families.base import ArchitectureError
from node.params.families.resnet import ResNet
from node.params.permutation import permute
from node.params.recipe import apply_recipe
from node.params.symmetry import renamed, to_permutation_spec
from node.protocol.types import ONE, Millionths
from scripts.disguises import moved

SMALL: dict[str, Any] = {"classes": 3, "depth": 10, "image": [1, 8, 8], "widen": 1}


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def test_the_text_comes_back_and_its_tensors_are_the_modules() -> None:
    architecture = Architecture("resnet", SMALL)
    assert parse_architecture(architecture.text) == architecture
    found = {spec.name: spec.shape for spec in layout(architecture)}
    assert {name: tuple(t.shape) for name, t in random_init(architecture, 0).items()} == found
    layers = architecture.model.layer_names()
    assert len(layers) == 3
    assert sorted(name for layer in layers for name in layer) == sorted(found)
    assert "stem.weight" in layers[0]
    assert {"norm.bias", "head.weight", "head.bias"} <= set(layers[-1])


@pytest.mark.parametrize(("depth", "widen", "millions"), [(22, 8, 17.2), (28, 10, 36.5)])
def test_networks_are_as_large_as_they_are_published(
    depth: int, widen: int, millions: float
) -> None:
    """Zagoruyko and Komodakis 2016, table 4."""
    config = {"classes": 10, "depth": depth, "image": [3, 32, 32], "widen": widen}
    count = sum(spec.byte_length // 4 for spec in layout(Architecture("resnet", config)))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("widen", [1, 2])
@pytest.mark.parametrize("depth", [10, 16])
def test_the_symmetries_are_those_of_the_graph(depth: int, widen: int) -> None:
    model = ResNet.read({**SMALL, "depth": depth, "widen": widen})
    rows = model.rows(torch.zeros(2, model.input_width()))
    derived = derive(model.build().eval(), (rows,))
    ours = model.permutation_spec()
    names: dict[str, str] = {}
    read = to_permutation_spec(renamed(derived))
    for tensor, axes in ours.axes.items():
        for axis, other in zip(axes, read.axes[tensor], strict=True):
            assert (axis is None) == (other is None)
            if axis is not None and other is not None:
                assert names.setdefault(axis.group, other.group) == other.group
                assert ours.groups[axis.group].size == read.groups[other.group].size
    assert len(set(names.values())) == len(names) == len(ours.groups)
    assert len(ours.rescalings) == 2 * (depth - 4) // 2 + 1
    sides = [
        {name: (own.writes, own.reads) for name, own in spec.rescalings.items()}
        for spec in (ours, to_permutation_spec(derived))
    ]
    assert sides[0] == sides[1]


@pytest.mark.parametrize("method", ["weight-matching", "activation-matching"])
def test_a_renumbered_copy_computes_the_same_and_is_found(method: str) -> None:
    architecture = Architecture("resnet", SMALL)
    spec, tensors = permutation_spec(architecture), random_init(architecture, 1)
    generator = torch.Generator().manual_seed(5)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    copy = permute(spec, tensors, permutations)
    rows = torch.randn(4, 64, generator=generator)
    same = apply(architecture, copy, rows)
    torch.testing.assert_close(same, apply(architecture, tensors, rows))
    pair = verified(architecture, tensors), verified(architecture, copy)
    aligned = ALIGNERS[method](*pair, seed=0, probe_RF=torch.randn(64, 64, generator=generator))
    recipe = aligned.exact_recipe.with_alpha(Millionths(ONE))
    assert weights_root(apply_recipe(architecture, tensors, copy, recipe)) == weights_root(tensors)


@pytest.mark.parametrize("method", ["weight-matching", "activation-matching", "universe"])
def test_a_copy_whose_norms_were_rescaled_comes_back_by_a_recipe(method: str) -> None:
    architecture = Architecture("resnet", SMALL)
    tensors = random_init(architecture, 1)
    generator = torch.Generator().manual_seed(5)
    copy = moved(architecture, tensors, generator)
    largest = max(float(t.abs().max()) for name, t in copy.items() if "norm" in name)
    assert largest > 4
    pair = verified(architecture, tensors), verified(architecture, copy)
    aligned = ALIGNERS[method](*pair, seed=0, probe_RF=torch.randn(64, 64, generator=generator))
    recipe = aligned.exact_recipe.with_alpha(Millionths(ONE))
    for name, tensor in apply_recipe(architecture, tensors, copy, recipe).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 20}, "6n \\+ 4"),
        ({"depth": 4}, "6n \\+ 4"),
        ({"depth": 82}, "6n \\+ 4"),
        ({"widen": 17}, "widen"),
        ({"widen": 0}, "widen"),
        ({"image": [1, 3, 8]}, "image"),
        ({"image": [1, 512, 512]}, "image"),
        ({"image": [28, 28]}, "image"),
        ({"image": "1"}, "image"),
        ({"classes": True}, "classes"),
        ({"more": 1}, "fields"),
        ({"depth": 76, "widen": 16, "image": [3, 64, 64]}, "parameters"),
    ],
)
def test_a_description_of_no_network_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        Architecture("resnet", {**SMALL, **change})
