"""Whether a recipe can be applied is known from names and shapes, before anything is bought."""

from __future__ import annotations

import pytest
import torch

from node.params.architecture import Architecture, layout, part_of, permutation_spec, random_init
from node.params.families import factories
from node.params.merges import merge_bought, require_applicable
from node.params.recipe import Recipe, pack_scales
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Millionths
from tests.params import own_modules as mine
from tests.params.own_modules import FEATURES, own
from tests.params.test_adapters import OWN

HALF = Millionths(500_000)
MLP = Architecture("mlp", {"widths": [3, 4, 5, 2]})


@pytest.fixture(autouse=True)
def told_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factories, "_allowed", {})


def renumbering(**groups: int) -> Recipe:
    """A recipe that turns the units of groups of these sizes round."""
    orders = {name: tuple(reversed(range(size))) for name, size in groups.items()}
    return Recipe(permutations=orders, scales={}, alpha=HALF)


def rescaling(group: str, size: int) -> Recipe:
    return Recipe(permutations={}, scales={group: pack_scales(torch.ones(size))}, alpha=HALF)


def is_refused(architecture: Architecture, recipe: Recipe, layers: tuple[int, ...] = ()) -> None:
    """See it refused before the purchase, as the merge after it would be."""
    with pytest.raises(RemoteProtocolError) as before:
        require_applicable(architecture, layout(architecture, layers), recipe)
    assert before.value.reason == "bad-recipe"
    with pytest.raises(RemoteProtocolError):
        applied(architecture, recipe, layers)


def is_applied(architecture: Architecture, recipe: Recipe, layers: tuple[int, ...] = ()) -> None:
    require_applicable(architecture, layout(architecture, layers), recipe)
    applied(architecture, recipe, layers)


def applied(architecture: Architecture, recipe: Recipe, layers: tuple[int, ...]) -> None:
    ours, theirs = random_init(architecture, 1), random_init(architecture, 2)
    sold = part_of(architecture, theirs, layers)
    merge_bought((architecture, ours), (architecture, sold), recipe)


def test_groups_of_other_names_and_sizes_are_refused_before_the_purchase() -> None:
    is_applied(MLP, renumbering(**{"hidden.0": 4}))
    is_applied(MLP, rescaling("hidden.1", 5))
    is_refused(MLP, renumbering(**{"hidden.0": 5}))
    is_refused(MLP, renumbering(**{"hidden.2": 4}))
    is_refused(MLP, rescaling("hidden.1", 4))


def test_what_is_done_to_layers_that_are_not_sold_is_refused_before_the_purchase() -> None:
    first = (0,)
    is_applied(MLP, renumbering(**{"hidden.0": 4}), first)
    is_refused(MLP, renumbering(**{"hidden.1": 5}), first)
    is_refused(MLP, rescaling("hidden.0", 4), first)  # whoever reads those units is not sold
    unsold = Recipe(
        permutations={}, scales={}, alpha=HALF, shares={"layers.1.bias": (Millionths(0),) * 5}
    )
    is_applied(MLP, unsold)
    is_refused(MLP, unsold, first)


def test_a_recipe_of_another_reading_of_a_module_is_refused_before_the_purchase() -> None:
    """Another PyTorch may name the groups of one function otherwise, or find others."""
    architecture = own(mine.perceptron, FEATURES)
    groups = {name: group.size for name, group in permutation_spec(architecture).groups.items()}
    is_applied(architecture, renumbering(**groups))
    is_refused(architecture, renumbering(**{f"other {n}": size for n, size in groups.items()}))
    is_refused(architecture, renumbering(**{n: size + 1 for n, size in groups.items()}))


def test_a_module_that_nobody_can_read_here_is_bought_as_it_is_numbered() -> None:
    architecture = own(mine.sorting, FEATURES)
    is_applied(architecture, Recipe(permutations={}, scales={}, alpha=HALF))
    is_refused(architecture, renumbering(units=20))


def test_of_adapters_a_recipe_says_the_share_alone() -> None:
    is_applied(OWN.architecture, Recipe(permutations={}, scales={}, alpha=HALF))
    is_refused(OWN.architecture, renumbering(units=2))
