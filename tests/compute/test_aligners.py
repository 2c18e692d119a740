"""Whatever the method: what is sold stays what it is, and no disguise of it changes the merge."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import AlignmentError, ArchitectureMismatchError
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import (
    Architecture,
    apply,
    part_of,
    permutation_spec,
    prefixes,
    random_init,
)
from node.params.encoding import weights_root
from node.params.permutation import permute, rescale, restrict
from node.params.recipe import Recipe, apply_recipe, interpolate
from node.protocol.types import ONE, Digest, Millionths

Tensors = Mapping[str, torch.Tensor]
SMALL = Architecture("mlp", {"widths": [6, 7, 5, 8, 3]})
WITH_ROWS = ("activation-matching", "universe", "least-squares")
"""Of models of one architecture; `partial-matching` has tests of its own."""
WITH_RECIPE = ("activation-matching", "universe")


def verified(
    architecture: Architecture, tensors: Tensors, layers: tuple[int, ...] = ()
) -> Verified:
    part = part_of(architecture, tensors, layers)
    return verify(
        Received(
            weights_root=weights_root(part), architecture=architecture, tensors=part, layers=layers
        )
    )


def rows_for(architecture: Architecture, count: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, architecture.model.input_width(), generator=generator)


def disguised(
    model: Verified, seed: int, layers: tuple[int, ...] = (), octaves: float = 8.0
) -> Verified:
    """Return (layers of) a copy, permuted, and rescaled where no buyer could tell."""
    spec = permutation_spec(model.architecture)
    sold = restrict(spec, part_of(model.architecture, model.tensors, layers))
    generator = torch.Generator().manual_seed(seed)
    orders = {
        name: torch.randperm(group.size, generator=generator).tolist()
        for name, group in sold.groups.items()
    }
    scales = {
        name: torch.exp2(
            octaves * (2 * torch.rand(sold.groups[own.group].size, generator=generator) - 1)
        )
        for name, own in sold.rescalings.items()
    }
    tensors = rescale(spec, permute(spec, model.tensors, orders), scales)
    return verified(model.architecture, tensors, layers)


@pytest.fixture(scope="module")
def rows_RF(validation: ValidationSet) -> torch.Tensor:
    """The half of the broker's rows that chooses."""
    return validation.inputs_RF[: len(validation) // 2]


# ── a disguise ──


@pytest.mark.parametrize("method", WITH_ROWS)
def test_a_permuted_rescaled_copy_merges_into_the_buyers_own_model(
    pair: tuple[Verified, Verified], rows_RF: torch.Tensor, method: str
) -> None:
    ours, _ = pair
    aligned = ALIGNERS[method](ours, disguised(ours, 9), seed=0, probe_RF=rows_RF)
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(aligned.transformed[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", WITH_ROWS)
def test_a_sellers_disguise_does_not_change_what_it_sells(
    pair: tuple[Verified, Verified], rows_RF: torch.Tensor, method: str
) -> None:
    ours, theirs = pair
    plain, hidden = (
        ALIGNERS[method](ours, sold, seed=2, probe_RF=rows_RF)
        for sold in (theirs, disguised(theirs, 1))
    )
    for name, tensor in plain.transformed.items():
        torch.testing.assert_close(hidden.transformed[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", WITH_RECIPE)
def test_units_that_no_row_wakes_are_told_apart_by_their_weights(method: str) -> None:
    tensors = random_init(SMALL, 1)
    for asleep in (1, 4, 6):
        tensors["layers.0.bias"][asleep] = -100
    tensors["layers.2.bias"][2:5] = -100
    ours = verified(SMALL, tensors)
    sold = disguised(ours, 3, octaves=2.0)
    aligned = ALIGNERS[method](ours, sold, seed=0, probe_RF=rows_for(SMALL))
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(aligned.transformed[name], tensor, rtol=1e-4, atol=1e-5)


# ── what is sold, and what is applied ──


@given(
    seed=st.integers(0, 2**31),
    method=st.sampled_from(WITH_RECIPE),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rows=st.integers(2, 40),
)
@settings(max_examples=25)
def test_a_recipe_never_changes_what_the_sold_model_computes(
    seed: int, method: str, widths: list[int], rows: int
) -> None:
    architecture = Architecture("mlp", {"widths": [4, *widths, 3]})
    ours, theirs = (verified(architecture, random_init(architecture, seed + k)) for k in (0, 1))
    probe_RF = rows_for(architecture, rows, seed)
    aligned = ALIGNERS[method](ours, theirs, seed=seed, probe_RF=probe_RF)
    fresh_RF = rows_for(architecture, 50, seed + 1)
    torch.testing.assert_close(
        apply(architecture, aligned.transformed, fresh_RF),
        apply(architecture, theirs.tensors, fresh_RF),
        rtol=1e-4,
        atol=1e-4,
    )
    recipe = Recipe.decode(aligned.exact_recipe.with_alpha(Millionths(ONE // 3)).encode())
    applied = apply_recipe(architecture, ours.tensors, theirs.tensors, recipe)
    measured = interpolate(ours.tensors, aligned.transformed, Millionths(ONE // 3))
    assert weights_root(applied) == weights_root(measured)


@pytest.mark.parametrize("method", WITH_ROWS)
def test_the_same_pair_rows_and_seed_are_aligned_to_the_same_bytes(
    pair: tuple[Verified, Verified], rows_RF: torch.Tensor, method: str
) -> None:
    first, second = (ALIGNERS[method](*pair, seed=7, probe_RF=rows_RF) for _ in range(2))
    assert weights_root(first.transformed) == weights_root(second.transformed)
    if method in WITH_RECIPE:
        assert first.alignment_hash == second.alignment_hash


@pytest.mark.parametrize("method", ["identity", "weight-matching"])
def test_rows_have_no_say_where_a_method_needs_none(
    pair: tuple[Verified, Verified], rows_RF: torch.Tensor, method: str
) -> None:
    align = ALIGNERS[method]
    assert align(*pair, seed=3).recipe == align(*pair, seed=3, probe_RF=rows_RF).recipe


# ── a product without a recipe ──


def test_every_layer_of_the_least_squares_merge_answers_nearer_to_the_mean_of_both(
    pair: tuple[Verified, Verified], rows_RF: torch.Tensor
) -> None:
    ours, theirs = pair
    architecture = ours.architecture
    solved = ALIGNERS["least-squares"](ours, theirs, seed=0, probe_RF=rows_RF)
    moved = ALIGNERS["activation-matching"](ours, theirs, seed=0, probe_RF=rows_RF).transformed
    half = interpolate(ours.tensors, moved, Millionths(ONE // 2))

    def distance(tensors: Tensors) -> float:
        wanted = (
            apply(architecture, ours.tensors, rows_RF) + apply(architecture, moved, rows_RF)
        ) / 2
        return float((apply(architecture, tensors, rows_RF) - wanted).square().mean())

    assert distance(solved.transformed) < 0.5 * distance(half)
    first = "layers.0.weight"  # both read the rows themselves there: the mean is exact
    torch.testing.assert_close(solved.transformed[first], half[first])


def test_what_has_no_recipe_is_never_evaluated_for_a_trade(
    pair: tuple[Verified, Verified], validation: ValidationSet, rows_RF: torch.Tensor
) -> None:
    aligned = ALIGNERS["least-squares"](*pair, seed=0, probe_RF=rows_RF)
    assert aligned.recipe is None
    with pytest.raises(AlignmentError, match=r"`least-squares` .* has no recipe"):
        evaluate(aligned, validation, seed=Digest(bytes(32)))
    assert aligned.alignment_hash is None


# ── some layers ──


@pytest.mark.parametrize("method", WITH_ROWS)
@pytest.mark.parametrize("layers", prefixes(SMALL)[:-1], ids=str)
def test_layers_sold_from_the_input_on_are_matched_and_the_rest_is_the_buyers(
    method: str, layers: tuple[int, ...]
) -> None:
    ours = verified(SMALL, random_init(SMALL, 5))
    sold = disguised(ours, 6, layers)
    aligned = ALIGNERS[method](ours, sold, seed=0, probe_RF=rows_for(SMALL))
    assert set(aligned.transformed) == set(sold.tensors)
    if aligned.recipe is not None:
        inside = restrict(permutation_spec(SMALL), sold.tensors)
        assert set(aligned.recipe.permutations) == set(inside.groups)
        assert set(aligned.recipe.scales) == set(inside.rescalings)
    for name, tensor in aligned.transformed.items():
        torch.testing.assert_close(tensor, ours.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", WITH_ROWS)
@pytest.mark.parametrize("layers", [(1,), (0, 2), (2, 3)], ids=str)
def test_units_that_no_row_can_reach_are_refused_by_name(
    method: str, layers: tuple[int, ...]
) -> None:
    ours, theirs = (random_init(SMALL, seed) for seed in (1, 2))
    sold = verified(SMALL, theirs, layers)
    with pytest.raises(AlignmentError, match=r"no row reaches hidden\.\d"):
        ALIGNERS[method](verified(SMALL, ours), sold, seed=0, probe_RF=rows_for(SMALL))


# ── bad input ──


BAD_ROWS: list[tuple[torch.Tensor | None, str]] = [
    (None, "needs unlabelled rows, and was given none"),
    (torch.zeros(10, 5), r"rows of 6 features, got \(10, 5\)"),
    (torch.zeros(6), r"rows of 6 features, got \(6,\)"),
    (torch.zeros(1, 6), r"2 or more rows of 6 features, got \(1, 6\)"),
    (torch.full((4, 6), torch.nan), "rows that are not finite"),
    (torch.tensor([[0.0] * 6, [torch.inf] + [0.0] * 5]), "rows that are not finite"),
]


@pytest.mark.parametrize("method", WITH_ROWS)
@pytest.mark.parametrize(("probe_RF", "said"), BAD_ROWS, ids=lambda v: str(v)[:20])
def test_rows_that_say_nothing_are_refused_by_name(
    method: str, probe_RF: torch.Tensor | None, said: str
) -> None:
    ours, theirs = (verified(SMALL, random_init(SMALL, seed)) for seed in (1, 2))
    with pytest.raises(AlignmentError, match=f"`{method}` .*{said}"):
        ALIGNERS[method](ours, theirs, seed=0, probe_RF=probe_RF)


@pytest.mark.parametrize("method", ALIGNERS)
def test_another_architecture_is_the_first_thing_that_is_said(method: str) -> None:
    deeper = Architecture("mlp", {"widths": [6, 7, 5, 8, 4, 3]})
    wider = Architecture("mlp", {"widths": [6, 7, 5, 9, 3]})
    for other in (deeper, wider) if method != "partial-matching" else (deeper,):
        ours, theirs = (verified(a, random_init(a, 0)) for a in (SMALL, other))
        with pytest.raises(ArchitectureMismatchError):
            ALIGNERS[method](ours, theirs, seed=0)


@pytest.mark.parametrize("method", WITH_ROWS)
def test_layers_whose_values_overflow_are_refused_by_name(method: str) -> None:
    deep = Architecture("mlp", {"widths": [4] * 62})
    huge = {name: torch.full_like(t, 1e6) for name, t in random_init(deep, 0).items()}
    sold = verified(deep, huge, tuple(range(60)))
    base = verified(deep, random_init(deep, 1))
    with pytest.raises(AlignmentError, match=r"values of hidden\.\d+ are not finite"):
        ALIGNERS[method](base, sold, seed=0, probe_RF=rows_for(deep).abs())


@pytest.mark.parametrize("method", WITH_ROWS)
def test_tensors_that_compute_nothing_answer_no_rows(method: str) -> None:
    noise = Architecture("random", {"shapes": {"a": [4, 4]}})
    ours, theirs = (verified(noise, random_init(noise, seed)) for seed in (0, 1))
    with pytest.raises(AlignmentError, match="compute nothing"):
        ALIGNERS[method](ours, theirs, seed=0, probe_RF=torch.zeros(2, 4))
