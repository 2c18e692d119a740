"""Models of one's own modules are lined up, merged and measured as the market's families are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from broker_node.align.bases import with_bases
from broker_node.align.joint import NAME as JOINT
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import AlignmentError
from broker_node.evaluate.curve import row_losses
from broker_node.merge.registry import MERGERS
from broker_node.merge.reset import reset
from broker_node.merge.stages import Merged, Rows
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params import blocks
from node.params.architecture import (
    Architecture,
    apply,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.encoding import weights_root
from node.params.families import factories
from node.params.families.base import ArchitectureError
from node.params.families.own import OwnModule
from node.params.permutation import PermutationSpec, Tensors, permute
from node.params.recipe import apply_recipe, interpolate
from node.protocol.types import ONE, Millionths
from tests.params import own_modules as mine
from tests.params.own_modules import CLASSES, FEATURES, IMAGE, own

EXACT = ("weight-matching", "activation-matching", "universe")
HALF = Millionths(ONE // 2)


@pytest.fixture(autouse=True)
def told_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(factories, "_allowed", {})


def verified(architecture: Architecture, tensors: Tensors) -> Verified:
    held = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    root = weights_root(held)
    return verify(Received(weights_root=root, architecture=architecture, tensors=held))


def stirred(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Tensors of which none holds the same along an axis, as fresh norms do; variances positive."""
    generator = torch.Generator().manual_seed(seed + 99)
    return {
        name: t * (1 + torch.rand(t.shape, generator=generator) / 2)
        + torch.rand(t.shape, generator=generator) / 20
        for name, t in random_init(architecture, seed).items()
    }


def drawn_order(spec: PermutationSpec, seed: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }


def some_rows(count: int = 120, seed: int = 5) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs_RF = torch.rand(count, FEATURES, generator=generator)
    # a rule that can be learnt: the brightest of ten stretches
    targets_R = inputs_RF[:, :60].reshape(count, CLASSES, 6).sum(2).argmax(1)
    return Rows(inputs_RF, targets_R)


def run(method: str, pair: object, rows: Rows) -> Merged:
    return MERGERS[method]([pair], rows, seed=0)  # type: ignore[list-item]


MODULES = [(mine.perceptron, [FEATURES]), (mine.residual, IMAGE), (mine.transformer, IMAGE)]


@pytest.mark.parametrize(("factory", "sides"), MODULES)
@pytest.mark.parametrize("method", EXACT)
def test_a_copy_in_another_numbering_is_found_by_a_recipe(
    factory: Callable[..., object], sides: list[int], method: str
) -> None:
    architecture = own(factory, *sides)
    spec = permutation_spec(architecture)
    tensors = stirred(architecture, 0)
    order = drawn_order(spec, 0)
    buyer, seller = (verified(architecture, t) for t in (tensors, permute(spec, tensors, order)))
    found = ALIGNERS[method](buyer, seller, seed=0, probe_RF=some_rows().inputs_RF)
    assert set(found.exact_recipe.permutations) == set(spec.groups)
    for name, tensor in buyer.tensors.items():
        assert torch.allclose(found.transformed[name], tensor, atol=1e-5), name
    # and the recipe alone makes it, byte for byte
    recipe = found.exact_recipe.with_alpha(HALF)
    again = apply_recipe(
        parse_architecture(architecture.text), buyer.tensors, seller.tensors, recipe
    )
    merged = interpolate(buyer.tensors, found.transformed, HALF)
    assert all(torch.equal(again[name], merged[name]) for name in merged)


@pytest.mark.parametrize(("factory", "sides"), MODULES)
def test_a_copy_renumbered_inside_of_its_heads_is_found_by_joint_matching(
    factory: Callable[..., object], sides: list[int]
) -> None:
    architecture = own(factory, *sides)
    assert isinstance(architecture.model, OwnModule)
    spec = architecture.model.symmetries()
    tensors = stirred(architecture, 0)
    joint = blocks.random_permutation(spec, torch.Generator().manual_seed(1))
    buyer, seller = (
        verified(architecture, t) for t in (tensors, blocks.permute(spec, tensors, joint))
    )
    found = ALIGNERS[JOINT](buyer, seller, seed=0)
    assert found.recipe is None
    # who knows how the copy was renumbered knows what finding it is named
    turning = {gauge.group for gauge in with_bases(spec)}
    order = blocks.inverse(spec, joint)
    known = {group: units for group, units in order.items() if group not in turning}
    assert found.alignment_hash == blocks.permutation_hash(spec, known)
    for name, tensor in buyer.tensors.items():
        assert torch.allclose(found.transformed[name], tensor, atol=1e-5), name
    if factory is mine.transformer:  # which nothing that a recipe can say would have found
        plain = ALIGNERS["weight-matching"](buyer, seller, seed=0).transformed
        name = "layer.self_attn.in_proj_weight"
        assert not torch.allclose(plain[name], buyer.tensors[name], atol=1e-2)


