"""A language model whose basis was changed is the same model, and is brought back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from broker_node.align.bases import nearest_rotation
from broker_node.align.learned_gauge import inner_loss, learned, learned_gauge
from broker_node.align.orthogonal import (
    Gauge,
    folded,
    gauge_of,
    moved,
    orthogonal,
    sides_of,
    unfolded,
)
from broker_node.align.registry import ALIGNERS
from broker_node.align.stages import Aligned, AlignmentError
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.params.architecture import Architecture, apply, part_of, random_init
from node.params.encoding import weights_root
from node.params.families.gpt import Gpt

CONFIG: dict[str, Any] = {
    "context": 8, "depth": 2, "heads": 4, "hidden": 20, "norm": "rms", "tied": False,
    "vocabulary": 11, "width": 16,
}  # fmt: skip
ARCHITECTURE = Architecture("gpt", CONFIG)
METHODS = ("orthogonal", "learned-gauge")


def gpt() -> Gpt:
    assert isinstance(ARCHITECTURE.model, Gpt)
    return ARCHITECTURE.model


def verified(tensors: dict[str, torch.Tensor], architecture: Architecture) -> Verified:
    return verify(
        Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
    )


def model(seed: int) -> Verified:
    """Return a model whose gains are not 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = random_init(ARCHITECTURE, seed)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensors[name] = tensor + torch.rand(tensor.shape, generator=generator)
    return verified(tensors, ARCHITECTURE)


def rows(count: int = 64) -> torch.Tensor:
    return gpt().random_rows(count, torch.Generator().manual_seed(9)).float()


def any_gauge(*, orthogonal_inside: bool) -> Gauge:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def inside() -> list[torch.Tensor]:
        found = [drawn(4, 4, 4) for _ in range(2)]
        turned = [nearest_rotation(each) for each in found]
        return (
            turned
            if orthogonal_inside
            else [a + 0.1 * b for a, b in zip(turned, found, strict=True)]
        )

    return Gauge(
        stream_DD=nearest_rotation(drawn(16, 16)),
        heads=[torch.randperm(4, generator=generator) for _ in range(2)],
        inner_QK=inside(),
        inner_VO=inside(),
        hidden=[torch.randperm(20, generator=generator) for _ in range(2)],
    )


def disguised(original: Verified, gains: Verified) -> Verified:
    """Return the same model in another basis, with another model's gains."""
    side = moved(gpt(), folded(gpt(), original.tensors), any_gauge(orthogonal_inside=True))
    found = unfolded(gpt(), side, gains.tensors)
    return verified({name: found[name].float().contiguous() for name in found}, ARCHITECTURE)


def test_no_gauge_changes_what_a_model_answers() -> None:
    original = model(0).tensors
    side = moved(gpt(), folded(gpt(), original), any_gauge(orthogonal_inside=False))
    found = unfolded(gpt(), side, model(1).tensors)
    double = {name: tensor.double() for name, tensor in original.items()}
    before, after = (apply(ARCHITECTURE, each, rows().double()) for each in (double, found))
    torch.testing.assert_close(before, after)
    assert all(not torch.allclose(found[name], double[name]) for name in double)


def test_a_copy_in_another_basis_is_found() -> None:
    buyer = model(0)
    found = orthogonal(buyer, disguised(buyer, model(1)), seed=0, probe_RF=rows())
    assert found.recipe is None
    for name, tensor in buyer.tensors.items():
        torch.testing.assert_close(found.transformed[name], tensor, atol=1e-5, rtol=1e-4)
    permuted = ALIGNERS["universe"](buyer, disguised(buyer, model(1)), seed=0, probe_RF=rows())
    off = permuted.transformed["head.weight"] - buyer.tensors["head.weight"]
    assert float(off.abs().max()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_lined_up_answers_as_what_was_sold(method: str) -> None:
    buyer, seller = model(0), model(1)
    found: Aligned = ALIGNERS[method](buyer, seller, seed=0, probe_RF=rows())
    assert found.method == method
    with pytest.raises(AlignmentError, match="has no recipe"):
        _ = found.exact_recipe
    before, after = (
        apply(ARCHITECTURE, each, rows()) for each in (seller.tensors, found.transformed)
    )
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert {n: t.shape for n, t in found.transformed.items()} == {
        n: t.shape for n, t in seller.tensors.items()
    }
    again = ALIGNERS[method](buyer, seller, seed=0, probe_RF=rows())
    assert all(torch.equal(found.transformed[n], again.transformed[n]) for n in found.transformed)


def test_what_is_learned_is_a_merge_that_tells_the_rows_better() -> None:
    sides = sides_of(model(0), model(1), rows(), "orthogonal")
    start = gauge_of(sides)
    end = learned(sides, start, seed=0, steps=60)

    def loss(gauge: Gauge) -> float:
        theirs = moved(gpt(), sides.theirs, gauge)
        merged = {name: (sides.ours[name] + theirs[name]) / 2 for name in theirs}
        return float(inner_loss(sides, merged, rows().double()))

    assert loss(end) < loss(start) - 0.05
    turn = end.stream_DD
    torch.testing.assert_close(turn @ turn.T, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt", {**CONFIG, "norm": "layer"}),
        ("gpt", {**CONFIG, "tied": True}),
        ("mlp", {"widths": [8, 4, 3]}),
    ],
)
def test_models_without_that_freedom_are_refused(
    method: str, name: str, config: dict[str, Any]
) -> None:
    architecture = Architecture(name, config)
    pair = [verified(random_init(architecture, seed), architecture) for seed in (0, 1)]
    with pytest.raises(AlignmentError, match=f"`{method}` is for `gpt` with norm rms"):
        ALIGNERS[method](pair[0], pair[1], seed=0, probe_RF=rows())


@pytest.mark.parametrize("method", METHODS)
def test_layers_and_missing_rows_are_refused(method: str) -> None:
    buyer, whole = model(0), model(1)
    part = part_of(ARCHITECTURE, whole.tensors, (0,))
    layer = verify(
        Received(
            weights_root=weights_root(part), architecture=ARCHITECTURE, tensors=part, layers=(0,)
        )
    )
    with pytest.raises(AlignmentError, match="some are not sold"):
        ALIGNERS[method](buyer, layer, seed=0, probe_RF=rows())
    with pytest.raises(AlignmentError, match="needs unlabelled rows"):
        ALIGNERS[method](buyer, whole, seed=0)


def test_a_gain_of_zero_is_refused_and_not_divided_by() -> None:
    tensors = dict(model(0).tensors)
    tensors["blocks.0.norm1.weight"] = torch.cat((torch.zeros(1), torch.ones(15)))
    with pytest.raises(AlignmentError, match=r"blocks\.0\.norm1\.weight is next to 0"):
        orthogonal(verified(tensors, ARCHITECTURE), model(1), seed=0, probe_RF=rows())


def test_one_token_a_row_teaches_no_gauge() -> None:
    architecture = Architecture("gpt", {**CONFIG, "context": 1})
    pair = [verified(random_init(architecture, seed), architecture) for seed in (0, 1)]
    with pytest.raises(AlignmentError, match="2 tokens or more"):
        learned_gauge(pair[0], pair[1], seed=0, probe_RF=torch.zeros(4, 1))
