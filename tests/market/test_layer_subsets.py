"""Some layers are sold, end to end: the rest of the seller's model is nobody's to have."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from broker_node import bases
from broker_node.appraisal import MarketAppraiser
from broker_node.evaluate.validation import ValidationSet
from broker_node.service import Broker
from node.agent.agent import Agent
from node.data.datasets import load_digits
from node.data.split import split_test
from node.params.architecture import layout, part_of
from node.params.encoding import encode_tensors, weights_root
from node.params.recipe import Recipe, apply_recipe
from node.protocol.book import body_of
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import (
    Ask,
    AskRequest,
    Book,
    GoodsPrepared,
    ListBook,
    PrepareGoods,
    TrialRequest,
    TrialResult,
)
from node.protocol.offer import NOT_FOR_SALE, Offer
from node.protocol.parameters import encoded_length
from node.protocol.quote import trade_id_of
from node.protocol.types import Digest, UnixTime
from node.training.registry import build_trainer
from node.training.trainer import Task, Trainer
from tests.market.market import Market, Party, bought, eventually, open_market
from tests.market.strangers import offer_of

SOLD = (0, 1)
FOLDER = Path("/nowhere")
Tensors = dict[str, torch.Tensor]


@functools.cache
def trainer() -> Trainer:
    return build_trainer(
        "mlp", Task(dataset="digits", data_folder=FOLDER, agent=0, agents=2, seed=0)
    )


class DigitsBroker(Broker):
    """Measures on digits."""

    def __init__(self, **arguments: Any) -> None:
        rows = ValidationSet.of(split_test(load_digits(FOLDER)).validation)
        super().__init__(**(arguments | {"appraiser": MarketAppraiser(rows, classes=10)}))


class DigitsAgent(Agent):
    """Learns digits; its rounds are a test's to play."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"trainer": None}))


@asynccontextmanager
async def market_of(
    folder: Path, *, seller: tuple[int, ...], buyer: tuple[int, ...]
) -> AsyncIterator[Market]:
    """A market of two agents that sell these layers of their models, and of one that watches."""
    torch.set_num_threads(1)
    # which rows score a trial is not left to chance, as far as the seed goes; roots, which say the
    # rest, differ from processor to processor: a buyer of layers is one that has learned nothing,
    # to which they are worth enough on any rows
    async with open_market(folder, DigitsBroker, trial_seed=Digest(bytes(32))) as market:
        await market.join("watcher", DigitsAgent)
        await market.join("seller", DigitsAgent, layers=seller)
        await market.join("buyer", DigitsAgent, layers=buyer, round_patience=5)
        yield market


async def offers(party: Party, epochs: int) -> tuple[Tensors, Offer]:
    """Have a party offer what it is to sell of a model of so many epochs; more are better."""
    tensors = trainer().initial()
    for epoch in range(epochs):
        tensors = trainer().train_epoch(tensors, epoch).parameters
    name = await party.shell.session.offer(trainer().architecture, tensors)
    offer = party.station.own_offer(name)
    assert offer is not None
    return tensors, offer


def base_of(party: Party) -> tuple[Digest, Offer]:
    base: tuple[Digest, Offer] = party.shell.session._base
    return base


def same(ours: Tensors, theirs: Tensors, names: set[str]) -> bool:
    return all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in names)


async def test_the_layers_that_are_sold_are_merged_and_all_others_stay_the_buyers_own(
    tmp_path: Path,
) -> None:
    async with market_of(tmp_path, seller=SOLD, buyer=SOLD) as market:
        seller, buyer = market["seller"], market["buyer"]
        architecture = trainer().architecture
        theirs, offer = await offers(seller, 8)
        ours, _ = await offers(buyer, 0)
        names = {spec.name for spec in layout(architecture, SOLD)}
        part = part_of(architecture, theirs, SOLD)

        # what is offered is the part, and only that
        assert (offer.layers, offer.weights_root) == (SOLD, weights_root(part))
        assert offer.byte_length == encoded_length(layout(architecture, SOLD))

        await eventually(lambda: buyer.sees(seller), "the offer")
        step = await buyer.shell.session.step()
        assert step.because == "bought", (step, buyer.blamed())
        adopted = await buyer.shell.session.adopt()
        assert step.trade_id is not None
        trade = buyer.shell.desk.find(step.trade_id, "buyer")
        record = bought(trade)
        await market.see_paid(trade, buyer, seller)

        # the buyer's other layers are its own to the byte; those it bought are what was measured
        assert adopted.keys() == ours.keys()
        assert same(adopted, ours, ours.keys() - names)
        assert not any(same(adopted, ours, {name}) for name in names)
        merged = apply_recipe(architecture, ours, part, Recipe.decode(record.recipe))
        assert weights_root(adopted) == weights_root(merged) == record.evaluation.merged_root
        assert record.evaluation.base_root == weights_root(ours)
        assert (record.layers, record.quote.offer_root) == (SOLD, weights_root(part))

        # what crossed to the buyer is the part: its goods are as long, and the rest is nowhere
        assert record.quote.byte_length == offer.byte_length
        held = {buyer.station.blobs.ref(root).byte_length for root in buyer.station.blobs.roots()}
        assert offer.byte_length in held
        assert weights_root(theirs) not in buyer.station.blobs.roots()


