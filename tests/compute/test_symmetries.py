"""Symmetries read off a module's graph: equal to those written by hand, borne out by outputs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from broker_node.align.matching import match_units
from broker_node.align.symmetric_matching import match_symmetries
from node.params import blocks
from node.params.architecture import Architecture, permutation_spec, random_init
from node.params.derivation.check import derive_checked, outputs, require_preserved, unsettled
from node.params.derivation.derive import derive
from node.params.derivation.errors import UnderivableError
from node.params.derivation.scales import Scales
from node.params.derivation.terms import Atom, Store
from node.params.derivation.values import Tracker, Value
from node.params.symmetry import (
    Fixed,
    Place,
    SymmetrySpec,
    Units,
    leaves,
    of_permutation_spec,
    renamed,
    to_permutation_spec,
)
from node.protocol.errors import LocalProtocolError
from tests.compute import known_modules as known
from tests.compute.random_modules import KINDS, Foreign, foreign_modules, modules

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Example = tuple[nn.Module, tuple[torch.Tensor, ...]]


def mlp(widths: list[int]) -> nn.Module:
    """The family `mlp` as a module, its tensors named as the family names them."""
    layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)  # type: ignore[no-any-return]

    return Module()


def test_an_mlp_has_the_symmetries_that_its_family_says() -> None:
    architecture = Architecture("mlp", {"widths": [7, 5, 4, 3]})
    by_hand = permutation_spec(architecture)
    derived = derive(mlp([7, 5, 4, 3]), (torch.zeros(2, 7),))
    assert renamed(derived) == renamed(of_permutation_spec(by_hand, random_init(architecture, 0)))
    plain = to_permutation_spec(derived)
    assert [*plain.groups.values()] == [*by_hand.groups.values()]
    names = dict(zip(plain.groups, by_hand.groups, strict=True))
    assert {names[name]: (own.writes, own.reads) for name, own in plain.rescalings.items()} == {
        name: (own.writes, own.reads) for name, own in by_hand.rescalings.items()
    }
    for tensor, axes in by_hand.axes.items():
        mine = [axis and (names[axis.group], axis.role) for axis in plain.axes[tensor]]
        assert mine == [axis and (axis.group, axis.role) for axis in axes]


@pytest.mark.parametrize("side", [32, 64])
def test_vgg16_has_the_symmetries_written_by_hand(side: int) -> None:
    module = known.Vgg(2, 6, 5, side)
    derived = derive(module, (torch.zeros(1, 3, side, side),))
    assert renamed(derived) == renamed(known.vgg_spec(module))
    assert len(derived.groups) == 15


def test_resnet20_has_the_symmetries_written_by_hand() -> None:
    module = known.resnet20()
    derived = derive(module, (IMAGE,))
    assert renamed(derived) == renamed(known.resnet_spec(module))
    assert len(derived.groups) == 3 + 9


def test_resnet50_has_the_symmetries_written_by_hand() -> None:
    module = known.resnet50(2)
    derived = derive(module, (IMAGE,))
    assert renamed(derived) == renamed(known.resnet_spec(module))
    assert len(derived.groups) == 5 + 2 * 16


# ------------------------------------------------------------------- random architectures


def left_out(
    spec: SymmetrySpec,
    tensors: dict[str, torch.Tensor],
    permutations: dict[str, torch.Tensor],
    place: Place,
) -> dict[str, torch.Tensor]:
    """Renumber everything but one appearance of a group."""

    def change(dims: tuple[blocks.Dim, ...], block: torch.Tensor) -> torch.Tensor:
        skip = [
            at for at, dim in enumerate(dims) if (dim.axis, dim.leaf) == (place.axis, place.leaf)
        ]
        return blocks.permute_block(spec, dims, block, permutations, skip)

    moved = blocks.permute(spec, tensors, permutations)
    for name, tensor in tensors.items():
        if spec.ties.get(name, name) == place.tensor:
            moved[name] = blocks._mapped(spec, blocks._parts(spec, name, tensor), tensor, change)
    return moved


def far(module: nn.Module, args: Any, before: Any, after: Any) -> float:
    """How far outputs are apart, as a share of the largest."""
    pairs = zip(outputs(module, before, args), outputs(module, after, args), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def drawn(
    module: nn.Module, spec: SymmetrySpec, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Normal numbers in place of a module's tensors; variances are positive."""
    tensors = {
        name: torch.rand(t.shape, generator=generator).to(t) + 0.5
        if name.endswith("running_var")
        else torch.randn(t.shape, generator=generator).to(t)
        for name, t in module.state_dict().items()
    }
    return {name: tensors[spec.ties.get(name, name)] for name in tensors}


