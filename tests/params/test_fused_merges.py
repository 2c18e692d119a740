"""Who bought of several sellers takes up a mean of what each purchase would have given (Eq. 16)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_node.mechanisms.fusion import fuse_layers
from node.params.fusion import fuse_merges
from node.protocol.errors import LocalProtocolError

NAMES = ("first", "second", "third")


def model(seed: int, names: tuple[str, ...] = NAMES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, generator=generator) for name in names}


def merged(
    own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    return {name: own[name] + alpha * (tensor - own[name]) for name, tensor in theirs.items()}


@given(
    supplied=st.lists(st.integers(1, 3), max_size=4),
    alphas=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=50, deadline=None)
def test_the_mean_of_the_merges_is_equation_16_layer_by_layer(
    supplied: list[int], alphas: list[float], seed: int
) -> None:
    own = model(seed)
    theirs = [model(seed + 1 + i, NAMES[:layers]) for i, layers in enumerate(supplied)]
    merges = [merged(own, one, a) for one, a in zip(theirs, alphas, strict=False)]
    found = fuse_merges(own, merges)
    arrays = {name: tensor.numpy() for name, tensor in own.items()}
    twin = fuse_layers(
        arrays, [{n: t.numpy() for n, t in one.items()} for one in merges], [1.0] * len(merges)
    )
    paper = fuse_layers(
        arrays, [{n: t.numpy() for n, t in one.items()} for one in theirs], alphas[: len(theirs)]
    )
    for name in NAMES:
        assert np.array_equal(found[name].numpy(), twin[name])
        assert np.allclose(found[name].numpy(), paper[name], atol=1e-6)


def test_what_nobody_sold_stays_and_one_purchase_is_its_own_merge_to_the_byte() -> None:
    own, merge = model(1), model(2, ("first",))
    found = fuse_merges(own, [merge])
    assert torch.equal(found["first"], merge["first"])
    assert torch.equal(found["third"], own["third"])
    assert all(torch.equal(fuse_merges(own, [])[name], own[name]) for name in NAMES)


def test_a_layer_that_is_no_part_of_ours_is_refused_by_name() -> None:
    with pytest.raises(LocalProtocolError, match="'fourth'"):
        fuse_merges(model(1), [model(2, ("fourth",))])
    with pytest.raises(LocalProtocolError, match="'first'"):
        fuse_merges(model(1), [{"first": torch.zeros(2)}])
