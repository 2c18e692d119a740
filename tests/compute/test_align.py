from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align import gauge
from broker_node.align.assignments import assign
from broker_node.align.gauge import balanced_scales, without_dead_units
from broker_node.align.matching import match_units
from broker_node.align.preservation import require_same_function
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import AlignmentError, ArchitectureMismatchError
from broker_node.align.weight_matching import weight_matching
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, apply, permutation_spec, random_init
from node.params.encoding import weights_root
from node.params.permutation import permute, rescale
from node.params.recipe import interpolate
from node.protocol.types import ONE, Millionths

PAPER = Architecture("mlp", {"widths": [784, 32, 32, 32, 16, 10]})


def verified(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def disguised(
    model: Verified, seed: int, *, octaves: float = 8.0
) -> tuple[Verified, dict[str, list[int]]]:
    """Return a permuted, rescaled copy, and where each of its units came from."""
    spec = permutation_spec(model.architecture)
    generator = torch.Generator().manual_seed(seed)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.exp2(octaves * (2 * torch.rand(group.size, generator=generator) - 1))
        for name, group in spec.groups.items()
    }
    tensors = rescale(spec, permute(spec, model.tensors, permutations), scales)
    return verified(model.architecture, tensors), permutations


@given(seed=st.integers(0, 2**31), widths=st.lists(st.integers(1, 12), min_size=3, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_permuted_rescaled_copy_is_recovered_exactly(seed: int, widths: list[int]) -> None:
    architecture = Architecture("mlp", {"widths": [8, *widths, 3]})
    ours = verified(architecture, random_init(architecture, seed))
    theirs, permutations = disguised(ours, seed)
    aligned = weight_matching(ours, theirs, seed=seed)
    for group, permutation in permutations.items():
        found = aligned.exact_recipe.permutations[group]
        assert [permutation[unit] for unit in found] == list(range(len(permutation)))
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(aligned.transformed[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [0, 1, 250_000, 500_000, 999_999, ONE])
def test_merging_with_a_disguise_of_itself_changes_nothing_at_any_alpha(alpha: int) -> None:
    ours = verified(PAPER, random_init(PAPER, 3))
    theirs, _ = disguised(ours, 4)
    aligned = ALIGNERS["weight-matching"](ours, theirs, seed=0)
    merged = interpolate(ours.tensors, aligned.transformed, Millionths(alpha))
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-7)


def test_trained_models_are_recovered_from_a_disguise(pair: tuple[Verified, Verified]) -> None:
    ours, _ = pair
    theirs, permutations = disguised(ours, 9)
    aligned = weight_matching(ours, theirs, seed=0)
    for group, permutation in permutations.items():
        found = aligned.exact_recipe.permutations[group]
        assert [permutation[unit] for unit in found] == list(range(len(permutation)))


def test_a_sellers_disguise_does_not_change_the_merge(pair: tuple[Verified, Verified]) -> None:
    ours, theirs = pair
    hidden, _ = disguised(theirs, 1)
    plain = weight_matching(ours, theirs, seed=2)
    through_disguise = weight_matching(ours, hidden, seed=2)
    for name, tensor in plain.transformed.items():
        torch.testing.assert_close(through_disguise.transformed[name], tensor, rtol=1e-4, atol=1e-6)


def test_alignment_never_changes_what_is_sold(pair: tuple[Verified, Verified]) -> None:
    ours, theirs = pair
    inputs_RF = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    expected = apply(theirs.architecture, theirs.tensors, inputs_RF)
    for name, align in ALIGNERS.items():
        if name in {"orthogonal", "learned-gauge", "joint-matching"}:
            continue  # for language models and modules of one's own: they refuse all others
        aligned = align(ours, theirs, seed=0, probe_RF=inputs_RF)
        if aligned.recipe is None:
            continue  # a product that is made of both models: nobody buys it with a recipe
        outputs = apply(theirs.architecture, aligned.transformed, inputs_RF)
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_alignment_is_the_same_for_the_same_seed(pair: tuple[Verified, Verified]) -> None:
    ours, theirs = pair
    first, second = (weight_matching(ours, theirs, seed=7) for _ in range(2))
    assert first.alignment_hash == second.alignment_hash
    assert first.exact_recipe.encode() == second.exact_recipe.encode()


def test_models_of_two_architectures_are_not_aligned() -> None:
    small = Architecture("mlp", {"widths": [3, 4, 2]})
    deep = Architecture("mlp", {"widths": [3, 4, 4, 2]})
    ours, theirs = (verified(a, random_init(a, 0)) for a in (small, deep))
    for align in ALIGNERS.values():
        with pytest.raises(ArchitectureMismatchError):
            align(ours, theirs, seed=0)


def test_dead_units_are_carried_along() -> None:
    tensors = random_init(PAPER, 0)
    tensors["layers.0.weight"][3] = 0
    tensors["layers.0.bias"][3] = 0
    tensors["layers.2.weight"][:, 5] = 0
    ours = verified(PAPER, tensors)
    dead = {name: tensor.clone() for name, tensor in tensors.items()}
    dead["layers.1.weight"][:, 3] *= 1000  # reads a unit that is always 0
    dead["layers.1.weight"][5] *= 1000  # writes a unit that nothing reads
    theirs, _ = disguised(verified(PAPER, dead), 1)
    aligned = weight_matching(ours, theirs, seed=0)
    merged = interpolate(ours.tensors, aligned.transformed, Millionths(ONE // 2))
    inputs_RF = torch.randn(32, 784, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        apply(PAPER, merged, inputs_RF), apply(PAPER, tensors, inputs_RF), rtol=1e-4, atol=1e-6
    )


def test_a_model_of_zeros_is_aligned_without_a_nan() -> None:
    zeros = {name: torch.zeros_like(t) for name, t in random_init(PAPER, 0).items()}
    aligned = weight_matching(
        verified(PAPER, random_init(PAPER, 1)), verified(PAPER, zeros), seed=0
    )
    assert all(bool((tensor == 0).all()) for tensor in aligned.transformed.values())


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_canonical_scales_forget_the_scales_a_model_came_in(seed: int) -> None:
    architecture = Architecture("mlp", {"widths": [4, 5, 6, 3]})
    spec = permutation_spec(architecture)
    tensors = {name: t.double() for name, t in random_init(architecture, seed).items()}
    generator = torch.Generator().manual_seed(seed)
    other = {
        name: torch.exp2(20 * (torch.rand(group.size, generator=generator).double() - 0.5))
        for name, group in spec.groups.items()
    }
    moved = rescale(spec, tensors, other)
    canonical = rescale(spec, tensors, balanced_scales(spec, tensors))
    canonical_moved = rescale(spec, moved, balanced_scales(spec, moved))
    for name in tensors:
        torch.testing.assert_close(canonical_moved[name], canonical[name], rtol=1e-5, atol=1e-9)


def test_a_chain_too_deep_to_balance_whole_forgets_its_scales_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    architecture = Architecture("mlp", {"widths": [4, *[3] * 40, 2]})
    spec = permutation_spec(architecture)
    ours = {name: t.double() for name, t in random_init(architecture, 0).items()}
    generator = torch.Generator().manual_seed(0)
    scales = {
        name: torch.exp2(8 * (torch.rand(group.size, generator=generator).double() - 0.5))
        for name, group in spec.groups.items()
    }
    whole = balanced_scales(spec, ours)
    reads: list[int] = []
    sums = gauge._sums

    def counted(uses: list[Any], *rest: Any) -> Any:
        reads.append(len(uses))
        return sums(uses, *rest)

    monkeypatch.setattr(gauge, "MAX_WORK", 5e6)
    monkeypatch.setattr(gauge, "_sums", counted)
    cut = balanced_scales(spec, ours)
    assert sum(reads) * gauge.OVERHEAD < 3 * gauge.MAX_WORK
    assert any(not torch.allclose(cut[name], whole[name], rtol=1e-5) for name in cut)
    moved = rescale(spec, ours, scales)
    canonical, canonical_moved = (
        rescale(spec, tensors, balanced_scales(spec, tensors)) for tensors in (ours, moved)
    )
    for name in ours:
        torch.testing.assert_close(canonical_moved[name], canonical[name], rtol=1e-5, atol=1e-9)


def test_what_enters_a_unit_weighs_as_much_as_what_leaves_it() -> None:
    spec = permutation_spec(PAPER)
    tensors = {name: t.double() for name, t in random_init(PAPER, 0).items()}
    balanced = rescale(spec, tensors, balanced_scales(spec, tensors))
    for layer in range(4):
        weight, bias = balanced[f"layers.{layer}.weight"], balanced[f"layers.{layer}.bias"]
        into_U = weight.square().sum(1) + bias.square()
        out_U = balanced[f"layers.{layer + 1}.weight"].square().sum(0)
        torch.testing.assert_close(into_U, out_U, rtol=1e-5, atol=0)


def test_no_other_scales_have_a_smaller_sum_of_squares() -> None:
    spec = permutation_spec(PAPER)
    tensors = {name: t.double() for name, t in random_init(PAPER, 0).items()}
    best = balanced_scales(spec, tensors)

    def squares(scales: dict[str, torch.Tensor]) -> float:
        return sum(float(t.square().sum()) for t in rescale(spec, tensors, scales).values())

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = {
            group: scale * torch.exp(0.1 * torch.randn(len(scale), generator=generator))
            for group, scale in best.items()
        }
        assert squares(best) < squares(other)


def test_a_unit_without_effect_lends_no_weight_to_its_neighbours() -> None:
    spec = permutation_spec(PAPER)
    tensors = random_init(PAPER, 0)
    tensors["layers.0.weight"][3] = 0
    tensors["layers.0.bias"][3] = 0
    tensors["layers.2.weight"][:, 5] = 0
    cleared = without_dead_units(spec, tensors)
    assert bool((cleared["layers.1.weight"][:, 3] == 0).all())
    assert bool((cleared["layers.1.weight"][5] == 0).all())
    assert float(cleared["layers.1.bias"][5]) == 0
    inputs_RF = torch.randn(16, 784, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(apply(PAPER, cleared, inputs_RF), apply(PAPER, tensors, inputs_RF))


@given(size=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_an_assignment_is_the_best_of_all_permutations(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(size, size, generator=generator, dtype=torch.float64)
    units = torch.arange(size)
    found = float(similarity[units, assign(similarity)].sum())
    best = max(
        float(similarity[units, torch.tensor(p)].sum()) for p in itertools.permutations(range(size))
    )
    assert found == pytest.approx(best)


def test_the_objective_is_attained_and_better_than_without_matching(
    pair: tuple[Verified, Verified],
) -> None:
    ours, theirs = pair
    spec = permutation_spec(ours.architecture)
    found = match_units(spec, ours.tensors, theirs.tensors, seed=0)

    def objective(others: Mapping[str, torch.Tensor]) -> float:
        return sum(float((t.double() * others[n].double()).sum()) for n, t in ours.tensors.items())

    assert found.objective == pytest.approx(
        objective(permute(spec, theirs.tensors, found.permutations))
    )
    assert found.objective >= objective(theirs.tensors)


def test_a_transformation_that_changes_the_function_is_an_error() -> None:
    tensors = random_init(PAPER, 0)
    broken = {name: tensor * 1.01 for name, tensor in tensors.items()}
    with pytest.raises(AlignmentError):
        require_same_function(PAPER, tensors, broken)


def test_tensors_without_a_function_are_aligned_by_leaving_them_alone() -> None:
    noise = Architecture("random", {"shapes": {"a": [4, 4]}})
    ours, theirs = (verified(noise, random_init(noise, seed)) for seed in (0, 1))
    aligned = weight_matching(ours, theirs, seed=0)
    assert torch.equal(aligned.transformed["a"], theirs.tensors["a"])
    with pytest.raises(AlignmentError):
        require_same_function(noise, theirs.tensors, ours.tensors)