def test_joint_matching_of_a_language_model_finds_what_a_recipe_would() -> None:
    config = {"context": 6, "depth": 1, "heads": 3, "hidden": 12, "norm": "layer", "tied": False,
              "vocabulary": 11, "width": 12}  # fmt: skip
    architecture = Architecture("gpt", config)
    tensors = stirred(architecture, 0)
    spec, buyer = permutation_spec(architecture), verified(architecture, tensors)
    for seed in range(4):
        seller = verified(architecture, permute(spec, tensors, drawn_order(spec, seed)))
        found = ALIGNERS[JOINT](buyer, seller, seed=0).transformed
        assert all(torch.allclose(found[name], tensors[name], atol=1e-5) for name in tensors)
    perceptron = Architecture("mlp", {"widths": [4, 3, 2]})
    one = verified(perceptron, random_init(perceptron, 0))
    with pytest.raises(AlignmentError, match="`weight-matching` does it all here"):
        ALIGNERS[JOINT](one, one, seed=0)


def test_statistics_of_data_are_no_ground_to_match_units_by() -> None:
    architecture = own(mine.residual, *IMAGE)
    ours, theirs = stirred(architecture, 0), stirred(architecture, 1)
    # so large that, were they weights, nothing else would have a say
    loud = {n: t * (1000 if "running" in n else 1) for n, t in theirs.items()}
    buyer = verified(architecture, ours)
    for method in ("weight-matching", JOINT):
        quiet, heard = (
            ALIGNERS[method](buyer, verified(architecture, side), seed=0).transformed
            for side in (theirs, loud)
        )
        assert all(torch.equal(quiet[n], heard[n]) for n in quiet if "running" not in n)
        assert torch.allclose(1000 * quiet["stem.1.running_var"], heard["stem.1.running_var"])


def test_units_scaled_by_a_seller_make_no_difference_to_joint_matching() -> None:
    architecture = own(mine.perceptron, FEATURES)
    tensors = stirred(architecture, 0)
    theirs = {name: tensor.clone() for name, tensor in stirred(architecture, 1).items()}
    scaled = dict(theirs)
    scaled["2.weight"], scaled["2.bias"] = 50 * theirs["2.weight"], 50 * theirs["2.bias"]
    scaled["4.weight"] = theirs["4.weight"] / 50
    buyer = verified(architecture, tensors)
    plain, other = (
        ALIGNERS[JOINT](buyer, verified(architecture, side), seed=0).transformed
        for side in (theirs, scaled)
    )
    assert all(torch.allclose(plain[name], other[name], rtol=1e-4, atol=1e-5) for name in plain)


@pytest.mark.parametrize(("factory", "sides"), MODULES)
@pytest.mark.parametrize(
    "method",
    sorted(set(MERGERS) - {"repair", "reset", "task-arithmetic", "ties", "ensemble", "outright"}),
)
def test_merges_of_modules_are_models_that_answer(
    factory: Callable[..., object], sides: list[int], method: str
) -> None:
    architecture, rows = own(factory, *sides), some_rows()
    buyer, seller = (verified(architecture, stirred(architecture, seed)) for seed in (0, 1))
    pair = ALIGNERS["weight-matching"](buyer, seller, seed=0)
    merged = run(method, pair, rows)
    assert merged.tensors is not None
    assert set(merged.tensors) == set(buyer.tensors)
    losses_R = row_losses(architecture, merged.tensors, rows.inputs_RF, rows.targets_R)
    assert bool(torch.isfinite(losses_R).all())


