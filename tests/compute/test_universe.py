"""Many models in one numbering, and modules of any architecture matched by what they answer."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from broker_node.align import assignments, universe
from broker_node.align.modules import match_modules, reset_normalisation
from broker_node.align.stages import AlignmentError, ArchitectureMismatchError
from broker_node.align.symmetric_matching import match_symmetries
from broker_node.align.universe import Universe
from broker_node.verify.stages import Verified
from node.params import blocks
from node.params.architecture import Architecture, apply, random_init
from node.params.derivation.derive import derive
from node.params.recipe import unpack_scales
from node.params.symmetry import Fixed, SymmetrySpec, UnitGroup, Units
from tests.compute import known_modules as known
from tests.compute.random_modules import Attention
from tests.compute.test_aligners import SMALL, disguised, rows_for, verified


def models(count: int) -> list[Verified]:
    return [verified(SMALL, random_init(SMALL, seed)) for seed in range(count)]


def universe_of(members: list[Verified], **how: Any) -> Universe:
    return Universe.of(members, probe_RF=rows_for(SMALL), seed=0, **how)


def composed(first: dict[str, tuple[int, ...]], second: dict[str, tuple[int, ...]]) -> object:
    return {group: tuple(second[group][unit] for unit in first[group]) for group in first}


def test_what_goes_from_one_to_another_and_on_arrives_as_if_it_had_gone_straight() -> None:
    members = models(4)
    found = universe_of(members)
    for a, b, c in itertools.permutations(members, 3):
        there, onward, straight = (
            found.pair(*both).exact_recipe for both in ((a, b), (b, c), (a, c))
        )
        assert composed(dict(there.permutations), dict(onward.permutations)) == dict(
            straight.permutations
        )
        for group, packed in straight.scales.items():
            units = list(there.permutations[group])
            onward_U = unpack_scales(onward.scales[group])[units]
            torch.testing.assert_close(
                unpack_scales(packed), unpack_scales(there.scales[group]) * onward_U
            )


def test_a_model_meets_itself_unit_for_unit() -> None:
    members = models(3)
    found = universe_of(members)
    for model in members:
        recipe = found.pair(model, model).exact_recipe
        assert all(p == tuple(range(len(p))) for p in recipe.permutations.values())
        for packed in recipe.scales.values():
            scales_U = unpack_scales(packed)
            torch.testing.assert_close(scales_U, torch.ones_like(scales_U))


def test_disguises_of_one_model_are_one_model_in_the_universe() -> None:
    (ours,) = models(1)
    members = [disguised(ours, seed) for seed in range(5)]
    found = universe_of(members)
    for buyer, seller in itertools.permutations(members, 2):
        for name, tensor in found.pair(buyer, seller).transformed.items():
            torch.testing.assert_close(tensor, buyer.tensors[name], rtol=1e-4, atol=1e-5)


def test_every_recipe_out_of_the_universe_is_the_sold_models_function() -> None:
    members = models(4)
    found = universe_of(members)
    fresh_RF = rows_for(SMALL, seed=4)
    for buyer, seller in itertools.permutations(members, 2):
        torch.testing.assert_close(
            apply(SMALL, found.pair(buyer, seller).transformed, fresh_RF),
            apply(SMALL, seller.tensors, fresh_RF),
            rtol=1e-4,
            atol=1e-4,
        )


def test_the_order_in_which_models_are_named_changes_no_recipe() -> None:
    members = models(5)
    first, second = universe_of(members), universe_of(members[::-1])
    for buyer, seller in itertools.permutations(members, 2):
        assert first.pair(buyer, seller).recipe == second.pair(buyer, seller).recipe


def test_a_newcomer_changes_nothing_between_those_already_in() -> None:
    members = models(4)
    found = universe_of(members[:3])
    before = {
        (a, b): found.pair(members[a], members[b]).recipe
        for a, b in itertools.permutations(range(3), 2)
    }
    found.add(members[3])
    found.add(members[3])
    assert len(found) == 4
    assert members[3] in found
    for (a, b), recipe in before.items():
        assert found.pair(members[a], members[b]).recipe == recipe


def test_settling_again_moves_nobody_who_stands_best_where_it_stands() -> None:
    members = models(4)
    found = universe_of(members, passes=50)
    before = [found.pair(members[0], other).recipe for other in members]
    found.settle(1)
    assert [found.pair(members[0], other).recipe for other in members] == before


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Return a list to which a call of any of these functions adds its name."""
    done: list[str] = []

    def count(name: str) -> None:
        inner = getattr(universe, name)

        def watch(*arguments: Any, **how: Any) -> Any:
            done.append(name)
            return inner(*arguments, **how)

        monkeypatch.setattr(universe, name, watch)

    for name in names:
        count(name)
    return done


