"""Adapters of unequal ranks change hands, and those of another base are nobody's to fetch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from broker_node.service import Broker
from node.agent.agent import Agent
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.adapters import Adapter, Base, lora_of, merged
from node.params.architecture import layout, parse_architecture
from node.params.encoding import weights_root
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import TrialRequest, TrialResult
from node.protocol.offer import Offer
from node.protocol.parameters import encoded_length
from node.protocol.types import Digest
from tests.market.market import Market, Party, bought, eventually, open_market
from tests.params.learned_adapters import (
    FOLDER,
    ONE_LAYER,
    PERCEPTRON,
    base_of,
    buyers,
    loss_of,
    sellers,
    strangers,
)  # fmt: skip


class AdaptingBroker(Broker):
    """Holds a base, and measures on digits."""

    base: Base

    def __init__(self, **arguments: Any) -> None:
        rows = ValidationSet.of(split_test(load_digits(FOLDER)).validation)
        appraiser = MarketAppraiser(rows, classes=10, base=self.base)
        super().__init__(**(arguments | {"appraiser": appraiser}))


class AdaptingAgent(Agent):
    """Its rounds are a test's to play."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"trainer": None}))
        self.served: list[bytes] = []
        serve = self.seller.serve_weights

        def counted(peer: Any, root: Any, part: str) -> Any:
            self.served.append(root)
            return serve(peer, root, part)

        self.seller.serve_weights = counted  # type: ignore[method-assign,assignment]


@asynccontextmanager
async def market_of(
    folder: Path, widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Market]:
    torch.set_num_threads(1)
    monkeypatch.setattr(AdaptingBroker, "base", base_of(widths), raising=False)
    async with open_market(folder, AdaptingBroker, trial_seed=Digest(bytes(32))) as market:
        await market.join("seller", AdaptingAgent)
        await market.join("stranger", AdaptingAgent, round_patience=1)
        await market.join("buyer", AdaptingAgent, round_patience=5)
        yield market


async def offers(party: Party, adapter: Adapter) -> Offer:
    name = await party.shell.session.offer(adapter.architecture, dict(adapter.tensors))
    offer = party.station.own_offer(name)
    assert offer is not None
    return offer


@pytest.mark.parametrize("widths", [PERCEPTRON, ONE_LAYER], ids=str)
async def test_adapters_of_ranks_4_and_8_trade_and_the_buyers_merge_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widths: tuple[int, ...]
) -> None:
    base, ours, theirs = base_of(widths), buyers(widths), sellers(widths)
    async with market_of(tmp_path, widths, monkeypatch) as market:
        seller, buyer = market["seller"], market["buyer"]
        offer = await offers(seller, theirs)
        await offers(buyer, ours)
        await eventually(lambda: buyer.sees(seller), "the offer")
        step = await buyer.shell.session.step()
        assert step.because == "bought", (step, buyer.blamed())
        adopted = await buyer.shell.session.adopt()
        assert step.trade_id is not None
        trade = buyer.shell.desk.find(step.trade_id, "buyer")
        record = bought(trade)
        await market.see_paid(trade, buyer, seller)

        # what came is the sum of products, at ranks added; byte for byte what was measured
        measured, alpha = record.evaluation, record.evaluation.alpha
        both = merged(ours, theirs, alpha)
        text = buyer.shell.session.outcome_of
        assert both.architecture.text == text
        assert weights_root(adopted) == measured.merged_root == weights_root(both.tensors)
        ranks = {module.path: module.rank for module in lora_of(parse_architecture(text)).modules}
        assert ranks["layers.0"] == 4 + 8
        assert measured.method == "identity+halving-brent"
        assert (measured.base_root, measured.sold_root) == (
            weights_root(ours.tensors), weights_root(theirs.tensors),
        )  # fmt: skip

        # it is better than either, on rows where nobody has looked
        before, after = loss_of(ours, base), loss_of(both, base)
        assert after < 0.6 * min(before, loss_of(theirs, base))
        assert step.gain is not None
        assert step.gain > 100_000

        # only factors crossed: the goods are the seller's adapter, and no base was ever sent
        assert offer.byte_length == record.quote.byte_length
        assert offer.byte_length == encoded_length(layout(theirs.architecture))
        held = buyer.station.blobs.roots() | seller.station.blobs.roots()
        assert base.root not in held

        # after a restart the buyer stands at the merge, of its new ranks, and may offer it
        await buyer.stop()
        await buyer.start()
        session = buyer.shell.session
        assert session.progress.adapters == text
        assert weights_root(session.load(text, session.progress.root)) == measured.merged_root
        again = await offers(buyer, both)
        assert again.architecture == text


async def test_adapters_of_another_base_are_refused_by_all_and_fetched_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = ONE_LAYER
    async with market_of(tmp_path, widths, monkeypatch) as market:
        stranger, buyer, broker = market["stranger"], market["buyer"], market.broker
        wrong = await offers(stranger, strangers(widths))
        assert stranger.blamed("submit") == ["wrong-base"]
        ours = await offers(buyer, buyers(widths))
        await eventually(lambda: buyer.sees(stranger), "the offer, by gossip")
        name, _ = buyer.sees(stranger) or pytest.fail("gone")

        # a buyer leaves it alone, and so does one that is made to try it
        asked: list[Any] = []
        ask = buyer.station.ask

        async def noted(peer: Any, question: Any, *more: Any, **named: Any) -> Any:
            asked.append(question)
            return await ask(peer, question, *more, **named)

        monkeypatch.setattr(buyer.station, "ask", noted)
        base = buyer.shell.session._base
        with pytest.raises(RemoteProtocolError) as refused:
            await buyer.shell.session._try(base, (name, wrong))
        assert refused.value.reason == "wrong-base"
        assert not asked
        step = await buyer.shell.session.step()
        assert step.because == "no-offer"
        assert not any(isinstance(question, TrialRequest) for question in asked)

        # a broker that is asked all the same says why, and fetches nothing either
        question = TrialRequest(base_digest=base[0], offer_digest=name)
        with pytest.raises(RemoteProtocolError) as refused:
            await ask(broker.peer_id, question, TrialResult, seconds=10)
        assert refused.value.reason == "wrong-base"
        assert stranger.shell.served == []
        held = broker.station.blobs.roots() | buyer.station.blobs.roots()
        assert wrong.weights_root not in held
        assert ours.weights_root in held
        assert buyer.shell.served  # the broker did fetch what is of its base

        # nor has the stranger anything to try its own on
        assert (await stranger.shell.session.step()).because != "bought"
        assert not market.ledger().states
