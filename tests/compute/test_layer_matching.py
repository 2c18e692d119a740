"""What is sold of some layers goes into the buyer's model there, and nowhere else."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from broker_node.align import assignments, carrying, matching
from broker_node.align import weight_matching as module
from broker_node.align.preservation import require_same_function
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned, AlignmentError, ArchitectureMismatchError
from broker_node.evaluate.evaluation import evaluate, replay
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import (
    Architecture,
    layout,
    part_of,
    permutation_spec,
    random_init,
)
from node.params.encoding import weights_root
from node.params.permutation import permute, rescale, restrict
from node.params.recipe import Recipe, apply_recipe, interpolate, pack_scales, transform
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import ONE, Digest, Millionths

FOUR = Architecture("mlp", {"widths": [6, 5, 4, 5, 3]})
SUBSETS = [
    layers for count in (1, 2, 3) for layers in itertools.combinations(range(4), count)
]  # fmt: skip
SEED = Digest(bytes(32))
Tensors = Mapping[str, torch.Tensor]


def verified(
    architecture: Architecture, tensors: Tensors, layers: tuple[int, ...] = ()
) -> Verified:
    part = part_of(architecture, tensors, layers)
    return verify(
        Received(
            weights_root=weights_root(part), architecture=architecture, tensors=part, layers=layers
        )
    )


def names_of(architecture: Architecture, layers: tuple[int, ...]) -> set[str]:
    return {spec.name for spec in layout(architecture, layers)}


def rows_of(architecture: Architecture, seed: int = 0) -> ValidationSet:
    generator = torch.Generator().manual_seed(seed)
    inputs_RF = torch.randn(40, architecture.model.input_width(), generator=generator)
    return ValidationSet(inputs_RF, torch.arange(40) % 3)


# ── the merge ──


@given(
    seed=st.integers(0, 2**31),
    layers=st.sampled_from(SUBSETS),
    method=st.sampled_from(["identity", "weight-matching"]),
    alpha=st.one_of(st.sampled_from([0, ONE // 2, ONE]), st.integers(0, ONE)),
)
@settings(max_examples=60)
def test_the_buyers_other_layers_stay_its_own_to_the_byte(
    seed: int, layers: tuple[int, ...], method: str, alpha: int
) -> None:
    base = verified(FOUR, random_init(FOUR, seed))
    sold = verified(FOUR, random_init(FOUR, seed + 1), layers)
    aligned = ALIGNERS[method](base, sold, seed=seed)
    recipe = aligned.exact_recipe.with_alpha(Millionths(alpha))
    merged = apply_recipe(FOUR, base.tensors, sold.tensors, Recipe.decode(recipe.encode()))

    assert merged.keys() == base.tensors.keys()
    named = names_of(FOUR, layers)
    moved = transform(restrict(permutation_spec(FOUR), named), sold.tensors, recipe)
    assert set(aligned.transformed) == named == set(moved)
    expected = interpolate(
        {name: base.tensors[name] for name in named}, moved, Millionths(alpha)
    )  # fmt: skip
    for name, tensor in base.tensors.items():
        right = expected[name] if name in named else tensor
        assert right.numpy().tobytes() == merged[name].numpy().tobytes(), name
        assert merged[name] is not tensor
    # what the broker measures is what the buyer makes
    measured = interpolate(base.tensors, aligned.transformed, Millionths(alpha))
    assert weights_root(measured) == weights_root(merged)


@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_what_was_measured_is_what_the_buyer_gets_and_can_be_replayed(
    layers: tuple[int, ...],
) -> None:
    base = verified(FOUR, random_init(FOUR, 1))
    sold = verified(FOUR, random_init(FOUR, 2), layers)
    rows = rows_of(FOUR)
    found = evaluate(
        ALIGNERS["weight-matching"](base, sold, seed=0), rows, seed=SEED, search="half"
    )
    assert (found.base_root, found.sold_root) == (base.weights_root, sold.weights_root)
    merged = apply_recipe(FOUR, base.tensors, sold.tensors, found.recipe)
    assert weights_root(merged) == found.merged_root != base.weights_root
    root, gain = replay(
        FOUR, base.tensors, sold.tensors, found.recipe, rows, seed=SEED,
        choice_rows=found.choice_rows, score_rows=found.score_rows,
    )  # fmt: skip
    assert (root, gain.gain, gain.bound) == (found.merged_root, found.gain, found.bound)


# ── the alignment ──


def disguised(
    model: Tensors, layers: tuple[int, ...], seed: int, architecture: Architecture = FOUR
) -> tuple[Verified, dict[str, list[int]]]:
    """Return layers of a permuted copy, rescaled where no buyer could tell, and the order."""
    spec = permutation_spec(architecture)
    inside = restrict(spec, names_of(architecture, layers))
    generator = torch.Generator().manual_seed(seed)
    permutations = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in spec.groups.items()
    }
    scales = {
        name: torch.exp2(8 * (2 * torch.rand(spec.groups[name].size, generator=generator) - 1))
        for name in inside.rescalings
    }
    copy = rescale(spec, permute(spec, model, permutations), scales)
    return verified(architecture, copy, layers), permutations


@given(seed=st.integers(0, 2**31), layers=st.sampled_from(SUBSETS))
@settings(max_examples=80)
def test_the_order_of_a_permuted_copy_is_found_from_the_layers_that_are_sold(
    seed: int, layers: tuple[int, ...]
) -> None:
    ours = verified(FOUR, random_init(FOUR, seed))
    theirs, permutations = disguised(ours.tensors, layers, seed)
    aligned = ALIGNERS["weight-matching"](ours, theirs, seed=seed)
    touched = {f"hidden.{i}" for i in range(3) if {i, i + 1} & set(layers)}
    inside = {f"hidden.{i}" for i in range(3) if {i, i + 1} <= set(layers)}
    assert set(aligned.exact_recipe.permutations) == touched
    assert set(aligned.exact_recipe.scales) == inside
    for group, found in aligned.exact_recipe.permutations.items():
        order = permutations[group]
        assert [order[unit] for unit in found] == list(range(len(order))), group
    for name, tensor in aligned.transformed.items():
        torch.testing.assert_close(tensor, ours.tensors[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2), (1, 3)], ids=str)
def test_a_permuted_copy_of_an_ordinary_width_is_found_where_nothing_enters_its_first_units(
    layers: tuple[int, ...],
) -> None:
    wide = Architecture("mlp", {"widths": [64, 512, 512, 128, 10]})
    ours = verified(wide, random_init(wide, 1))
    theirs, permutations = disguised(ours.tensors, layers, 2, wide)
    aligned = ALIGNERS["weight-matching"](ours, theirs, seed=0)
    for group, found in aligned.exact_recipe.permutations.items():
        order = permutations[group]
        assert [order[unit] for unit in found] == list(range(len(order))), group


@pytest.mark.parametrize("layers", [(), *SUBSETS], ids=str)
def test_all_that_is_assigned_in_a_trial_is_counted_whatever_the_weights(
    layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No start is had by an assignment that nobody counts: that of hostile weights takes long."""
    spec = restrict(permutation_spec(FOUR), names_of(FOUR, layers))
    steps = 0.0
    assign_all = assignments.assign_all

    def count(similarities: Tensors) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += sum(float(len(similarity_UV)) ** 3 for similarity_UV in similarities.values())
        return assign_all(similarities)

    monkeypatch.setattr(matching, "assign_all", count)
    monkeypatch.setattr(matching, "RELATIVE_GAIN", -3.0)  # every sweep is said to gain
    monkeypatch.setattr(matching, "_same", lambda *_: False)  # and no group is left alone
    monkeypatch.setattr(matching, "MAX_WORK", 3_000.0)
    sides = [part_of(FOUR, random_init(FOUR, seed), layers) for seed in (0, 1)]
    matching.match_units(spec, *sides, seed=0)
    assert steps == matching.work_of(spec, matching.sweeps_of(spec)) <= 3_000