def test_a_model_is_left_alone_while_no_other_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    members = models(6)
    unhurried, found = (universe_of(members, passes=0) for _ in range(2))
    done = counted(monkeypatch, "improve_units")
    for _ in range(20):
        for place in unhurried._places.values():
            place.settled_at = -1  # as if every model were to be looked at again
        unhurried.settle(1)
    looked_at = len(done)
    done.clear()
    found.settle(20)
    assert 0 < len(done) < looked_at
    for a, b in itertools.permutations(members, 2):
        assert found.pair(a, b).recipe == unhurried.pair(a, b).recipe
    done.clear()
    found.settle(3)
    assert not done
    found.add(models(7)[6])
    found.settle(1)
    assert len(done) == 1 + 7  # among others, each may have a better place


def test_work_is_linear_in_the_number_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    done = counted(monkeypatch, "match_values", "improve_units")
    for count in (3, 6, 12):
        done.clear()
        found = universe_of(models(count))
        assert done.count("match_values") == count - 1
        assert done.count("improve_units") <= count - 1 + universe.PASSES * count
        settled = len(done)
        found.pair(*models(2))
        assert len(done) == settled


def test_strangers_and_other_architectures_are_refused_by_name() -> None:
    members = models(3)
    found = universe_of(members[:2])
    with pytest.raises(AlignmentError, match=f"{members[2].weights_root.hex()} is not in"):
        found.pair(members[0], members[2])
    other = Architecture("mlp", {"widths": [6, 7, 5, 9, 3]})
    with pytest.raises(ArchitectureMismatchError, match="in a universe of"):
        found.add(verified(other, random_init(other, 0)))
    with pytest.raises(ArchitectureMismatchError, match=r"without layers\.\d"):
        found.add(verified(SMALL, random_init(SMALL, 9), (0, 1)))
    with pytest.raises(AlignmentError, match="no models"):
        universe_of([])


def test_a_universe_of_some_layers_serves_only_those() -> None:
    ours = models(2)
    parts = [verified(SMALL, model.tensors, (0, 1)) for model in ours]
    found = Universe(SMALL, probe_RF=rows_for(SMALL), seed=0, layers=(0, 1))
    for model in (*ours, *parts):
        found.add(model)
    aligned = found.pair(ours[0], parts[1])
    assert set(aligned.transformed) == set(parts[1].tensors)
    with pytest.raises(AlignmentError, match="not of the layers that are sold"):
        found.pair(ours[0], ours[1])


# ── modules ──