def test_resetting_gives_a_merge_the_statistics_of_its_own_rows() -> None:
    architecture, rows = own(mine.residual, *IMAGE), some_rows()
    buyer, seller = (verified(architecture, stirred(architecture, seed)) for seed in (0, 1))
    pair = ALIGNERS["weight-matching"](buyer, seller, seed=0)
    merged = interpolate(buyer.tensors, pair.transformed, HALF)
    found = reset(architecture, merged, rows.inputs_RF)
    changed = {name for name in merged if not torch.equal(found[name], merged[name])}
    assert changed == {name for name in merged if "running" in name}
    # of the first norm, whose inputs no other norm has touched: those of a convolution
    images = rows.inputs_RF.reshape(-1, *IMAGE)
    entering = functional.conv2d(images, merged["stem.0.weight"], merged["stem.0.bias"], padding=1)
    assert torch.allclose(found["stem.1.running_mean"], entering.mean((0, 2, 3)), atol=1e-4)


def test_a_merge_that_is_reset_is_better_where_the_plain_one_is_starved_of_variance() -> None:
    architecture, rows = own(mine.residual, *IMAGE), some_rows(400)
    model = architecture.model
    assert isinstance(model, OwnModule)

    def trained(seed: int) -> Verified:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = model.module_with(random_init(architecture, seed)).train()
            steps = torch.optim.Adam(module.parameters(), lr=1e-2)
            for _ in range(25):
                loss = functional.cross_entropy(model.run(module, rows.inputs_RF), rows.targets_R)
                steps.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                steps.step()
        return verified(architecture, model.tensors_of(module))

    pair = ALIGNERS["weight-matching"](trained(0), trained(1), seed=0)
    half = interpolate(pair.buyer.tensors, pair.transformed, HALF)
    losses = [
        float(row_losses(architecture, t, rows.inputs_RF, rows.targets_R).mean())
        for t in (half, reset(architecture, half, rows.inputs_RF))
    ]
    assert losses[1] < losses[0]
    merged = run("reset", pair, rows)
    assert merged.recipe is None
    assert merged.tensors is not None
    found = float(row_losses(architecture, merged.tensors, rows.inputs_RF, rows.targets_R).mean())
    assert found <= losses[1] + 1e-6


def test_a_module_that_cannot_be_copied_is_reset_too() -> None:
    architecture, rows = own(mine.of_old_weight_norm, *IMAGE), some_rows()
    tensors = stirred(architecture, 0)
    found = reset(architecture, tensors, rows.inputs_RF)
    assert {n for n in tensors if not torch.equal(found[n], tensors[n])} == {
        "1.running_mean",
        "1.running_var",
    }


def test_what_a_module_raises_as_it_is_reset_is_named() -> None:
    architecture, rows = own(mine.fussy, FEATURES), some_rows()
    sides = [verified(architecture, stirred(architecture, seed)) for seed in (0, 1)]
    pair = ALIGNERS["identity"](*sides, seed=0)
    with pytest.raises(AlignmentError, match="it is reset on: IndexError: not in training"):
        run("reset", pair, rows)
    assert run("lerp", pair, rows).tensors is not None


def test_a_module_whose_graph_cannot_be_read_is_merged_as_it_is_numbered() -> None:
    architecture, rows = own(mine.sorting, FEATURES), some_rows()
    buyer, seller = (verified(architecture, random_init(architecture, seed)) for seed in (0, 1))
    for method in (*EXACT, JOINT):
        with pytest.raises(ArchitectureError, match=r"only --align identity .*aten.sort"):
            ALIGNERS[method](buyer, seller, seed=0, probe_RF=rows.inputs_RF)
    merged = run("lerp", ALIGNERS["identity"](buyer, seller, seed=0), rows)
    assert merged.recipe is not None
    again = apply_recipe(architecture, buyer.tensors, seller.tensors, merged.recipe)
    assert merged.tensors is not None
    assert all(torch.equal(again[name], merged.tensors[name]) for name in again)


def test_what_a_module_raises_on_rows_is_named_and_no_crash() -> None:
    architecture = own(mine.perceptron, FEATURES)
    with pytest.raises(ArchitectureError, match=r"fails on rows of \[64\] in torch.float32"):
        apply(architecture, {"0.weight": torch.zeros(3, 3)}, torch.zeros(2, FEATURES))