def test_what_is_common_to_a_row_or_a_column_costs_the_solver_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    solve, given_to_it = linear_sum_assignment, []

    def watch(matrix: object, **how: object) -> object:
        given_to_it.append(torch.as_tensor(matrix))
        return solve(matrix, **how)

    monkeypatch.setattr(assignments, "linear_sum_assignment", watch)
    for _ in range(20):
        units_UF = torch.rand(2, 40, 3, generator=generator, dtype=torch.float64)
        similarity_UV = units_UF[0] @ units_UF[1].T
        found_U = assignments.assign(similarity_UV)
        _, best_U = solve(similarity_UV.numpy(), maximize=True)
        rows_U = torch.arange(40)
        torch.testing.assert_close(
            similarity_UV[rows_U, found_U].sum(), similarity_UV[rows_U, torch.tensor(best_U)].sum()
        )
        (centred_UV,) = given_to_it
        given_to_it.clear()
        assert centred_UV.mean(0).abs().max() < 1e-12
        assert centred_UV.mean(1).abs().max() < 1e-12


@pytest.mark.parametrize("layers", SUBSETS, ids=str)
def test_layers_that_are_not_sold_have_no_say_in_how_units_are_matched(
    layers: tuple[int, ...],
) -> None:
    ours, theirs = random_init(FOUR, 3), random_init(FOUR, 4)
    sold = verified(FOUR, theirs, layers)
    other = {
        name: tensor if name in sold.tensors else random_init(FOUR, 5)[name]
        for name, tensor in ours.items()
    }
    first, second = (
        ALIGNERS["weight-matching"](verified(FOUR, base), sold, seed=0) for base in (ours, other)
    )
    assert first.recipe == second.recipe