def images(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def lively(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return the tensors with normalisations that differ from unit to unit."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 + torch.rand(t.shape, generator=generator)
        if t.ndim == 1 and t.is_floating_point()
        else t
        for name, t in module.state_dict().items()
    }


def test_a_permuted_residual_network_is_found_by_what_its_layers_answer() -> None:
    torch.manual_seed(1)
    module = known.resnet20(4)
    spec = known.resnet_spec(module)
    ours = lively(module, 1)
    order = blocks.random_permutation(spec, torch.Generator().manual_seed(2))
    theirs = blocks.permute(spec, ours, order)
    found = match_modules(module, spec, ours, theirs, (images(),))
    for name, tensor in blocks.permute(spec, theirs, found).items():
        assert torch.equal(tensor, ours[name]), name


def test_units_in_blocks_are_refused_by_name() -> None:
    torch.manual_seed(0)
    module = Attention(8, 2, 1, "fused", rotary=False).eval()
    inputs = (torch.randn(2, 5, 8),)
    spec = derive(module, inputs)
    tensors = dict(module.state_dict())
    with pytest.raises(AlignmentError, match="no layer's outputs are the units of"):
        match_modules(module, spec, tensors, tensors, inputs)


def test_values_of_a_module_that_overflow_are_refused_by_name() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spec = SymmetrySpec(
        groups={"h": UnitGroup(4)},
        axes={
            "0.weight": (Units("h"), Fixed(3)),
            "0.bias": (Units("h"),),
            "2.weight": (Fixed(2), Units("h")),
            "2.bias": (Fixed(2),),
        },
    )
    tensors = {name: t.clone() for name, t in module.state_dict().items()}
    rotten = {**tensors, "0.bias": torch.full((4,), torch.nan)}
    with pytest.raises(AlignmentError, match="values of h are not finite"):
        match_modules(module, spec, tensors, rotten, (torch.zeros(5, 3),))
    assert module.training
    assert not module[0]._forward_hooks


class Moody(torch.nn.Module):
    """Fails on negative biases, and goes through its layer twice on large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        mood = float(self.layer.bias[0])
        if mood < 0:
            raise IndexError("in no mood\nfor that")
        answers: torch.Tensor = self.layer(self.layer(rows) if mood > 5 else rows)
        return answers


def test_what_a_module_raises_as_it_is_matched_is_named_and_leaves_it_as_it_was() -> None:
    module = Moody()
    axes = {"layer.weight": (Units("h"), Fixed(3)), "layer.bias": (Units("h"),)}
    spec = SymmetrySpec(groups={"h": UnitGroup(3)}, axes=axes)
    good, bad, twice = (
        {**module.state_dict(), "layer.bias": torch.full((3,), mood)} for mood in (0.0, -1.0, 9.0)
    )
    rows = (torch.randn(4, 3),)
    with pytest.raises(AlignmentError, match="it is matched on: IndexError: in no mood for that"):
        match_modules(module, spec, good, bad, rows)
    assert module.training
    assert not module.layer._forward_hooks
    with pytest.raises(AlignmentError, match="another way through its layers"):
        match_modules(module, spec, good, twice, rows)
    with pytest.raises(AlignmentError, match="it is matched on: RuntimeError"):
        match_modules(module, spec, good, good, (torch.randn(4, 5),))


def test_a_merge_is_normalised_by_what_it_answers_itself() -> None:
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tensors = lively(module, 1)
    batches = [(images(8),), (images(16)[8:],)]
    repaired = reset_normalisation(module, tensors, batches)
    module.load_state_dict(repaired)
    answers = torch.cat([module[0](*batch) for batch in batches])
    torch.testing.assert_close(repaired["1.running_mean"], answers.mean((0, 2, 3)))
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, tensor in tensors.items():
        assert name in buffers or torch.equal(repaired[name], tensor)
    with pytest.raises(AlignmentError, match="on rows, and there are none"):
        reset_normalisation(module, tensors, [])
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    with pytest.raises(AlignmentError, match="no normalisation with running statistics"):
        reset_normalisation(plain, dict(plain.state_dict()), [(torch.zeros(2, 3),)])


# ── several at a time ──


def test_threads_change_no_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    module, other = known.resnet20(4), known.resnet20(4)
    spec = known.resnet_spec(module)
    ours, theirs = lively(module, 1), lively(other, 2)
    alone = (
        match_symmetries(spec, ours, theirs, seed=5),
        match_modules(module, spec, ours, theirs, (images(),)),
    )
    used: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            used.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(assignments, "THREADED", 1)
    monkeypatch.setattr(assignments, "threads", lambda: 3)
    monkeypatch.setattr(assignments, "ThreadPoolExecutor", Pool)
    together = (
        match_symmetries(spec, ours, theirs, seed=5),
        match_modules(module, spec, ours, theirs, (images(),)),
    )
    assert used
    assert together[0].history == alone[0].history
    for first, second in (
        (alone[0].permutations, together[0].permutations),
        (alone[1], together[1]),
    ):
        assert all(torch.equal(first[group], second[group]) for group in spec.groups)