def check_symmetries(example: Example, seed: int) -> None:
    """Every group leaves the outputs alone, and does not if one of its axes is left out."""
    module, args = example
    module = module.double().eval()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    spec = derive(module, args)
    generator = torch.Generator().manual_seed(seed)
    tensors = drawn(module, spec, generator)
    joint = blocks.random_permutation(spec, generator)
    assert far(module, args, tensors, blocks.permute(spec, tensors, joint)) < 1e-8
    for group in spec.groups:
        if not spec.groups[group].movable:
            continue
        turn = torch.roll(blocks.identity(spec)[group], 1, -1)
        assert far(module, args, tensors, blocks.permute(spec, tensors, {group: turn})) < 1e-8
        # a vector may have no effect at all: a bias before a mean is taken off, or that of keys
        places = [
            Place(name, axis, leaf)
            for name, layouts in spec.axes.items()
            if len(layouts) > 1
            for axis, layout in enumerate(layouts)
            for leaf, units in enumerate(leaves(layout))
            if units == Units(group)
        ]
        for place in places:
            # nor has what feeds units that are never active
            noise = torch.randn(tensors[place.tensor].shape, generator=generator).double() / 100
            nudged = {
                name: t * (1 + noise) if spec.ties.get(name, name) == place.tensor else t
                for name, t in tensors.items()
            }
            if far(module, args, tensors, nudged) < 1e-6:
                continue
            broken = left_out(spec, tensors, {group: turn}, place)
            assert far(module, args, tensors, broken) > 1e-8, f"{group} in {place}"
    for gauge in spec.gauges:
        shape = blocks.shape_of(spec, gauge.group)
        scales = torch.exp(torch.randn(shape, generator=generator).double())
        if gauge.kind.value == "sign":
            scales = torch.sign(scales - 1)
        if gauge.kind.value == "linear":
            matrix = torch.randn((*shape, shape[-1]), generator=generator).double()
            scales = matrix + 3 * torch.eye(shape[-1])
        changed = blocks.change_basis(spec, tensors, gauge, scales)
        assert far(module, args, tensors, changed) < 1e-6, gauge


QUICK = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a smaller module would be another one
    suppress_health_check=list(HealthCheck),
)


@given(example=modules, seed=st.integers(0, 99))
@QUICK
def test_outputs_bear_out_the_symmetries_of_random_architectures(
    example: Example, seed: int
) -> None:
    check_symmetries(example, seed)


