"""Some layers of a model are a parameter set of their own, that has one name."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.params.architecture import (
    Architecture,
    layout,
    part_of,
    permutation_spec,
    random_init,
)
from node.params.encoding import encode_tensors, layout_of, weights_root
from node.params.families.base import ArchitectureError
from node.params.permutation import restrict
from node.protocol.parameters import encoded_length

PAPER = Architecture("mlp", {"widths": [784, 32, 32, 32, 16, 10]})
SMALL = Architecture("mlp", {"widths": [4, 3, 3, 3, 2]})
SUBSETS = [
    layers for count in (1, 2, 3) for layers in itertools.combinations(range(4), count)
]  # fmt: skip


@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_a_part_holds_the_tensors_of_its_layers_and_no_others(layers: tuple[int, ...]) -> None:
    tensors = random_init(SMALL, 0)
    part = part_of(SMALL, tensors, layers)
    assert set(part) == {f"layers.{i}.{kind}" for i in layers for kind in ("bias", "weight")}
    assert all(part[name] is tensors[name] for name in part)
    assert layout_of(part) == layout(SMALL, layers)
    assert len(encode_tensors(part)) == encoded_length(layout(SMALL, layers))


def test_every_part_of_a_model_has_a_root_of_its_own() -> None:
    # three of the layers have equal shapes, and here equal numbers too
    tensors = {name: torch.ones_like(tensor) for name, tensor in random_init(SMALL, 0).items()}
    roots = {weights_root(part_of(SMALL, tensors, layers)) for layers in [(), *SUBSETS]}
    assert len(roots) == 1 + len(SUBSETS)


def test_no_layers_named_are_all_of_them() -> None:
    assert layout(PAPER, ()) == layout(PAPER)
    assert part_of(SMALL, random_init(SMALL, 1), ()).keys() == random_init(SMALL, 1).keys()


@pytest.mark.parametrize(
    ("architecture", "layers", "told"),
    [
        (PAPER, (5,), "no such layers"),
        (PAPER, (0, 2**64 - 1), "no such layers"),
        (PAPER, (-1,), "no such layers"),
        (PAPER, (1, 0), "must rise"),
        (PAPER, (1, 1), "must rise"),
        (PAPER, (0, 1, 2, 3, 4), "all layers are written as none"),
        (PAPER, tuple(range(1_024)), "no such layers"),
        (Architecture("mlp", {"widths": [4, 2]}), (0,), "all layers are written as none"),
        (Architecture("linear", {"inputs": 4, "outputs": 2}), (0,), "`linear` is sold whole"),
        (Architecture("random", {"shapes": {"layers.0": [4]}}), (0,), "`random` is sold whole"),
    ],
)
def test_layers_that_name_no_part_of_a_model_are_refused(
    architecture: Architecture, layers: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ArchitectureError, match=told) as refused:
        layout(architecture, layers)
    assert refused.value.reason == "bad-layers"
    assert len(refused.value.detail) < 200


# ── what may be done to a part alone ──


@given(widths=st.lists(st.integers(1, 5), min_size=3, max_size=7), chosen=st.data())
def test_only_units_between_sold_layers_may_be_rescaled(
    widths: list[int], chosen: st.DataObject
) -> None:
    architecture = Architecture("mlp", {"widths": widths})
    count = len(widths) - 1
    layers = chosen.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    whole = permutation_spec(architecture)
    spec = restrict(whole, {s.name for s in layout(architecture, sorted(layers))})
    touched = {i for i in range(count - 1) if {i, i + 1} & layers}
    assert set(spec.groups) == {f"hidden.{i}" for i in touched}
    assert set(spec.rescalings) == {f"hidden.{i}" for i in touched if {i, i + 1} <= layers}
    assert all(spec.groups[name].size == whole.groups[name].size for name in spec.groups)
    # groups stand in the order of the data, which the matching relies on
    assert list(spec.groups) == [name for name in whole.groups if name in spec.groups]


def test_all_of_a_model_may_be_treated_as_the_whole_of_it() -> None:
    whole = permutation_spec(PAPER)
    assert restrict(whole, random_init(PAPER, 0)) == whole