async def test_a_base_is_told_to_the_broker_alone_and_sold_to_nobody(tmp_path: Path) -> None:
    async with market_of(tmp_path, seller=SOLD, buyer=()) as market:
        seller, buyer, broker = market["seller"], market["buyer"], market.broker
        theirs, _ = await offers(seller, 2)
        await offers(buyer, 1)
        name, base = base_of(seller)
        assert (base.layers, base.weights_root, base.reserve) == (
            (), weights_root(theirs), NOT_FOR_SALE,
        )  # fmt: skip
        await eventually(lambda: market["watcher"].sees(seller), "the offer")

        # nobody hears of it: neither by gossip, nor in the broker's list, nor after a restart
        listed = await buyer.station.ask(broker.peer_id, ListBook(), Book)
        spoken = [body_of(data) for data in listed.statements]
        spoken += [body_of(data) for data in seller.journal.statements(market.clock())]
        for party in ("watcher", "buyer", "broker"):
            spoken += [offer for _, offer in market[party].station.book.offers(market.clock())]
        said = [body for body in spoken if isinstance(body, Offer)]
        assert {offer.seller for offer in said} == {seller.account, buyer.account}
        assert all(offer.for_sale for offer in said)
        assert weights_root(theirs) not in {offer.weights_root for offer in said}

        # whoever learnt its name all the same cannot have it tried,
        ask = TrialRequest(base_digest=base_of(buyer)[0], offer_digest=name)
        assert await refusal(buyer, broker, ask, TrialResult) == "unknown-offer"
        # and a broker that would sell it finds no seller
        nonce = Digest(bytes(32))
        trade_id = trade_id_of(buyer.account, seller.account, name, nonce)
        for question, answer in (
            (AskRequest(trade_id=trade_id, offer_digest=name, fee_basis_points=0), Ask),
            (
                PrepareGoods(
                    trade_id=trade_id, offer_digest=name, buyer=buyer.account,
                    buyer_key=nonce, buyer_nonce=nonce,
                ),
                GoodsPrepared,
            ),
        ):  # fmt: skip
            assert await refusal(broker, seller, question, answer) == "not-for-sale"

        # nor can anybody but the broker fetch it
        with pytest.raises(RemoteProtocolError) as refused:
            seller.shell.seller.serve_weights(buyer.peer_id, weights_root(theirs), "data")
        assert refused.value.reason == "not-our-broker"


async def refusal(party: Party, other: Party, question: Any, answer: type[Any]) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        await party.station.ask(other.peer_id, question, answer, seconds=10)
    return refused.value.reason


async def test_some_layers_are_no_base_and_what_is_not_for_sale_is_not_tried(
    tmp_path: Path,
) -> None:
    async with market_of(tmp_path, seller=SOLD, buyer=()) as market:
        seller, buyer, broker = market["seller"], market["buyer"], market.broker
        theirs, part = await offers(seller, 2)
        await offers(buyer, 1)
        station, wanted = seller.station, base_of(buyer)[0]
        named = {offer.weights_root: name for name, offer in station.book.offers(market.clock())}
        ask = TrialRequest(base_digest=named[part.weights_root], offer_digest=wanted)
        await eventually(lambda: broker.sees(buyer), "the offer")
        assert await refusal(seller, broker, ask, TrialResult) == "partial-base"

        # one who gossips a thing that is not for sale is not tried, and agents leave it alone
        shown = offer_of(
            seller,
            encode_tensors(theirs),
            architecture=trainer().architecture.text,
            reserve=NOT_FOR_SALE,
        )
        digest, data = station.sign(shown)
        await station.publish(data)
        await eventually(lambda: broker.station.book.offer(digest, market.clock()), "what it said")
        ask = TrialRequest(base_digest=wanted, offer_digest=digest)
        assert await refusal(buyer, broker, ask, TrialResult) == "not-for-sale"
        await eventually(lambda: buyer.station.book.offer(digest, market.clock()), "the same")
        step = await buyer.shell.session.step()
        assert step.because == "no-offer"


