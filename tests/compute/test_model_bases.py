"""A copy whose norms and heads stand in another gauge is known for what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.align import bases
from broker_node.align.bases import likeness_of_weights, settled, turned
from broker_node.align.joint import joint_matching
from broker_node.align.weight_matching import weight_matching
from broker_node.verify.checks import verify
from broker_node.verify.replicas import THRESHOLD, likeness
from broker_node.verify.stages import Received, Verified
from node.params import blocks
from node.params.architecture import Architecture, apply, random_init
from node.params.encoding import weights_root
from node.params.families.base import GraphModel
from node.params.symmetry import GaugeKind, SymmetrySpec
from scripts import disguises
from tests.params import own_modules as mine
from tests.params.own_modules import IMAGE, own

TEXT = {"context": 8, "depth": 2, "heads": 3, "hidden": 20, "tied": False, "vocabulary": 11}
NETWORK = Architecture("resnet", {"classes": 10, "depth": 10, "image": [1, 8, 8], "widen": 1})


def built(norm: str) -> Architecture:
    return Architecture("gpt", {**TEXT, "norm": norm, "width": 12})


def symmetries(architecture: Architecture) -> SymmetrySpec:
    assert isinstance(architecture.model, GraphModel)
    return architecture.model.symmetries()


def learnt(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Return a start whose norms have gains and biases of their own, as trained ones do."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        if "norm" in name
        else tensor
        for name, tensor in random_init(architecture, seed).items()
    }


def model(architecture: Architecture, tensors: dict[str, torch.Tensor]) -> Verified:
    root = weights_root(tensors)
    return verify(Received(weights_root=root, architecture=architecture, tensors=tensors))


def rows_of(architecture: Architecture) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    of: Any = architecture.model
    if architecture.name == "gpt":
        return of.random_rows(32, generator).float()  # type: ignore[no-any-return]
    return torch.randn(32, of.input_width(), generator=generator)


def with_signs(
    spec: SymmetrySpec, tensors: dict[str, torch.Tensor], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    for gauge in spec.gauges:
        if gauge.kind is GaugeKind.SCALE:
            shape = blocks.shape_of(spec, gauge.group)
            signs = torch.randint(2, shape, generator=generator) * 2.0 - 1
            tensors = blocks.change_basis(spec, tensors, gauge, signs)
    return tensors


@given(seed=st.integers(0, 2**31), norm=st.sampled_from(["rms", "layer"]))
@settings(max_examples=20)
def test_signs_and_bases_of_a_language_model_have_one_choice(seed: int, norm: str) -> None:
    architecture = built(norm)
    spec, tensors = symmetries(architecture), learnt(architecture, seed)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(seed)
    other = with_signs(spec, disguises.in_other_bases(architecture, tensors, generator), generator)
    ours, theirs = (
        settled(spec, side) for side in (exact, {n: t.double() for n, t in other.items()})
    )
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-3)
    rows = rows_of(architecture)
    torch.testing.assert_close(apply(architecture, ours, rows), apply(architecture, exact, rows))
    assert likeness_of_weights(spec, ours, theirs) == pytest.approx(1, abs=1e-5)


def test_what_settles_a_model_leaves_what_it_was_given() -> None:
    architecture = built("rms")
    tensors = learnt(architecture, 1)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    settled(symmetries(architecture), tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


KINDS = {
    "gpt, rms": built("rms"),
    "gpt, layer": built("layer"),
    "resnet": NETWORK,
    "a module of heads": own(mine.transformer, *IMAGE),
    "a module with an axis of heads": own(mine.heads, *IMAGE),
    "a module of convolutions": own(mine.residual, *IMAGE),
}


@pytest.mark.parametrize("architecture", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_copy_in_another_gauge_is_a_replica(architecture: Architecture, share: float) -> None:
    generator = torch.Generator().manual_seed(4)
    tensors = learnt(architecture, 1)
    copy = disguises.noise(share)(tensors, generator)
    if isinstance(architecture.model, GraphModel):
        copy = disguises.in_other_bases(architecture, copy, generator)
        copy = with_signs(symmetries(architecture), copy, generator)
    copy = disguises.moved(architecture, copy, generator)
    rows = rows_of(architecture)
    alike = likeness(model(architecture, tensors), model(architecture, copy), rows)
    assert alike.score > (0.9 if share else 0.998)
    strangers = model(architecture, tensors), model(architecture, learnt(architecture, 2))
    assert likeness(*strangers, rows).score < THRESHOLD


def test_a_layer_before_a_norm_may_have_any_size() -> None:
    tensors = learnt(NETWORK, 1)
    louder = {n: t * 100 if n.endswith("conv1.weight") else t for n, t in tensors.items()}
    rows = rows_of(NETWORK)
    torch.testing.assert_close(
        apply(NETWORK, louder, rows), apply(NETWORK, tensors, rows), rtol=1e-3, atol=1e-3
    )
    assert likeness(model(NETWORK, tensors), model(NETWORK, louder), rows).weights > 0.9999


@pytest.mark.parametrize(
    "kind", ["gpt, rms", "gpt, layer", "a module of heads", "a module with an axis of heads"]
)
def test_a_copy_with_heads_in_other_bases_comes_back_as_a_product(kind: str) -> None:
    architecture = KINDS[kind]
    generator = torch.Generator().manual_seed(4)
    tensors = learnt(architecture, 1)
    copy = disguises.in_other_bases(architecture, tensors, generator)
    copy = disguises.moved(architecture, copy, generator)
    aligned = joint_matching(model(architecture, tensors), model(architecture, copy), seed=0)
    for name, tensor in aligned.transformed.items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-3)


def test_heads_of_low_rank_stay_in_their_basis() -> None:
    architecture = built("rms")
    spec, tensors = symmetries(architecture), learnt(architecture, 1)
    low = tensors | {"blocks.0.attention.query": tensors["blocks.0.attention.query"].clone()}
    low["blocks.0.attention.query"][1, 2] = 0
    exact = {name: tensor.double() for name, tensor in low.items()}
    other = learnt(architecture, 2)
    found = turned(spec, {name: tensor.double() for name, tensor in other.items()}, exact)
    kept = {name for name in found if torch.equal(found[name], exact[name])}
    assert {"blocks.0.attention.query", "blocks.0.attention.key"} <= kept
    assert "blocks.0.attention.value" not in kept
    rows = rows_of(architecture)
    torch.testing.assert_close(apply(architecture, found, rows), apply(architecture, exact, rows))
    aligned = joint_matching(model(architecture, other), model(architecture, low), seed=0)
    assert aligned.recipe is None


def test_heads_that_have_an_axis_of_their_own_have_a_basis_each() -> None:
    spec = symmetries(KINDS["a module with an axis of heads"])
    inside = {gauge.group for gauge in spec.gauges if gauge.kind is GaugeKind.LINEAR}
    assert {spec.groups[name].within for name in inside} == {("query/0",)}
    assert not [gauge for gauge in spec.gauges if gauge.group == "query/0"]


@pytest.mark.parametrize("share", [1e-45, 1e-30, 1e-15])
def test_models_of_next_to_nothing_are_compared_all_the_same(share: float) -> None:
    architecture = built("rms")
    tensors = learnt(architecture, 1)
    tensors["blocks.0.norm1.weight"] = torch.full_like(tensors["blocks.0.norm1.weight"], share)
    copy = disguises.moved(architecture, tensors, torch.Generator().manual_seed(0))
    copy["blocks.0.norm1.weight"] = tensors["blocks.0.norm1.weight"]
    pair = model(architecture, tensors), model(architecture, copy)
    assert likeness(*pair, rows_of(architecture)).weights <= 1 + 1e-9


@pytest.mark.parametrize("share", [0.0, 1e-22, 1e-40])
@pytest.mark.parametrize("side", ["buyer", "seller"])
def test_a_gain_that_decayed_to_nothing_stops_no_trade(side: str, share: float) -> None:
    ours, theirs = learnt(NETWORK, 1), learnt(NETWORK, 2)
    decayed = ours if side == "buyer" else theirs
    for part in ("weight", "bias"):
        decayed[f"blocks.1.norm1.{part}"][3] = share if part == "weight" else 0
    aligned = weight_matching(model(NETWORK, ours), model(NETWORK, theirs), seed=0)
    assert "blocks.1.norm1.bias#0" in aligned.exact_recipe.scales


def test_heads_too_wide_to_be_settled_stay_in_their_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "MAX_UNITS", 3)
    architecture = built("rms")
    tensors = learnt(architecture, 1)
    found = settled(symmetries(architecture), tensors)
    assert torch.equal(found["blocks.0.attention.query"], tensors["blocks.0.attention.query"])
    copy = disguises.moved(architecture, tensors, torch.Generator().manual_seed(0))
    pair = model(architecture, tensors), model(architecture, copy)
    assert likeness(*pair, rows_of(architecture)).score > 0.998


def test_heads_without_singular_vectors_stay_in_their_bases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    architecture = built("rms")
    tensors = learnt(architecture, 1)
    copy = disguises.moved(architecture, tensors, torch.Generator().manual_seed(0))
    pair = model(architecture, tensors), model(architecture, copy)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    assert likeness(*pair, rows_of(architecture)).score > 0.998
    assert joint_matching(*pair, seed=0).recipe is None
