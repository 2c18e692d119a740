"""Groups matched at once, or left alone, end where one after the other would have: bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from broker_node.align import assignments, matching
from broker_node.align.carrying import canonical
from broker_node.align.matching import Matching, improve_units, match_units, sweeps_of, unentered
from node.params.architecture import Architecture, layout, permutation_spec, random_init
from node.params.permutation import Axis, Group, PermutationSpec, Role, permute, restrict

Tensors = Mapping[str, torch.Tensor]
Orders = dict[str, torch.Tensor]
RESNET = Architecture("resnet", {"classes": 3, "depth": 16, "image": [1, 8, 8], "widen": 1})
GPT = Architecture(
    "gpt",
    {"context": 8, "depth": 2, "heads": 4, "hidden": 24, "norm": "layer", "tied": False,
     "vocabulary": 40, "width": 16},
)  # fmt: skip


# ── the procedure as it is in print, one group after the other ──


def similarity(
    spec: PermutationSpec, sides: tuple[Tensors, Tensors], group: str, orders: Orders, *roles: Role
) -> torch.Tensor:
    size = spec.groups[group].size
    total_UV = torch.zeros(size, size, dtype=torch.float64)
    for name, axes in spec.axes.items():
        for at, axis in enumerate(axes):
            if axis is None or axis.group != group or axis.role not in roles:
                continue
            if name in spec.statistics:
                continue
            theirs = sides[1][name].double()
            for other, beside in enumerate(axes):
                if beside is not None and other != at:
                    theirs = theirs.index_select(other, orders[beside.group])
            ours_UF, theirs_VF = (
                side.movedim(at, 0).reshape(size, -1) for side in (sides[0][name].double(), theirs)
            )
            total_UV += ours_UF @ theirs_VF.T
    return total_UV


def solved(similarity_UV: torch.Tensor) -> torch.Tensor:
    best_U = similarity_UV.argmax(1)
    if len(set(best_U.tolist())) == len(best_U):
        return best_U
    centred_UV = similarity_UV - similarity_UV.mean(0)
    centred_UV -= centred_UV.mean(1, keepdim=True)
    return torch.from_numpy(linear_sum_assignment(centred_UV.numpy(), maximize=True)[1])


def descended(
    spec: PermutationSpec,
    sides: tuple[Tensors, Tensors],
    start: Orders,
    generator: np.random.Generator,
) -> tuple[Orders, int]:
    """Return the end of a descent, and how many groups were matched on the way."""
    orders, names, matched = dict(start), list(spec.groups), 0
    for _ in range(sweeps_of(spec)):
        gained = False
        for index in generator.permutation(len(names)):
            similarity_UV = similarity(spec, sides, names[index], orders, *Role)
            units_U, found_U = torch.arange(len(similarity_UV)), solved(similarity_UV)
            before = float(similarity_UV[units_U, orders[names[index]]].sum())
            after = float(similarity_UV[units_U, found_U].sum())
            matched += 1
            if after > before + 1e-12 * abs(before):
                orders[names[index]], gained = found_U, True
        if not gained:
            break
    return orders, matched


def drawn(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def one_after_another(
    spec: PermutationSpec, sides: tuple[Tensors, Tensors], seed: int
) -> tuple[Matching, int]:
    problem = matching._Problem(spec, *sides)
    ranked = {group: problem.by_weight(group) for group in unentered(spec)}
    numbered = {group: torch.arange(spec.groups[group].size) for group in spec.groups}
    matched, generator = 0, drawn(seed)
    ends: list[tuple[float, Orders]] = []
    for given_units in [ranked, {name: numbered[name] for name in ranked}][: 1 + bool(ranked)]:
        orders = {**numbered, **given_units}
        for group in spec.groups:
            if group not in given_units:
                orders[group] = solved(similarity(spec, sides, group, orders, Role.WRITES))
                matched += 1
        orders, more = descended(spec, sides, orders, generator)
        matched += more
        listed = {name: order.tolist() for name, order in orders.items()}
        moved = permute(spec, {n: t.double() for n, t in sides[1].items()}, listed)
        learnt = [name for name in spec.axes if name not in spec.statistics]
        value = sum(float((sides[0][name].double() * moved[name]).sum()) for name in learnt)
        ends.append((value, orders))
    value, orders = max(ends, key=lambda end: end[0])
    permutations = {name: tuple(orders[name].tolist()) for name in spec.groups}
    return Matching(permutations=permutations, objective=value), matched


# ── pairs ──


def pair(
    architecture: Architecture, seed: int, *, kin: bool, layers: tuple[int, ...] = ()
) -> tuple[PermutationSpec, tuple[Tensors, Tensors]]:
    """Return strangers, or a model and a noisy copy of it in another order, in balanced scales."""
    names = [tensor.name for tensor in layout(architecture, layers)]
    spec = restrict(permutation_spec(architecture), names)
    ours = random_init(architecture, seed)
    theirs = random_init(architecture, seed + 1)
    if kin:
        generator = torch.Generator().manual_seed(seed)
        orders = {
            name: torch.randperm(group.size, generator=generator).tolist()
            for name, group in spec.groups.items()
        }
        noisy = {name: ours[name] + 0.4 * theirs[name] for name in names}
        theirs = permute(spec, noisy, orders)
    return spec, (canonical(spec, ours).tensors, canonical(spec, theirs).tensors)


def in_threads(spec: PermutationSpec, sides: tuple[Tensors, Tensors], seed: int) -> Matching:
    """Match with a thread for each group of a colour, however small they are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assignments, "THREADED", 0)
        for module in (assignments, matching):
            patched.setattr(module, "threads", lambda: 3)
        return match_units(spec, *sides, seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    kin=st.booleans(),
    sold=st.sets(st.integers(0, 6)),
)
def test_perceptrons_of_any_widths_are_matched_as_if_one_group_came_after_the_other(
    hidden: list[int], seed: int, kin: bool, sold: set[int]
) -> None:
    architecture = Architecture("mlp", {"widths": [5, *hidden, 3]})
    layers = tuple(sorted(layer for layer in sold if layer <= len(hidden)))
    layers = () if len(layers) > len(hidden) else layers  # all of them are written as none
    spec, sides = pair(architecture, seed, kin=kin, layers=layers)
    expected, _ = one_after_another(spec, sides, seed)
    assert match_units(spec, *sides, seed=seed) == expected
    assert in_threads(spec, sides, seed) == expected


