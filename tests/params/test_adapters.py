"""Adapters are traded by what they add to one base, whatever their ranks and factors."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from typing import cast as typed

import pytest
import torch
import trio

from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received
from node.agent.selection import new_offers
from node.agent.settings import AgentSettings
from node.params.adapters import (
    Adapter,
    Base,
    applied,
    cosine,
    delta,
    inner,
    lora_of,
    merged,
    truncated,
    weighted_sum,
)
from node.params.architecture import (
    Architecture,
    apply,
    layout,
    parse_architecture,
    permutation_spec,
    random_init,
)
from node.params.encoding import weights_root
from node.params.errors import ProfileError
from node.params.families.base import ArchitectureError
from node.params.families.lora import MAX_RANK
from node.params.recipe import NO_ALIGNMENT, apply_recipe
from node.protocol import merkle
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.kinship import kin
from node.protocol.offer import Offer
from node.protocol.parameters import encoded_length
from node.protocol.types import ONE, Digest, Millionths
from node.station.station import Station
from tests.protocol import cast

MLP = Architecture("mlp", {"widths": [12, 10, 9, 4]})
BASE = Base.of(MLP, random_init(MLP, 0))
OTHER = Base.of(MLP, random_init(MLP, 1))
Modules = dict[str, list[int]]


def architecture_of(modules: Modules, base: Base = BASE) -> Architecture:
    below = {"config": base.architecture.config, "name": base.architecture.name}
    return Architecture("lora", {"base": below, "modules": modules, "root": base.root.hex()})


def adapter_of(modules: Modules, seed: int, base: Base = BASE) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    architecture = architecture_of(modules, base)
    tensors = {s.name: torch.randn(s.shape, generator=generator) for s in layout(architecture)}
    return Adapter(architecture, tensors)


def added(adapter: Adapter) -> dict[str, torch.Tensor]:
    """ΔW by the formula, written without the code under test."""
    found = {}
    for path, (rank, alpha) in adapter.architecture.config["modules"].items():  # type: ignore[attr-defined]
        a = adapter.tensors[f"base_model.model.{path}.lora_A.weight"].double()
        b = adapter.tensors[f"base_model.model.{path}.lora_B.weight"].double()
        found[path] = alpha / rank * torch.einsum("or,ri->oi", b, a)
    return found


OWN = adapter_of({"layers.0": [4, 8], "layers.1": [2, 3]}, 1)
SOLD = adapter_of({"layers.0": [3, 16], "layers.2": [1, 1]}, 2)

# ---------------------------------------------------------------- what an adapter is


def test_the_text_comes_back_and_names_base_root_and_ranks() -> None:
    text = OWN.architecture.text
    assert parse_architecture(text) == OWN.architecture
    assert json.loads(text)["config"] == {
        "base": {"config": {"widths": [12, 10, 9, 4]}, "name": "mlp"},
        "modules": {"layers.0": [4, 8], "layers.1": [2, 3]},
        "root": BASE.root.hex(),
    }
    shapes = {spec.name: spec.shape for spec in layout(OWN.architecture)}
    assert shapes["base_model.model.layers.0.lora_A.weight"] == (4, 12)
    assert shapes["base_model.model.layers.0.lora_B.weight"] == (10, 4)
    assert len(shapes) == 4


def configured(**changes: Any) -> dict[str, Any]:
    return {**OWN.architecture.config, **changes}


@pytest.mark.parametrize(
    "config",
    [
        configured(root=BASE.root.hex().upper()),
        configured(root="00"),
        configured(root=7),
        configured(modules={}),
        configured(modules=[]),
        configured(modules={"layers.3": [1, 1]}),
        configured(modules={"": [1, 1]}),
        configured(modules={"layers.0": [0, 1]}),
        configured(modules={"layers.0": [True, 1]}),
        configured(modules={"layers.0": [MAX_RANK + 1, 1]}),
        configured(modules={"layers.0": [1, 0]}),
        configured(modules={"layers.0": [1]}),
        configured(modules={"layers.0": 1}),
        configured(base={"config": OWN.architecture.config, "name": "lora"}),
        configured(base={"config": {}, "name": "mlp"}),
        configured(base={"config": {"widths": [2, 2]}, "name": "nothing"}),
        configured(base={"name": "mlp"}),
        configured(base="mlp"),
        configured(more=1),
    ],
)
def test_no_other_text_describes_an_adapter(config: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError):
        Architecture("lora", config)


def test_a_new_adapter_adds_nothing_and_computes_nothing_alone() -> None:
    fresh = Adapter(OWN.architecture, random_init(OWN.architecture, 3))
    whole = applied(fresh, BASE)
    assert all(torch.equal(whole[name], BASE.tensors[name]) for name in BASE.tensors)
    assert fresh.tensors["base_model.model.layers.0.lora_A.weight"].abs().max() > 0
    with pytest.raises(LocalProtocolError, match="base"):
        apply(OWN.architecture, OWN.tensors, torch.zeros(1, 12))


def test_an_adapted_model_answers_as_a_layer_with_a_branch_does() -> None:
    rows_RF = torch.randn(20, 12, generator=torch.Generator().manual_seed(5)).double()
    values = rows_RF
    for i in range(3):
        weight, bias = (BASE.tensors[f"layers.{i}.{kind}"].double() for kind in ("weight", "bias"))
        branch = values @ added(OWN)[f"layers.{i}"].T if i < 2 else 0.0
        values = values @ weight.T + bias + branch
        values = values.relu() if i < 2 else values
    found = apply(MLP, {n: t.double() for n, t in applied(OWN, BASE).items()}, rows_RF)
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5)
    for module in OWN.lora.modules:
        torch.testing.assert_close(delta(OWN, module), added(OWN)[module.path])


# ---------------------------------------------------------------- wrong bases, before a download


def offer_of(architecture: Architecture) -> Offer:
    length = encoded_length(layout(architecture))
    return cast.offer(
        architecture=architecture.text, byte_length=length, leaf_count=merkle.leaf_count(length)
    )


def test_a_broker_refuses_adapters_of_another_base_unfetched() -> None:
    rows = ValidationSet(torch.zeros(4, 12), torch.tensor([0, 1, 2, 3]))
    wider = Architecture("mlp", {"widths": [12, 10, 9, 9, 4]})
    elsewhere = Base.of(wider, random_init(wider, 0))
    ours = MarketAppraiser(rows, classes=4, base=BASE)
    ours.screen(offer_of(OWN.architecture))
    ours.screen(offer_of(SOLD.architecture))
    for wrong in (OTHER, elsewhere):
        with pytest.raises(RemoteProtocolError) as refused:
            ours.screen(offer_of(architecture_of({"layers.0": [4, 8]}, wrong)))
        assert refused.value.reason == "wrong-base"
    with pytest.raises(RemoteProtocolError) as refused:
        MarketAppraiser(rows, classes=4).screen(offer_of(OWN.architecture))
    assert refused.value.reason == "wrong-base"


def test_an_agent_takes_any_ranks_of_its_base_for_kin_and_nothing_else() -> None:
    ours = kin(OWN.architecture.text)
    assert kin(SOLD.architecture.text) == ours
    assert kin(architecture_of({"layers.0": [4, 8]}, OTHER).text) != ours
    assert kin(MLP.text) == MLP.text != ours
    twice = OWN.architecture.text.replace('"root"', '"root":"","root"')
    for text in ("", '{"config":[],"name":"lora"}', '[,"name":"lora"}', twice, " " + ours):
        assert kin(text) == text
    assert kin(ours) == ours


async def test_an_agent_tries_adapters_of_its_base_at_any_rank_and_of_no_other() -> None:
    listed = [
        (Digest(bytes([number]) * 32), offer_of(architecture))
        for number, architecture in enumerate(
            [SOLD.architecture, architecture_of({"layers.0": [4, 8]}, OTHER), MLP]
        )
    ]
    book = SimpleNamespace(latest_of_each_seller=lambda *_: listed, receipts=lambda _: [])
    station = SimpleNamespace(
        book=book, task="", clock=lambda: 0, account="0x0", heard=trio.Event()
    )
    found = await new_offers(
        typed("Station", station),
        typed("AgentSettings", SimpleNamespace(round_patience=0, trials_per_round=9)),
        OWN.architecture.text,
        parts=None,
        expected=1,
        brokers=[],
        tried=list,
        missed=[],
    )
    assert found == listed[:1]


def test_nothing_is_applied_to_nor_summed_over_other_weights() -> None:
    theirs = adapter_of({"layers.0": [4, 8]}, 3, OTHER)
    calls: list[Callable[[], object]] = [
        lambda: applied(theirs, BASE),
        lambda: weighted_sum([(0.5, OWN), (0.5, theirs)]),
        lambda: merged(OWN, theirs, Millionths(0)),
        lambda: merged(OWN, theirs, Millionths(ONE)),
    ]
    for call in calls:
        with pytest.raises(ProfileError) as refused:
            call()
        assert refused.value.reason == "wrong-base"


def test_a_broker_verifies_the_factors_of_an_adapter() -> None:
    root = weights_root(OWN.tensors)
    verify(Received(weights_root=root, architecture=OWN.architecture, tensors=OWN.tensors))
    with pytest.raises(RemoteProtocolError) as refused:
        verify(Received(weights_root=root, architecture=OWN.architecture, tensors=SOLD.tensors))
    assert refused.value.reason == "wrong-tensors"


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("alpha", [1, 250_000, 500_000, 999_999])
def test_side_by_side_factors_are_the_sum_of_what_is_added(alpha: int) -> None:
    both = merged(OWN, SOLD, Millionths(alpha))
    assert {each.path: each.rank for each in both.lora.modules} == {
        "layers.0": 7,
        "layers.1": 2,
        "layers.2": 1,
    }
    own, sold, found = added(OWN), added(SOLD), added(both)
    for path, total in found.items():
        zero = torch.zeros_like(total)
        wanted = (1 - alpha / ONE) * own.get(path, zero) + alpha / ONE * sold.get(path, zero)
        # two float32 roundings for each element of B
        assert float((total - wanted).norm()) <= 2**-23 * float(
            own.get(path, zero).norm() + sold.get(path, zero).norm()
        )


def test_a_merge_by_powers_of_two_is_exact_and_its_bytes_are_one_product_each() -> None:
    own = adapter_of({"layers.0": [4, 8]}, 1)
    both = merged(own, adapter_of({"layers.0": [2, 8]}, 2), Millionths(500_000))
    b = both.tensors["base_model.model.layers.0.lora_B.weight"]
    assert torch.equal(b[:, :4], own.tensors["base_model.model.layers.0.lora_B.weight"])
    assert weights_root(both.tensors) == weights_root(
        merged(own, adapter_of({"layers.0": [2, 8]}, 2), Millionths(500_000)).tensors
    )


def test_nothing_bought_is_ones_own_and_all_bought_is_the_sellers() -> None:
    assert merged(OWN, SOLD, Millionths(0)) is OWN
    assert merged(OWN, SOLD, Millionths(ONE)) is SOLD


def test_the_whole_model_of_a_merge_is_the_interpolation_of_the_whole_models() -> None:
    """So that a broker can search α over whole models."""
    whole = applied(merged(OWN, SOLD, Millionths(300_000)), BASE)
    own, sold = applied(OWN, BASE), applied(SOLD, BASE)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, own[name] * 0.7 + sold[name] * 0.3)


def test_factors_are_never_interpolated_nor_permuted() -> None:
    """The mean of the factors of one adapter in two gauges is another adapter."""
    turned = in_another_gauge(OWN, 6)
    recipe = NO_ALIGNMENT.with_alpha(Millionths(500_000))
    with pytest.raises(LocalProtocolError, match="products"):
        apply_recipe(OWN.architecture, OWN.tensors, turned.tensors, recipe)
    means = {name: (OWN.tensors[name] + turned.tensors[name]) / 2 for name in OWN.tensors}
    assert cosine(OWN, Adapter(OWN.architecture, means)) < 0.9
    assert cosine(OWN, merged(OWN, turned, Millionths(500_000))) == pytest.approx(1, abs=1e-6)
    assert not permutation_spec(OWN.architecture).groups


def in_another_gauge(adapter: Adapter, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in adapter.lora.modules:
        a, b = adapter.factors(module)
        m = torch.randn(module.rank, module.rank, generator=generator, dtype=torch.float64)
        names = module.factors
        tensors[names[0]] = (m @ a.double()).float()
        tensors[names[1]] = (b.double() @ torch.linalg.inv(m)).float()
    return Adapter(adapter.architecture, tensors)


def test_adapters_are_compared_by_what_they_add() -> None:
    own, sold = added(OWN), added(SOLD)
    wanted = sum(float((own[path] * sold[path]).sum()) for path in own.keys() & sold.keys())
    assert inner(OWN, SOLD) == pytest.approx(wanted)
    assert cosine(OWN, in_another_gauge(OWN, 4)) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(OWN, SOLD)) < 0.9
    assert cosine(OWN, Adapter(OWN.architecture, random_init(OWN.architecture, 0))) == 0


def test_past_the_largest_rank_and_number_a_sum_is_refused() -> None:
    wide = adapter_of({"layers.0": [MAX_RANK, 1]}, 1)
    with pytest.raises(ArchitectureError, match="rank"):
        weighted_sum([(1.0, wide), (1.0, OWN)])
    with pytest.raises(LocalProtocolError, match="weight"):
        weighted_sum([(0.0, OWN)])
    huge = Adapter(OWN.architecture, {n: t * 1e37 for n, t in OWN.tensors.items()})
    with pytest.raises(ProfileError) as refused:
        weighted_sum([(1e3, huge)])
    assert refused.value.reason == "not-finite"
    with pytest.raises(ProfileError) as refused:
        applied(huge, BASE)
    assert refused.value.reason == "not-finite"


# ---------------------------------------------------------------- back to the buyer's rank


def test_a_truncation_is_the_best_of_its_rank_and_says_what_it_cost() -> None:
    both = merged(OWN, SOLD, Millionths(400_000))
    found = truncated(both, OWN.lora)
    assert set(found.losses) == {"layers.0", "layers.1"}
    ranks = {each.path: [each.rank, each.alpha] for each in found.adapter.lora.modules}
    assert ranks == {"layers.0": [4, 8], "layers.1": [2, 3], "layers.2": [1, 1]}
    before, after = added(both), added(found.adapter)
    for path, loss in found.losses.items():
        values = torch.linalg.svdvals(before[path])
        rank = ranks[path][0]
        assert loss.norm == pytest.approx(float(before[path].norm()))
        assert loss.least == pytest.approx(float(values[rank:].norm()), abs=1e-9 * loss.norm)
        error = float((after[path] - before[path]).norm())
        assert loss.error == pytest.approx(error, rel=1e-6, abs=1e-9)
        assert loss.error == pytest.approx(loss.least, rel=1e-5, abs=1e-5 * loss.norm)
    assert found.losses["layers.0"].least > 0.01 * found.losses["layers.0"].norm
    assert torch.equal(after["layers.2"], before["layers.2"])
    lost = sum(loss.error**2 for loss in found.losses.values())
    norm = sum(loss.norm**2 for loss in found.losses.values())
    assert found.relative_error == pytest.approx((lost / norm) ** 0.5)


def test_no_other_adapter_of_the_rank_comes_nearer() -> None:
    both = merged(OWN, SOLD, Millionths(400_000))
    found = truncated(both, OWN.lora).losses["layers.0"].error
    wanted = added(both)["layers.0"]
    rivals = [truncated(both, adapter_of({"layers.0": [4, 8]}, 0).lora).adapter, OWN]
    rivals += [adapter_of({"layers.0": [4, 8]}, seed) for seed in range(20)]
    for rival in rivals:
        assert float((added(rival)["layers.0"] - wanted).norm()) >= found * (1 - 1e-6)


def test_ranks_that_suffice_lose_nothing_and_stay_trainable() -> None:
    wider = architecture_of({"layers.0": [12, 5], "layers.1": [9, 2]})
    for adapter in (OWN, Adapter(OWN.architecture, random_init(OWN.architecture, 0))):
        found = truncated(adapter, lora_of(wider))
        assert found.relative_error < 1e-6
        assert found.adapter.architecture == wider
        for module in found.adapter.lora.modules:
            a_RI, _ = found.adapter.factors(module)
            assert float(a_RI.norm(dim=1).min()) > 0
