"""What a buyer has after it bought adapters: ranks added, of one base, at the share agreed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from node.agent import progress as journalled
from node.agent.merging import require_mergeable
from node.agent.progress import Progress
from node.journal import Journal
from node.params.adapters import Adapter, cosine, delta, fitted, merged, weighted_sum
from node.params.architecture import Architecture, layout, random_init
from node.params.encoding import layout_of, weights_root
from node.params.errors import ProfileError
from node.params.families.lora import MAX_RANK
from node.params.merges import (
    architecture_after,
    mean_of_merges,
    merge_bought,
    unscaled,
)
from node.params.recipe import NO_ALIGNMENT, Recipe, apply_recipe
from node.protocol.errors import RemoteProtocolError
from node.protocol.kinship import is_adapter, require_kin
from node.protocol.types import ONE, Digest, Millionths
from tests.params.test_adapters import BASE, MLP, OTHER, OWN, SOLD, adapter_of, added

THIRD = Millionths(333_333)


def sides(*adapters: Adapter) -> list[tuple[Architecture, dict[str, torch.Tensor]]]:
    return [(each.architecture, dict(each.tensors)) for each in adapters]


@pytest.mark.parametrize("alpha", [0, THIRD, ONE])
def test_the_recipe_of_a_purchase_gives_the_adapter_that_was_measured(alpha: int) -> None:
    share = Millionths(alpha)
    own, sold = sides(OWN, SOLD)
    architecture, tensors = merge_bought(own, sold, NO_ALIGNMENT.with_alpha(share))
    wanted = merged(OWN, SOLD, share)
    assert architecture == wanted.architecture == architecture_after(own[0], sold[0], share)
    assert weights_root(tensors) == weights_root(wanted.tensors)


def test_models_are_interpolated_as_ever() -> None:
    recipe = NO_ALIGNMENT.with_alpha(THIRD)
    architecture, tensors = merge_bought((MLP, BASE.tensors), (MLP, OTHER.tensors), recipe)
    wanted = apply_recipe(MLP, BASE.tensors, OTHER.tensors, recipe)
    assert architecture == MLP == architecture_after(MLP, MLP, THIRD)
    assert weights_root(tensors) == weights_root(wanted)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(permutations={"hidden.0": (0, 1)}, scales={}, alpha=THIRD),
        Recipe(permutations={}, scales={"hidden.0": bytes(40)}, alpha=THIRD),
        Recipe(permutations={"": ()}, scales={}, alpha=THIRD),
    ],
)
def test_a_recipe_that_would_renumber_or_rescale_adapters_is_refused(recipe: Recipe) -> None:
    own, sold = sides(OWN, SOLD)
    with pytest.raises(RemoteProtocolError) as refused:
        merge_bought(own, sold, recipe)
    assert refused.value.reason == "bad-recipe"


def test_what_is_no_kin_is_refused_by_its_text_alone() -> None:
    theirs = adapter_of({"layers.0": [4, 8]}, 3, OTHER)
    cases = {
        "wrong-base": (OWN.architecture, theirs.architecture),
        "architecture-mismatch": (OWN.architecture, MLP),
    }
    for reason, (own, sold) in cases.items():
        for one, other in ((own, sold), (sold, own)):
            for refuse in (
                lambda one=one, other=other: require_kin(one.text, other.text),
                lambda one=one, other=other: require_mergeable(one.text, other.text),
                lambda one=one, other=other: architecture_after(one, other, THIRD),
                lambda one=one, other=other: merge_bought(
                    (one, {}), (other, {}), NO_ALIGNMENT.with_alpha(THIRD)
                ),
            ):
                with pytest.raises(RemoteProtocolError) as refused:
                    refuse()
                assert refused.value.reason == reason
    with pytest.raises(RemoteProtocolError, match=OTHER.root.hex()[-8:]):
        require_kin(OWN.architecture.text, theirs.architecture.text)
    require_mergeable(OWN.architecture.text, SOLD.architecture.text)
    require_mergeable("what nobody reads", "what nobody reads")


def test_two_that_are_too_large_together_are_refused_before_they_are_tried() -> None:
    wide = adapter_of({"layers.0": [MAX_RANK - 3, 1]}, 1).architecture
    with pytest.raises(RemoteProtocolError) as refused:
        require_mergeable(OWN.architecture.text, wide.text)
    assert refused.value.reason == "bad-architecture"
    slim = adapter_of({"layers.0": [MAX_RANK - 4, 1]}, 1).architecture
    require_mergeable(OWN.architecture.text, slim.text)


def test_several_purchases_are_fused_as_the_mean_of_their_merges() -> None:
    third = adapter_of({"layers.1": [2, 5]}, 7)
    shares = (Millionths(250_000), Millionths(600_000))
    own, first, second = sides(OWN, SOLD, third)
    architecture, tensors = mean_of_merges(own, [(*first, shares[0]), (*second, shares[1])])
    found = Adapter(architecture, tensors)
    pairs = zip((SOLD, third), shares, strict=True)
    wanted = weighted_sum([(0.5, merged(OWN, sold, share)) for sold, share in pairs])
    assert {each.path: each.rank for each in found.lora.modules} == {
        "layers.0": 4 + 3,
        "layers.1": 2 + 2,
        "layers.2": 1,
    }
    for module, twin in zip(found.lora.modules, wanted.lora.modules, strict=True):
        torch.testing.assert_close(delta(found, module), delta(wanted, twin))
    with pytest.raises(RemoteProtocolError, match="wrong-base"):
        stranger = adapter_of({"layers.0": [4, 8]}, 3, OTHER)
        mean_of_merges(own, [(*sides(stranger)[0], THIRD)])


def test_a_merge_is_brought_back_to_the_ranks_that_are_trained_and_says_what_is_lost() -> None:
    both = merged(OWN, SOLD, THIRD)
    found, lost = fitted(both, OWN.lora)
    assert found.architecture == OWN.architecture
    before, after = added(both), added(found)
    left = sum(
        float((before[path] - after.get(path, torch.zeros_like(before[path]))).square().sum())
        for path in before
    )
    whole = sum(float(each.square().sum()) for each in before.values())
    assert lost == pytest.approx((left / whole) ** 0.5, rel=1e-5)
    assert 0 < lost < 1
    same, nothing = fitted(OWN, OWN.lora)
    assert cosine(same, OWN) == pytest.approx(1, abs=1e-6)
    assert nothing < 1e-6
    wider, nothing = fitted(OWN, adapter_of({**modules_of(OWN), "layers.2": [3, 3]}, 0).lora)
    assert cosine(wider, OWN) == pytest.approx(1, abs=1e-6)
    assert nothing < 1e-6
    with pytest.raises(ProfileError, match="wrong-base"):
        fitted(OWN, adapter_of({"layers.0": [4, 8]}, 3, OTHER).lora)


def modules_of(adapter: Adapter) -> dict[str, list[int]]:
    return {each.path: [each.rank, each.alpha] for each in adapter.lora.modules}


def test_scales_are_brought_within_the_factors() -> None:
    tensors = unscaled(OWN.architecture, OWN.tensors)
    ranks = {path: [rank, rank] for path, (rank, _) in modules_of(OWN).items()}
    found = Adapter(adapter_of(ranks, 0).architecture, tensors)
    assert cosine(found, OWN) == pytest.approx(1, abs=1e-6)


def test_where_an_agent_stands_says_of_which_ranks_and_of_models_nothing(tmp_path: Path) -> None:
    text = OWN.architecture.text
    assert is_adapter(text)
    assert not is_adapter(MLP.text)
    root, earlier = Digest(bytes(32)), (Digest(bytes([1]) * 32),)
    journal = Journal(tmp_path / "journal.db")
    try:
        for said in (
            Progress(1, 2, root, True, earlier, text),
            Progress(1, 2, root, False, (), text),
            Progress(1, 2, root, False, earlier),
            Progress(1, 2, root, False),
        ):
            journalled.remember(journal, said)
            assert journalled.recall(journal) == said
    finally:
        journal.close()
    stands = Progress(1, 2, root, True, earlier)
    assert stands.ended(text, root) == Progress(2, 2, root, False, (), text)
    assert stands.ended(MLP.text, root) == Progress(2, 2, root, False)


def test_a_new_adapter_has_the_layout_that_its_text_gives() -> None:
    fresh = random_init(OWN.architecture, 1)
    assert layout_of(fresh) == layout(OWN.architecture)
