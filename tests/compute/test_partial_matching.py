"""Models of other hidden widths: what meets what, what is left over, and what it is set against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align.partial import (
    UNMATCHED,
    assign_partly,
    partial_matching,
    random_matching,
    require_widths_alone,
)
from broker_node.align.stages import AlignmentError, ArchitectureMismatchError
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.validation import ValidationSet
from broker_node.trying.errors import TryError
from broker_node.trying.methods import LERP, OUTRIGHT, aligners, mergers
from broker_node.trying.reading import admitted, read_beside, read_checkpoint, require_alike
from broker_node.trying.trial import run_trial
from broker_node.verify.stages import Verified
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import save_safetensors, weights_root
from node.protocol.types import Digest
from tests.compute.merging_cases import started

MIDDLE = Architecture("mlp", {"widths": [6, 9, 7, 3]})
NARROW = Architecture("mlp", {"widths": [6, 5, 4, 3]})
WIDE = Architecture("mlp", {"widths": [6, 13, 12, 3]})
MIXED = Architecture("mlp", {"widths": [6, 12, 4, 3]})


def rows_for(architecture: Architecture, count: int = 400, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, architecture.model.input_width(), generator=generator)


def answers(model: Verified, rows_RF: torch.Tensor) -> torch.Tensor:
    return apply(model.architecture, model.tensors, rows_RF)


def widened(model: Verified, widths: list[int], seed: int) -> Verified:
    """The same model among more units, renumbered and rescaled; those added answer nothing."""
    generator = torch.Generator().manual_seed(seed)
    wider = Architecture("mlp", {"widths": widths})
    tensors = {name: torch.zeros(t.shape) for name, t in random_init(wider, 0).items()}
    last = torch.arange(widths[0]), torch.ones(widths[0])
    for at in range(len(widths) - 1):
        weight, bias = f"layers.{at}.weight", f"layers.{at}.bias"
        own = model.tensors[weight]
        into = torch.randperm(widths[at + 1], generator=generator)[: len(own)]
        scales = torch.rand(len(own), generator=generator) * 3 + 0.2
        if at == len(widths) - 2:
            into, scales = torch.arange(len(own)), torch.ones(len(own))
        tensors[weight][into[:, None], last[0]] = own * scales[:, None] / last[1]
        tensors[bias][into] = model.tensors[bias] * scales
        last = into, scales
    return admitted(wider, tensors)


def test_as_many_units_meet_as_the_narrower_side_has() -> None:
    similarity_UV = torch.tensor([[0.1, 0.9, 0.0], [0.2, 0.8, 0.3]])
    assert assign_partly(similarity_UV).tolist() == [1, 2]
    assert assign_partly(similarity_UV.T).tolist() == [UNMATCHED, 0, 1]


@pytest.mark.parametrize("widths", [[6, 13, 12, 3], [6, 9, 20, 3], [6, 9, 7, 3]])
def test_a_copy_among_more_units_is_found_and_is_the_buyers_own_model(widths: list[int]) -> None:
    ours = started(MIDDLE, 1)
    sold = widened(ours, widths, 3)
    aligned = partial_matching(ours, sold, seed=0, probe_RF=rows_for(MIDDLE))
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(aligned.transformed[name], tensor, rtol=1e-3, atol=1e-4)


def test_units_that_no_row_wakes_are_told_apart_by_what_enters_them() -> None:
    tensors = random_init(MIDDLE, 1)
    for asleep in (1, 4, 6):
        tensors["layers.0.bias"][asleep] = -100
    tensors["layers.1.bias"][2:5] = -100
    ours = admitted(MIDDLE, tensors)
    sold = widened(ours, [6, 13, 12, 3], 3)
    aligned = partial_matching(ours, sold, seed=0, probe_RF=rows_for(MIDDLE))
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(aligned.transformed[name], tensor, rtol=1e-3, atol=1e-4)


def test_the_buyers_unit_that_meets_nobody_keeps_its_weights_and_is_not_read() -> None:
    sold = started(NARROW, 2)
    ours = widened(sold, [6, 9, 7, 3], 5)
    noise = {name: torch.rand(t.shape) / 1000 for name, t in ours.tensors.items()}
    ours = admitted(MIDDLE, {name: t + noise[name] for name, t in ours.tensors.items()})
    aligned = partial_matching(ours, sold, seed=0, probe_RF=rows_for(MIDDLE))
    first, second = (aligned.transformed[f"layers.{at}.weight"] for at in (0, 1))
    kept = (first == ours.tensors["layers.0.weight"]).all(1)
    assert int(kept.sum()) == 9 - 5
    read_by_met = second[~(second == ours.tensors["layers.1.weight"]).all(1)]
    assert len(read_by_met) == 4
    assert not read_by_met[:, kept].any()
    assert (aligned.transformed["layers.0.bias"][kept] == ours.tensors["layers.0.bias"][kept]).all()


@given(
    ours=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    fewer=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_among_as_many_units_or_more_a_perceptron_computes_what_was_sold(
    ours: list[int], fewer: tuple[int, int], seed: int
) -> None:
    theirs = [max(1, width - less) for width, less in zip(ours, fewer, strict=True)]
    buyer = started(Architecture("mlp", {"widths": [4, *ours, 3]}), seed)
    seller = started(Architecture("mlp", {"widths": [4, *theirs, 3]}), seed + 1)
    for align in (partial_matching, random_matching):
        found = align(buyer, seller, seed=seed, probe_RF=rows_for(buyer.architecture, 30, seed))
        fresh_RF = rows_for(buyer.architecture, 50, seed + 1)
        torch.testing.assert_close(
            apply(buyer.architecture, found.transformed, fresh_RF),
            answers(seller, fresh_RF),
            rtol=1e-3,
            atol=1e-4,
        )


def test_what_read_dropped_units_is_solved_so_that_less_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buyer, seller = started(MIDDLE, 1), started(WIDE, 2)
    rows_RF, fresh_RF = rows_for(MIDDLE), rows_for(MIDDLE, seed=9)
    wanted_RO = answers(seller, fresh_RF)

    def lost() -> float:
        aligned = partial_matching(buyer, seller, seed=0, probe_RF=rows_RF)
        found_RO = apply(MIDDLE, aligned.transformed, fresh_RF)
        return float((found_RO - wanted_RO).square().mean())

    solved = lost()
    monkeypatch.setattr("broker_node.align.partial._solved", lambda *_: None)
    assert solved < 0.5 * lost()


def test_the_outcome_has_no_recipe_the_buyers_shapes_and_one_set_of_bytes() -> None:
    buyer = started(MIDDLE, 1)
    for architecture in (NARROW, WIDE, MIXED, MIDDLE):
        seller = started(architecture, 2)
        for align in (partial_matching, random_matching):
            first, second = (
                align(buyer, seller, seed=4, probe_RF=rows_for(MIDDLE)) for _ in range(2)
            )
            assert first.recipe is None
            shapes = {name: t.shape for name, t in buyer.tensors.items()}
            assert {name: t.shape for name, t in first.transformed.items()} == shapes
            assert weights_root(first.transformed) == weights_root(second.transformed)


def test_other_widths_are_never_evaluated_for_a_trade(validation: ValidationSet) -> None:
    ours, theirs = (
        started(Architecture("mlp", {"widths": [64, width, 10]}), 1) for width in (8, 6)
    )
    aligned = partial_matching(ours, theirs, seed=0, probe_RF=validation.inputs_RF[:100])
    with pytest.raises(AlignmentError, match=r"`partial-matching` .* has no recipe"):
        evaluate(aligned, validation, seed=Digest(bytes(32)))


# ── residual networks ──

IMAGE = {"classes": 3, "depth": 10, "image": [1, 8, 8]}


@pytest.mark.parametrize("widths", [(2, 3), (3, 2)])
def test_channels_of_residual_networks_are_picked_along_every_axis(widths: tuple[int, int]) -> None:
    ours, theirs = (
        started(Architecture("resnet", {**IMAGE, "widen": widen}), widen) for widen in widths
    )
    aligned = partial_matching(ours, theirs, seed=0, probe_RF=rows_for(ours.architecture, 4))
    stem = aligned.transformed["stem.weight"]
    assert sorted(map(tuple, stem.flatten(1).tolist())) == sorted(
        map(tuple, theirs.tensors["stem.weight"].flatten(1).tolist())
    )
    head, sold = (side["head.weight"] for side in (aligned.transformed, theirs.tensors))
    met = [column for column in head.T if bool(column.any())]
    assert len(met) == min(head.shape[1], sold.shape[1])
    assert all(bool((column == sold.T).all(1).any()) for column in met)


# ── bad input ──


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("mlp", {"widths": [6, 9, 7, 5, 3]}, "other depth: 4, the buyer's has 3"),
        ("mlp", {"widths": [5, 9, 7, 3]}, "other inputs: 5, the buyer's has 6"),
        ("mlp", {"widths": [6, 9, 7, 4]}, "other outputs: 4, the buyer's has 3"),
        ("linear", {"inputs": 6, "outputs": 3}, "other family: `linear`.*activations"),
        ("resnet", {**IMAGE, "widen": 1}, "other family: `resnet`.*activations"),
    ],
)
def test_what_differs_in_more_than_hidden_widths_is_refused_by_name(
    name: str, config: Mapping[str, object], said: str
) -> None:
    other = started(Architecture(name, config), 1)
    with pytest.raises(ArchitectureMismatchError, match=said):
        partial_matching(started(MIDDLE, 1), other, seed=0, probe_RF=rows_for(MIDDLE))


def test_residual_networks_of_another_kind_are_refused_by_name() -> None:
    ours = Architecture("resnet", {**IMAGE, "widen": 2})
    for config, said in (
        ({**IMAGE, "depth": 16, "widen": 2}, "other depth: 16"),
        ({**IMAGE, "classes": 4, "widen": 2}, "other classes: 4"),
        ({**IMAGE, "image": [1, 4, 16], "widen": 2}, "other image"),
        ({**IMAGE, "widen": 1}, "other tensors at widen 1 than at 2"),
    ):
        with pytest.raises(ArchitectureMismatchError, match=said):
            require_widths_alone(ours, Architecture("resnet", config))
    linear = Architecture("linear", {"inputs": 6, "outputs": 3})
    with pytest.raises(ArchitectureMismatchError, match="`linear` are matched at one width"):
        require_widths_alone(linear, Architecture("linear", {"inputs": 6, "outputs": 4}))


def test_layers_alone_and_rows_that_say_nothing_are_refused_by_name() -> None:
    buyer, seller = started(MIDDLE, 1), started(NARROW, 2)
    for rows_RF, said in (
        (None, "needs unlabelled rows"),
        (torch.zeros(5, 4), "rows of 6 features"),
        (torch.full((5, 6), torch.nan), "not finite"),
    ):
        with pytest.raises(AlignmentError, match=said):
            partial_matching(buyer, seller, seed=0, probe_RF=rows_RF)
    part = Verified(
        weights_root=seller.weights_root,
        architecture=NARROW,
        tensors={name: seller.tensors[name] for name in ("layers.0.weight", "layers.0.bias")},
        layers=(0,),
    )
    with pytest.raises(ArchitectureMismatchError, match=r"whole models, and layers \[0\]"):
        partial_matching(buyer, part, seed=0, probe_RF=rows_for(MIDDLE))


def test_constant_rows_leave_scales_alone_and_numbers_finite() -> None:
    for architecture in (NARROW, WIDE):
        aligned = partial_matching(
            started(MIDDLE, 1), started(architecture, 2), seed=0, probe_RF=torch.zeros(3, 6)
        )
        assert all(bool(torch.isfinite(t).all()) for t in aligned.transformed.values())


# ── trials ──


def test_a_seller_of_other_widths_is_tried_by_partial_matching_beside_its_controls(
    pair: tuple[Verified, Verified], validation: ValidationSet
) -> None:
    buyer, seller = pair
    widths = buyer.architecture.config["widths"]
    assert isinstance(widths, list)
    wider = [widths[0], *(width + 5 for width in widths[1:-1]), widths[-1]]
    copy, other = widened(buyer, wider, 1), widened(seller, wider, 2)
    found = run_trial(
        buyer,
        [other, seller, copy],
        validation,
        seed=0,
        aligners=aligners(),
        mergers=mergers([LERP, OUTRIGHT]),
    )
    assert found.replicas.keys() == {2}
    of_other = [each for each in found.candidates if each.sellers == (0,)]
    assert {each.align for each in of_other} == {"partial-matching"}
    assert {each.merge for each in of_other} == {LERP, OUTRIGHT}
    assert not any("partial" in each.align for each in found.candidates if each.sellers == (1,))
    projected, random = found.widths
    assert (projected.align, projected.merge, projected.alpha) == (
        "partial-matching",
        OUTRIGHT,
        1_000_000,
    )
    assert (random.align, random.merge) == ("random-matching", LERP)
    assert projected.gain is not None
    assert random.gain is not None
    lerp = next(each for each in of_other if each.merge == LERP)
    assert lerp.gain is not None
    assert lerp.steps is None
    assert lerp.gain.gain > random.gain.gain
    # a copy among idle units answers as the model itself
    assert found.sellers[0].loss == pytest.approx(found.sellers[1].loss, rel=1e-4)
    assert found.sellers[2].loss == pytest.approx(found.buyer.loss, rel=1e-4)


def test_a_named_architecture_is_the_buyers_and_others_may_have_other_widths(
    tmp_path: Path,
) -> None:
    paths: dict[str, Path] = {}
    for architecture in (MIDDLE, NARROW, Architecture("mlp", {"widths": [6, 5, 3]})):
        path = tmp_path / f"{len(paths)}.safetensors"
        save_safetensors(random_init(architecture, 1), path, {"format": "pt"})
        paths[architecture.text] = path
    middle, narrow, shallow = paths.values()
    read = read_beside(narrow, MIDDLE)
    assert read.model.architecture == NARROW
    require_alike(read_checkpoint(middle, architecture=MIDDLE), read)
    with pytest.raises(TryError, match="is no mlp 6-9-7-3"):
        read_beside(shallow, MIDDLE)
    with pytest.raises(TryError, match="other depth: 2, the buyer's has 3"):
        require_alike(read_checkpoint(middle), read_checkpoint(shallow))