def test_of_dead_units_on_the_border_nothing_is_cleared() -> None:
    """What a border unit is read by is not there to be seen: it may well be alive."""
    theirs = random_init(FOUR, 6)
    theirs["layers.1.weight"][2] = 0
    theirs["layers.1.bias"][2] = 0
    sold = verified(FOUR, theirs, (2,))
    aligned = ALIGNERS["weight-matching"](verified(FOUR, random_init(FOUR, 7)), sold, seed=0)
    moved = aligned.transformed["layers.2.weight"]
    assert sorted(moved.flatten().tolist()) == sorted(theirs["layers.2.weight"].flatten().tolist())


def test_an_alignment_is_checked_on_the_sold_layers_with_the_buyers_own_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, sold = verified(FOUR, random_init(FOUR, 8)), verified(FOUR, random_init(FOUR, 9), (0, 1))
    seen: list[Tensors] = []
    check = require_same_function

    def watch(architecture: Architecture, original: Tensors, moved: Tensors) -> None:
        seen.extend((original, moved))
        check(architecture, original, moved)

    monkeypatch.setattr(carrying, "require_same_function", watch)
    aligned: Aligned = module.weight_matching(ours, sold, seed=0)
    original, moved = seen
    assert original.keys() == moved.keys() == ours.tensors.keys()
    for name, tensor in original.items():
        assert tensor is (sold.tensors if name in sold.tensors else ours.tensors)[name]
    assert all(moved[name] is tensor for name, tensor in aligned.transformed.items())

    def slip(*arguments: object) -> dict[str, torch.Tensor]:
        return {name: tensor * 1.01 for name, tensor in transform(*arguments).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(carrying, "transform", slip)
    with pytest.raises(AlignmentError, match="outputs differ"):
        module.weight_matching(ours, sold, seed=0)


def test_some_layers_are_no_model_to_merge_into() -> None:
    part = verified(FOUR, random_init(FOUR, 0), (0, 1))
    whole = verified(FOUR, random_init(FOUR, 1))
    for align in ALIGNERS.values():
        with pytest.raises(ArchitectureMismatchError, match="no model to merge into"):
            align(part, whole, seed=0)


# ── what a hostile broker could say of it ──


@pytest.mark.parametrize(
    ("permutations", "scales"),
    [
        ({"hidden.2": (0, 1, 2, 3, 4)}, {}),
        ({}, {"hidden.1": pack_scales(torch.ones(4))}),
        ({}, {"hidden.2": pack_scales(torch.ones(5))}),
    ],
    ids=["a group out of reach", "scales on the border", "scales out of reach"],
)
def test_a_recipe_that_reaches_past_the_sold_layers_is_refused(
    permutations: dict[str, tuple[int, ...]], scales: dict[str, bytes]
) -> None:
    wrong = Recipe(permutations=permutations, scales=scales, alpha=Millionths(1))
    base, sold = random_init(FOUR, 0), part_of(FOUR, random_init(FOUR, 1), (0, 1))
    with pytest.raises(RemoteProtocolError) as refused:
        apply_recipe(FOUR, base, sold, wrong)
    assert refused.value.reason == "bad-recipe"
    apply_recipe(FOUR, base, random_init(FOUR, 1), wrong)  # which the whole model would allow


# ── what a hostile seller could send ──


def refusal(received: Received) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        verify(received)
    return refused.value.reason


def test_tensors_of_other_layers_than_were_named_are_refused() -> None:
    tensors = random_init(FOUR, 0)
    honest = Received(
        weights_root=weights_root(part_of(FOUR, tensors, (0, 1))),
        architecture=FOUR,
        tensors=part_of(FOUR, tensors, (0, 1)),
        layers=(0, 1),
    )
    assert verify(honest).layers == (0, 1)
    other: list[tuple[int, ...]] = [(), (0,), (1, 2), (0, 1, 2)]
    for layers in other:
        assert refusal(dataclasses.replace(honest, layers=layers)) == "wrong-tensors"
    none: list[tuple[int, ...]] = [(0, 4), (1, 0), (0, 0), (0, 1, 2, 3)]
    for layers in none:
        assert refusal(dataclasses.replace(honest, layers=layers)) == "bad-layers"


def test_layers_that_overflow_a_buyers_model_are_the_sellers_fault_or_worth_nothing() -> None:
    deep = Architecture("mlp", {"widths": [8] * 12})
    huge = {name: torch.full_like(t, 1e6) for name, t in random_init(deep, 0).items()}
    base = verified(deep, random_init(deep, 1))
    sold = verified(deep, huge, tuple(range(10)))
    rows = rows_of(deep)
    aligned = ALIGNERS["identity"](base, sold, seed=0)
    assert evaluate(aligned, rows, seed=SEED).alpha == 0
    with pytest.raises(RemoteProtocolError) as refused:
        evaluate(aligned, rows, seed=SEED, search="half")
    assert refused.value.reason == "overflows"