async def test_layers_that_a_broker_holds_are_nothing_else_by_another_name(tmp_path: Path) -> None:
    async with market_of(tmp_path, seller=SOLD, buyer=()) as market:
        seller = market["seller"]
        theirs, part = await offers(seller, 0)
        blob = encode_tensors(part_of(trainer().architecture, theirs, SOLD))
        reasons = []
        for layers in ((), (1, 2), (0,), (0, 1, 2), (0, 7)):
            claimed = offer_of(
                seller, blob, architecture=trainer().architecture.text, layers=layers
            )  # fmt: skip
            assert claimed.weights_root == part.weights_root
            with pytest.raises(RemoteProtocolError) as refused:
                await seller.submit(claimed, blob)
            reasons.append(refused.value.reason)
        assert reasons == ["wrong-size"] * 3 + ["bad-layers"] * 2


async def test_a_broker_that_forgot_is_told_of_the_base_again(tmp_path: Path) -> None:
    async with market_of(tmp_path, seller=(), buyer=SOLD) as market:
        seller, buyer = market["seller"], market["buyer"]
        await offers(seller, 8)
        await offers(buyer, 1)
        await eventually(lambda: buyer.sees(seller), "the offer")
        await market.broker.stop()
        await market.broker.start()
        await eventually(lambda: market.hears(buyer), "the broker again")
        step = await buyer.shell.session.step()
        assert step.because == "bought", (step, buyer.blamed())
        assert not any(
            not offer.for_sale for _, offer in market.broker.station.book.offers(market.clock())
        )


async def test_a_seller_of_layers_that_has_traded_has_its_base_taken_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market_of(tmp_path, seller=SOLD, buyer=SOLD) as market:
        seller, buyer, broker = market["seller"], market["buyer"], market.broker
        await offers(seller, 8)
        await offers(buyer, 0)
        await eventually(lambda: buyer.sees(seller), "the offer")
        step = await buyer.shell.session.step()
        assert step.because == "bought"
        assert step.trade_id is not None
        await buyer.shell.session.adopt()
        await market.see_paid(step.trade_id, buyer, seller)
        book = broker.station.book
        await eventually(lambda: book.receipts(broker.station.task), "the receipt")

        # accounts that cost nothing take all that is left, for a shorter while than anybody
        monkeypatch.setattr(bases, "MAX_BASES", 2)
        watcher = market["watcher"]
        blob = encode_tensors(trainer().initial())
        said = functools.partial(
            offer_of,
            watcher,
            blob,
            architecture=trainer().architecture.text,
            reserve=NOT_FOR_SALE,
            expires_at=UnixTime(market.clock() + 60),
        )
        with pytest.raises(RemoteProtocolError, match="bases-full"):
            await watcher.submit(said(), blob)  # two who have traded hold both places
        monkeypatch.setattr(bases, "MAX_BASES", 4)
        for _ in range(2):
            await watcher.submit(said(), blob)
        for party in (seller, buyer):
            await offers(party, 2)
            name, base = base_of(party)
            assert broker.shell.intake.bases.offer(name, market.clock()) == base
            assert not party.blamed("submit")


@pytest.mark.parametrize("sold", [(3,), (0, 1, 2)], ids=str)
async def test_an_agent_with_no_such_layers_says_so_before_it_offers(
    tmp_path: Path, sold: tuple[int, ...]
) -> None:
    async with market_of(tmp_path, seller=sold, buyer=()) as market:
        with pytest.raises(RemoteProtocolError, match="bad-layers"):
            await offers(market["seller"], 0)
        assert not list(market["seller"].station.book.offers(market.clock()))
