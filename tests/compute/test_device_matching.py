"""Units are matched on a device by weights in sixteen bits, and as well as by all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from broker_node.align.similarity import Similarity, add_products_
from broker_node.align.symmetric_matching import match_symmetries, objective, pairs_of
from broker_node.verify.stages import Verified
from node.params import blocks
from node.params.architecture import permutation_spec
from node.params.symmetry import SymmetrySpec, of_permutation_spec
from tests.compute.test_devices import EVERY


def spec_of(model: Verified) -> SymmetrySpec:
    return of_permutation_spec(permutation_spec(model.architecture), model.tensors)


@pytest.mark.parametrize("name", EVERY)
def test_a_planted_permutation_is_found_on_a_device(
    name: str, pair: tuple[Verified, Verified]
) -> None:
    spec, ours = spec_of(pair[0]), pair[0].tensors
    generator = torch.Generator().manual_seed(4)
    planted = blocks.random_permutation(spec, generator)
    noisy = {
        key: tensor + 0.2 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for key, tensor in ours.items()
    }
    theirs = blocks.permute(spec, noisy, planted)
    found = match_symmetries(spec, ours, theirs, seed=0, device=torch.device(name))
    here = match_symmetries(spec, ours, theirs, seed=0)
    assert blocks.permutation_hash(spec, found.permutations) == blocks.permutation_hash(
        spec, here.permutations
    )
    assert {perm.device.type for perm in found.permutations.values()} == {"cpu"}


@pytest.mark.parametrize("name", EVERY)
def test_models_of_two_agents_line_up_as_well_as_by_all_their_bits(
    name: str, pair: tuple[Verified, Verified]
) -> None:
    ours, theirs = (model.tensors for model in pair)
    spec = spec_of(pair[0])
    found = match_symmetries(spec, ours, theirs, seed=3, device=torch.device(name))
    here = match_symmetries(spec, ours, theirs, seed=3)
    assert found.objective >= 0.99 * here.objective
    exact = pairs_of(spec, ours, theirs, torch.float32, None)
    assert found.objective == pytest.approx(objective(spec, exact, found.permutations), rel=1e-6)


def test_products_of_sixteen_bits_are_summed_in_thirty_two() -> None:
    ours_UF, theirs_VF = (
        torch.randn(5, 4_096, generator=torch.Generator().manual_seed(seed)).bfloat16()
        for seed in (1, 2)
    )
    similarity = Similarity([(ours_UF, theirs_VF)])
    similarity.certified(checks=False)
    assert similarity.total_UV.dtype == torch.float32
    exact_UV = ours_UF.double() @ theirs_VF.double().T
    torch.testing.assert_close(similarity.total_UV.double(), exact_UV, rtol=1e-4, atol=1e-3)


def test_on_cuda_the_sum_stays_there_in_thirty_two_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[torch.Tensor] = []
    mm: Any = torch.mm

    def noted(*sides: torch.Tensor, **how: torch.dtype) -> torch.Tensor:
        products.append(mm(*sides, **how))
        return products[-1]

    monkeypatch.setattr(torch, "mm", noted)
    with FakeTensorMode():  # shapes, types and devices, without a device
        total_UV = torch.zeros(3, 4, device="cuda")
        sides = (torch.zeros(rows, 8, dtype=torch.bfloat16, device="cuda") for rows in (3, 4))
        add_products_(total_UV, *sides)
    for sums in (*products, total_UV):
        assert (sums.device.type, sums.dtype) == ("cuda", torch.float32)
    assert len(products) == 1