EACH = 250
"""Architectures of each kind, of four: a thousand."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_bear_out_the_symmetries_of_a_thousand_architectures(kind: str) -> None:
    borne_out: set[tuple[str, int]] = set()

    @given(example=KINDS[kind], seed=st.integers(0, 2**31))
    @settings(QUICK, max_examples=2 * EACH)  # a fifth of what is drawn was drawn before
    def every(example: Example, seed: int) -> None:
        if len(borne_out) == EACH:
            return
        check_symmetries(example, seed)
        borne_out.add((str(example[0]), seed))

    every()
    assert len(borne_out) == EACH


@given(example=foreign_modules())
@settings(QUICK, max_examples=20)
def test_an_operation_that_no_rule_knows_is_refused_by_name(example: Example) -> None:
    module, args = example
    (name,) = (part.name for part in module.modules() if isinstance(part, Foreign))
    with pytest.raises(UnderivableError) as error:
        derive(module.eval(), args)
    if name == "branch":
        assert error.value.reason == "untraceable"
    else:
        assert error.value.reason == "unknown-operation"
        assert error.value.operation
        assert error.value.node in str(error.value)


def test_a_specification_that_outputs_do_not_bear_out_is_an_error() -> None:
    module, args = mlp([4, 5, 3]), (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),)
    spec = derive_checked(module, args)
    axes = {**spec.axes, "layers.0.bias": (Fixed(5),)}
    with pytest.raises(UnderivableError) as error:
        require_preserved(module, SymmetrySpec(groups=spec.groups, axes=axes), args)
    assert error.value.reason == "not-preserved"


def test_units_inside_of_heads_are_numbered_alike_once_heads_are_summed_over() -> None:
    store = Store()
    heads = Atom(3, ())
    inside = Atom(4, (heads,))
    t = Tracker(store, Scales())
    value = t.settled(Value((heads, inside), varies=True))
    mixing = Value((heads, heads), varies=True)
    assert store.depends(inside) == (heads,)
    # what is left has an axis of heads, but not the one that the units were numbered by
    t.contract(value, mixing, summed=[(0, 0)])
    assert store.depends(inside) == ()


# --------------------------------------------------------------------- joint permutations


def decoder() -> Example:
    """Heads with units inside, a fused matrix, a tied embedding."""
    from tests.compute.random_modules import Attention, Residual, SwiGlu, Tokens

    torch.manual_seed(0)
    layers = nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(24), Attention(24, 4, 2, "split", rotary=False))),
        Residual(nn.Sequential(nn.LayerNorm(24), SwiGlu(24, 20))),
    )
    return Tokens(24, layers, tied=True), (torch.arange(10).reshape(2, 5),)


@pytest.fixture(scope="module")
def decoded() -> tuple[SymmetrySpec, dict[str, torch.Tensor]]:
    module, args = decoder()
    spec = derive(module, args)
    return spec, unsettled(module, spec, torch.Generator().manual_seed(0))


@given(seed=st.integers(0, 2**31))
@settings(QUICK, max_examples=20)
def test_what_a_permutation_does_its_inverse_undoes(
    decoded: tuple[SymmetrySpec, dict[str, torch.Tensor]], seed: int
) -> None:
    spec, tensors = decoded
    generator = torch.Generator().manual_seed(seed)
    first, then = (blocks.random_permutation(spec, generator) for _ in range(2))
    moved = blocks.permute(spec, tensors, first)
    back = blocks.permute(spec, moved, blocks.inverse(spec, first))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    twice = blocks.permute(spec, moved, then)
    once = blocks.permute(spec, tensors, blocks.compose(spec, first, then))
    assert all(torch.equal(once[name], twice[name]) for name in tensors)
    nothing = blocks.compose(spec, first, blocks.inverse(spec, first))
    assert blocks.permutation_hash(spec, nothing) == blocks.permutation_hash(spec, {})


def test_a_permutation_has_one_hash(decoded: tuple[SymmetrySpec, dict[str, torch.Tensor]]) -> None:
    spec, _ = decoded
    joint = blocks.random_permutation(spec, torch.Generator().manual_seed(0))
    other = blocks.random_permutation(spec, torch.Generator().manual_seed(1))
    shuffled = dict(reversed(joint.items()))
    assert blocks.permutation_hash(spec, joint) == blocks.permutation_hash(spec, shuffled)
    assert blocks.permutation_hash(spec, joint) != blocks.permutation_hash(spec, other)


def test_what_is_no_permutation_of_the_units_is_refused(
    decoded: tuple[SymmetrySpec, dict[str, torch.Tensor]],
) -> None:
    spec, tensors = decoded
    group = next(iter(spec.groups))
    for wrong in (
        {"nobody": torch.arange(4)},
        {group: torch.arange(spec.groups[group].size + 1)},
        {group: torch.zeros(spec.groups[group].size, dtype=torch.long)},
        {group: torch.arange(spec.groups[group].size).double()},
    ):
        with pytest.raises(LocalProtocolError):
            blocks.permute(spec, tensors, wrong)
    with pytest.raises(LocalProtocolError):
        blocks.permute(spec, {"nothing": torch.zeros(3)}, {})
    with pytest.raises(LocalProtocolError):
        blocks.permute(spec, {name: t[:1] for name, t in tensors.items()}, {})


# --------------------------------------------------------------------------------- matching


def noisy_copy(
    spec: SymmetrySpec, ours: dict[str, torch.Tensor], seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A renumbered copy with noise, and what finds its way back."""
    generator = torch.Generator().manual_seed(seed)
    planted = blocks.random_permutation(spec, generator)
    noisy = {
        name: t + 0.1 * float(t.std()) * torch.randn(t.shape, generator=generator)
        if t.is_floating_point() and t.numel() > 1
        else t
        for name, t in ours.items()
    }
    return blocks.permute(spec, noisy, planted), blocks.inverse(spec, planted)