@pytest.mark.parametrize("kin", [True, False], ids=["kin", "strangers"])
@pytest.mark.parametrize("architecture", [RESNET, GPT], ids=lambda each: each.name)
def test_streams_and_heads_are_matched_as_if_one_group_came_after_the_other(
    architecture: Architecture, kin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, sides = pair(architecture, 3, kin=kin)
    expected, matched = one_after_another(spec, sides, 1)
    assert in_threads(spec, sides, 1) == expected
    done: list[str] = []
    assign_all = assignments.assign_all

    def count(similarities: Tensors) -> Orders:
        done.extend(similarities)
        return assign_all(similarities)

    monkeypatch.setattr(matching, "assign_all", count)
    assert match_units(spec, *sides, seed=1) == expected
    assert len(done) <= matched
    if not kin:  # a second sweep, in which most of them meet what they met
        assert len(done) < matched


def test_a_group_that_a_tensor_has_twice_is_matched_again_for_its_own_sake() -> None:
    """Its part is not linear: a better order of its own may be bettered once more."""
    one = Axis("units", Role.WRITES)
    spec = PermutationSpec(
        groups={"units": Group(8)},
        axes={"mixing": (one, Axis("units", Role.READS)), "bias": (one,)},
    )
    lasted = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sides = tuple(
            {
                "mixing": torch.randn(8, 8, generator=generator, dtype=torch.float64),
                "bias": torch.randn(8, generator=generator, dtype=torch.float64),
            }
            for _ in range(2)
        )
        expected, matched = one_after_another(spec, (sides[0], sides[1]), seed)
        assert match_units(spec, sides[0], sides[1], seed=seed) == expected
        lasted += matched > 3
    assert lasted > 10  # else nothing here says that it was matched again


def test_a_descent_from_anywhere_ends_where_one_after_the_other_would() -> None:
    spec, sides = pair(RESNET, 5, kin=False)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        start = {
            name: torch.randperm(group.size, generator=generator)
            for name, group in spec.groups.items()
        }
        expected, _ = descended(spec, sides, start, drawn(seed))
        before = {name: order.clone() for name, order in start.items()}
        found = improve_units(spec, *sides, start, seed=seed, sweeps=sweeps_of(spec))
        assert all(torch.equal(found[name], order) for name, order in expected.items())
        assert all(torch.equal(start[name], order) for name, order in before.items())


def test_large_groups_that_share_no_tensor_are_assigned_beside_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two outer groups of three meet the middle one and not each other."""
    spec, sides = pair(Architecture("mlp", {"widths": [4, 6, 6, 6, 2]}), 0, kin=False)
    both, passed = threading.Barrier(2, timeout=20), []
    solve, main = assignments._solve, threading.get_ident()

    def met(similarity_UV: torch.Tensor) -> torch.Tensor:
        if threading.get_ident() != main:
            both.wait()  # raises if one of them waits for the other to end
            passed.append(len(similarity_UV))
        return solve(similarity_UV)

    monkeypatch.setattr(assignments, "THREADED", 6)
    for module in (assignments, matching):
        monkeypatch.setattr(module, "threads", lambda: 2)
    monkeypatch.setattr(assignments, "_solve", met)
    problem = matching._Problem(spec, *sides)
    outer, middle = ["hidden.0", "hidden.2"], ["hidden.1"]
    assert problem.colours([*outer, *middle]) == [outer, middle]
    assert problem.colours([*middle, *outer]) == [middle, outer]
    assert problem.colours(["hidden.0", "hidden.1", "hidden.2"]) == [
        ["hidden.0"], ["hidden.1"], ["hidden.2"],
    ]  # fmt: skip
    start = {name: torch.arange(6) for name in spec.groups}
    for seed in range(4):
        improve_units(spec, *sides, start, seed=seed, sweeps=1)
    assert passed


def test_the_second_of_two_descents_takes_groups_in_the_order_that_it_always_did() -> None:
    """A sweep that has nothing to do is drawn all the same: what comes after it is drawn next."""
    architecture = Architecture("mlp", {"widths": [6, 12, 12, 12, 12, 3]})
    for seed in range(12):
        spec, sides = pair(architecture, seed, kin=False, layers=(1, 2, 3, 4))
        expected, _ = one_after_another(spec, sides, seed)
        assert match_units(spec, *sides, seed=seed) == expected
