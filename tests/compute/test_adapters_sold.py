"""Adapters are sold pair by pair, of few ranks, and never such that their buyer is left alone."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from broker_node.align.stages import Aligned
from broker_node.appraisal import MarketAppraiser
from broker_node.calls.desk import CallDesk
from broker_node.clearing.broker import ClearingBroker
from broker_node.evaluate.adapters import as_traded, merged_pair, whole_pair
from broker_node.evaluate.evaluation import evaluate
from broker_node.evaluate.methods import align
from broker_node.evaluate.validation import ValidationSet
from broker_node.verify.checks import MAX_MAGNITUDE
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.adapters import MAX_SOLD_RANK, Adapter, Base, cosine
from node.params.architecture import Architecture, layout
from node.params.families.lora import MAX_ALPHA, MAX_RANK
from node.params.recipe import NO_ALIGNMENT
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from node.protocol.pooling import JoinRound
from node.protocol.types import ONE, Digest, Millionths, Wei
from tests.params.learned_adapters import (
    FOLDER,
    PERCEPTRON,
    adapter_of,
    base_of,
    buyers,
    rows_of,
    sellers,
    verified,
)
from tests.protocol import cast

NOTICE = (cast.NOTICE_DIGEST, cast.NOTICE)


@pytest.fixture(scope="module")
def base() -> Base:
    torch.set_num_threads(1)
    return base_of(PERCEPTRON)


@pytest.fixture(scope="module")
def rows() -> ValidationSet:
    return ValidationSet.of(split_test(load_digits(FOLDER)).validation)


@pytest.fixture(scope="module")
def appraiser(base: Base, rows: ValidationSet) -> MarketAppraiser:
    return MarketAppraiser(rows, classes=10, base=base)


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
async def test_a_round_is_not_joined_with_adapters_of_any_rank(rank: int, base: Base) -> None:
    """One of them with padded ranks, or a few honest ones, have no sum: nobody pays for that."""
    text = of_rank(rank, base).text
    offer = offer_of(of_rank(4, base)) if rank == 4 else cast.offer(architecture=text)
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
def test_a_call_refuses_adapters_at_their_trial(mechanism: str, base: Base) -> None:
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
    tried.offer = cast.offer(architecture=base.architecture.text)
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


def test_adapters_are_not_sold_whose_merges_no_broker_takes(
    appraiser: MarketAppraiser, base: Base
) -> None:
    ours, honest = verified(buyers(PERCEPTRON), base), sellers(PERCEPTRON)
    loud = turned(honest, size=1_000)
    assert cosine(loud, honest) == pytest.approx(1, abs=1e-6)
    theirs = verified(loud, base)  # each of the factors is sane by itself
    with pytest.raises(RemoteProtocolError) as refused:
        appraiser.measure(ours, theirs, task="digits", notice=NOTICE)
    assert refused.value.reason == "bad-magnitude"
    assert refused.value.detail.startswith("what is merged: ")
    # as loud as may be, and taken
    quiet = verified(turned(honest, size=1), base)
    trial = appraiser.measure(ours, quiet, task="digits", notice=NOTICE)
    assert trial.evaluation.gain > 500_000


@pytest.mark.parametrize("alpha", [0, 1, ONE])
def test_what_is_bought_outright_is_seen_as_the_next_merge_will_have_it(
    alpha: int, base: Base, rows: ValidationSet
) -> None:
    ours = verified(buyers(PERCEPTRON), base)
    theirs = verified(turned(sellers(PERCEPTRON), size=0.9 * MAX_MAGNITUDE), base)
    aligned: Aligned = align("identity", ours, theirs, seed=0)
    found = evaluate(whole_pair(aligned), rows, seed=Digest(bytes(32)))
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
    appraiser: MarketAppraiser, base: Base
) -> None:
    appraiser.screen(offer_of(of_rank(MAX_SOLD_RANK, base)))
    padded = of_rank(MAX_SOLD_RANK + 1, base)
    with pytest.raises(RemoteProtocolError) as refused:
        appraiser.screen(offer_of(padded))
    assert refused.value.reason == "bad-rank"
    assert "layers.0: 257" in refused.value.detail
    appraiser.screen(offer_of(padded, reserve=NOT_FOR_SALE))