EXAMPLES: dict[str, Any] = {
    "mlp": lambda: (mlp([20, 16, 12, 5]), (torch.zeros(1, 20),)),
    "vgg16": lambda: (known.Vgg(4, 20, 10, 32), (IMAGE,)),
    "resnet20": lambda: (known.resnet20(4), (IMAGE,)),
    "resnet50": lambda: (known.resnet50(2), (IMAGE,)),
    "decoder": decoder,
    "grouped": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.GroupNorm(4, 12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, groups=4),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Flatten(),
            nn.LazyLinear(5),
        ),
        (torch.zeros(1, 3, 12, 12),),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_matching_finds_a_planted_permutation(name: str) -> None:
    torch.manual_seed(1)
    module, args = EXAMPLES[name]()
    module(*args)
    spec = derive(module, args)
    ours = unsettled(module, spec, torch.Generator().manual_seed(2))
    theirs, planted = noisy_copy(spec, ours, 3)
    found = match_symmetries(spec, ours, theirs, seed=0)
    assert blocks.permutation_hash(spec, found.permutations) == blocks.permutation_hash(
        spec, planted
    )


@pytest.mark.parametrize("seed", range(3))
def test_on_an_mlp_both_matchings_agree(seed: int) -> None:
    architecture = Architecture("mlp", {"widths": [20, 24, 24, 16, 5]})
    plain = permutation_spec(architecture)
    ours = random_init(architecture, seed)
    spec = of_permutation_spec(plain, ours)
    theirs, _ = noisy_copy(spec, ours, seed)
    found = match_symmetries(spec, ours, theirs, seed=seed)
    before = match_units(plain, ours, theirs, seed=seed)
    assert before.permutations == {g: tuple(p.tolist()) for g, p in found.permutations.items()}
    assert found.objective == pytest.approx(before.objective)


def test_models_that_do_not_fit_are_not_matched() -> None:
    module, args = mlp([4, 5, 3]), (torch.zeros(1, 4),)
    spec = derive(module, args)
    ours = dict(module.state_dict())
    broken = {**ours, "layers.0.bias": torch.tensor([0.0, 1.0, torch.nan, 2.0, 3.0])}
    for theirs in ({}, broken, {**ours, "layers.0.bias": torch.zeros(4)}):
        with pytest.raises(LocalProtocolError):
            match_symmetries(spec, ours, theirs, seed=0)


@given(example=modules, seed=st.integers(0, 99))
@settings(QUICK, max_examples=8)
def test_the_objective_never_falls_and_the_seed_decides(example: Example, seed: int) -> None:
    module, args = example
    spec = derive(module, args)
    ours, theirs = (drawn(module, spec, torch.Generator().manual_seed(seed + i)) for i in range(2))
    first, again = (match_symmetries(spec, ours, theirs, seed=seed) for _ in range(2))
    for before, after in itertools.pairwise(first.history):
        assert after >= before - 1e-9 * abs(before)
    assert blocks.permutation_hash(spec, first.permutations) == blocks.permutation_hash(
        spec, again.permutations
    )
    moved = blocks.permute(spec, theirs, first.permutations)
    total = sum(
        float((ours[name].double() * moved[name].double()).sum())
        for name in spec.axes
        if ours[name].is_floating_point()
    )
    assert first.objective == pytest.approx(total, rel=1e-6)
