"""Adapters are sold pair by pair, of few ranks, and never such that their buyer is left alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from broker_node.align.stages import Aligned
from broker_node.appraisal import MarketAppraiser
from broker_node.calls.desk import CallDesk
from broker_node.clearing.broker import ClearingBroker
from broker_node.evaluate.adapters import as_traded, merged_pair, whole_pair
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.methods import align
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import MAX_MAGNITUDE
from broker_node.verify.stages import Verified
from node.params.adapters import MAX_SOLD_RANK, Adapter, Base, cosine
from node.params.architecture import Architecture, layout
from node.params.encoding import weights_root
from node.params.families.lora import MAX_ALPHA, MAX_RANK
from node.params.recipe import NO_ALIGNMENT
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from node.protocol.pooling import JoinRound
from node.protocol.types import ONE, Digest, Millionths, Wei
from tests.params.learned_adapters import (
    PERCEPTRON,
    adapter_of,
    buyers,
    rows_of,
    sellers,
    verified,
)
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)


def offer_of(architecture: Architecture, **changes: Any) -> Offer:
    length = encoded_length(layout(architecture))
    return cast.offer(
        architecture=architecture.text,
        byte_length=length,
        leaf_count=merkle.leaf_count(length),
        **changes,
    )


def of_rank(rank: int, base: Base) -> Architecture:
    return adapter_of(base, {"layers.0": [rank, 1]}, rows_of(range(10), 50), 0, 1).architecture


# ---------------------------------------------------------------- no fusing of many


@pytest.mark.parametrize("rank", [4, MAX_RANK])
async def test_a_round_is_not_joined_with_adapters_of_any_rank(
    rank: int, perceptron_base: Base
) -> None:
    """One of them with padded ranks, or a few honest ones, have no sum: nobody pays for that."""
    text = of_rank(rank, perceptron_base).text
    offer = offer_of(of_rank(4, perceptron_base)) if rank == 4 else cast.offer(architecture=text)
    gathered: list[Any] = []
    bases: Any = SimpleNamespace(offer=lambda *_: offer, data_of=lambda _: b"")
    broker: Any = SimpleNamespace(
        _given={},
        intake=SimpleNamespace(bases=bases),
        station=SimpleNamespace(clock=lambda: 0, account=cast.BROKER.account),
        _rounds=None,
        _rule=SimpleNamespace(admit=lambda _: None, most_parties=8),
        _gathering=SimpleNamespace(add=gathered.append),
    )
    asked = JoinRound(base_digest=cast.word("base"), cost=Wei(1), reserve=Wei(0))
    with pytest.raises(RemoteProtocolError) as refused:
        await ClearingBroker._join(broker, offer.peer_id, asked)
    assert refused.value.reason == "adapters-pairwise"
    assert "--mechanism nash" in refused.value.detail
    assert not gathered


@pytest.mark.parametrize("mechanism", ["eeg", "nash"])
def test_a_call_refuses_adapters_at_their_trial(mechanism: str, perceptron_base: Base) -> None:
    nobody: Any = SimpleNamespace()
    settings: Any = SimpleNamespace(mechanism=mechanism, call_seconds=1)
    desk = CallDesk(nobody, nobody, settings)
    buyer = cast.offer(cast.BUYER, architecture=buyers(PERCEPTRON).architecture.text)
    tried: Any = SimpleNamespace(
        offer=offer_of(sellers(PERCEPTRON).architecture),
        offer_digest=cast.word("offer"),
        buyer=buyer,
        trial=SimpleNamespace(evaluation=SimpleNamespace(gain=1)),
    )
    if mechanism == "nash":
        desk.tried(cast.word("trial"), tried)
        return
    with pytest.raises(RemoteProtocolError) as refused:
        desk.tried(cast.word("trial"), tried)
    assert refused.value.reason == "adapters-pairwise"
    assert not desk._accounts
    tried.offer = cast.offer(architecture=perceptron_base.architecture.text)
    desk.tried(cast.word("trial"), tried)
    assert desk._accounts


# ---------------------------------------------------------------- nothing that harms its buyer


def turned(adapter: Adapter, size: float) -> Adapter:
    """The same ΔW at the largest α: factors that are sane, B of up to `size`, A nearly nothing."""
    modules = {each.path: [each.rank, MAX_ALPHA] for each in adapter.lora.modules}
    config = {**adapter.architecture.config, "modules": modules}
    tensors = {}
    for module in adapter.lora.modules:
        a, b = module.factors
        factor = size / float(adapter.tensors[b].abs().max())
        tensors[b] = adapter.tensors[b] * factor
        scale = module.scale * module.rank / MAX_ALPHA
        tensors[a] = adapter.tensors[a] * (scale / factor)
    return Adapter(Architecture("lora", config), tensors)


@pytest.mark.parametrize(("factor", "what"), [("lora_B", "B"), ("", "B·A")])
def test_adapters_that_change_weights_beyond_measure_are_not_taken_in(
    factor: str, what: str, perceptron_base: Base
) -> None:
    """Their factors are sane, and their scale is what is not."""
    honest = sellers(PERCEPTRON)
    modules = {each.path: [each.rank, MAX_ALPHA] for each in honest.lora.modules}
    architecture = Architecture("lora", {**honest.architecture.config, "modules": modules})
    for times, taken in ((1, True), (1_000, False)):
        tensors = {
            name: times * tensor if factor in name else tensor
            for name, tensor in honest.tensors.items()
        }
        if not factor:  # A alone is large: what B is by its scale stays as it was
            tensors |= {name: t / times for name, t in tensors.items() if "lora_B" in name}
        assert max(float(tensor.abs().max()) for tensor in tensors.values()) < MAX_MAGNITUDE / 100
        loud = Adapter(architecture, tensors)
        if taken:
            assert verified(loud, perceptron_base).base is perceptron_base
            continue
        with pytest.raises(RemoteProtocolError) as refused:
            verified(loud, perceptron_base)
        assert refused.value.reason == "bad-magnitude"
        assert f"α/r · {what} is up to" in refused.value.detail


def test_a_factor_that_is_large_where_the_other_is_nothing_is_taken_in(
    perceptron_base: Base,
) -> None:
    """What counts is the product: norms alone would refuse it."""
    honest = sellers(PERCEPTRON)
    tensors = {name: tensor.clone() for name, tensor in honest.tensors.items()}
    for each in honest.lora.modules:
        a, b = each.factors
        tensors[a][0], tensors[b][:, 0] = 0.9 * MAX_MAGNITUDE, 0
        tensors[b][:, 1:] *= 10
    loud = Adapter(honest.architecture, tensors)
    assert verified(loud, perceptron_base).tensors is tensors


def unchecked(adapter: Adapter, base: Base) -> Verified:
    """As if a broker had let it in."""
    return dataclasses.replace(
        verified(sellers(PERCEPTRON), base),
        weights_root=weights_root(adapter.tensors),
        architecture=adapter.architecture,
        tensors=adapter.tensors,
    )


def test_adapters_are_not_sold_whose_merges_no_broker_takes(
    adapter_appraiser: MarketAppraiser, perceptron_base: Base
) -> None:
    ours, honest = verified(buyers(PERCEPTRON), perceptron_base), sellers(PERCEPTRON)
    loud = turned(honest, size=1_000)
    assert cosine(loud, honest) == pytest.approx(1, abs=1e-6)
    theirs = unchecked(loud, perceptron_base)
    with pytest.raises(RemoteProtocolError) as refused:
        adapter_appraiser.measure(ours, theirs, task="digits", notice=NOTICE)
    assert refused.value.reason == "bad-magnitude"
    assert refused.value.detail.startswith("what is merged: ")
    # as loud as may be, and taken
    quiet = verified(turned(honest, size=1), perceptron_base)
    trial = adapter_appraiser.measure(ours, quiet, task="digits", notice=NOTICE)
    assert trial.evaluation.gain > 500_000


@pytest.mark.parametrize("alpha", [0, 1, ONE])
def test_what_is_bought_outright_is_seen_as_the_next_merge_will_have_it(
    alpha: int, perceptron_base: Base, validation: ValidationSet
) -> None:
    ours = verified(buyers(PERCEPTRON), perceptron_base)
    theirs = unchecked(turned(sellers(PERCEPTRON), size=0.9 * MAX_MAGNITUDE), perceptron_base)
    aligned: Aligned = align("identity", ours, theirs, seed=0)
    found = evaluate(whole_pair(aligned), validation, seed=Digest(bytes(32)))
    share = Millionths(alpha)
    found = dataclasses.replace(found, recipe=NO_ALIGNMENT.with_alpha(share))
    merged = merged_pair(aligned, share)
    assert max(float(tensor.abs().max()) for tensor in merged.tensors.values()) < MAX_MAGNITUDE
    if alpha != ONE:  # a millionth of it is loud, and is taken
        assert as_traded(aligned, found).merged_root == merged.weights_root
        return
    with pytest.raises(RemoteProtocolError, match="bad-magnitude"):
        as_traded(aligned, found)


def test_what_is_sold_is_of_few_ranks_and_what_is_only_tried_upon_of_any(
    adapter_appraiser: MarketAppraiser, perceptron_base: Base
) -> None:
    adapter_appraiser.screen(offer_of(of_rank(MAX_SOLD_RANK, perceptron_base)))
    padded = of_rank(MAX_SOLD_RANK + 1, perceptron_base)
    with pytest.raises(RemoteProtocolError) as refused:
        adapter_appraiser.screen(offer_of(padded))
    assert refused.value.reason == "bad-rank"
    assert "layers.0: 257" in refused.value.detail
    adapter_appraiser.screen(offer_of(padded, reserve=NOT_FOR_SALE))
