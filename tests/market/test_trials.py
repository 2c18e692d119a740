"""What a broker measures: each pair of models once, and nobody's trials before all others'."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node.appraisal import DrillAppraiser, Trial
from broker_node.service import Broker
from broker_node.verify.stages import Verified
from node.agent.agent import Agent
from node.chronicle import TrialDone
from node.params.encoding import encode_tensors
from node.protocol.disclosure import Disclosure
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import StreamMessage, TrialRequest, TrialResult
from node.protocol.types import Digest, Millionths, PeerId, Wei
from tests.market.market import ETHER, Market, Party, bought, eventually, open_market, weights
from tests.market.strangers import offer_of


class SlowAppraiser(DrillAppraiser):
    """Takes a while over each pair, and notes them in order."""

    def __init__(self) -> None:
        self.measured: list[tuple[Digest, Digest]] = []

    def measure(self, base: Verified, sold: Verified, **rest: Any) -> Trial:
        self.measured.append((base.weights_root, sold.weights_root))
        time.sleep(0.2)
        return super().measure(base, sold, **rest)


class SlowBroker(Broker):
    def __init__(self, **arguments: Any) -> None:
        self.appraiser = SlowAppraiser()
        super().__init__(**(arguments | {"appraiser": self.appraiser}))


async def signed_anew(seller: Party, blob: bytes, times: int) -> list[Digest]:
    """Submit one model under so many offers; returns their names."""
    for _ in range(times):
        await seller.submit(offer_of(seller, blob, nonce=seller.journal.next_nonce()), blob)
        seller.market.skip(1)
    book = seller.market.broker.station.book
    root = seller.station.blobs.put_bytes(blob).root
    return [n for n, o in book.offers(seller.market.clock()) if o.weights_root == root][-times:]


async def try_at_once(buyer: Party, base: Digest, names: list[Digest]) -> list[TrialResult]:
    """Ask for all these trials at one time."""
    answers: list[TrialResult] = []

    async def ask(name: Digest) -> None:
        question = TrialRequest(base_digest=base, offer_digest=name)
        broker = buyer.market.broker.peer_id
        answers.append(await buyer.station.ask(broker, question, TrialResult, seconds=20))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return answers


async def joined(market: Market, *names: str) -> list[Party]:
    return [await market.join(name, Agent) for name in names]


async def test_a_model_that_is_signed_anew_is_not_measured_anew(tmp_path: Path) -> None:
    async with open_market(tmp_path, SlowBroker) as market:
        seller, buyer = await joined(market, "seller", "buyer")
        base, _ = await buyer.offer()
        names = await signed_anew(seller, encode_tensors(weights("seller")), 3)
        assert len(set(names)) == 3
        answers = await try_at_once(buyer, base, names)
        assert len({answer.trial_id for answer in answers}) == 3
        assert len({(answer.gain, answer.bound, answer.alpha) for answer in answers}) == 1
        assert len(market.broker.shell.appraiser.measured) == 1
        assert len(market.broker.heard(TrialDone)) == 1


async def test_one_that_asks_for_many_trials_holds_up_another_by_one(tmp_path: Path) -> None:
    async with open_market(tmp_path, SlowBroker) as market:
        seller, eager, modest = await joined(market, "seller", "eager", "modest")
        (greedy, _), (base, ours) = await eager.offer(), await modest.offer()
        names = []
        for number in range(5):
            names += await signed_anew(seller, encode_tensors(weights(f"model {number}")), 1)
        measured = market.broker.shell.appraiser.measured
        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_at_once, eager, greedy, names)
            await eventually(lambda: measured, "the first trial")
            nursery.start_soon(try_at_once, modest, base, names[-1:])
        assert len(measured) == 6
        assert ours.weights_root in [base_root for base_root, _ in measured[:3]]


class OddAppraiser(DrillAppraiser):
    """Finds a gain of many digits."""

    def measure(self, base: Verified, sold: Verified, **rest: Any) -> Trial:
        found = super().measure(base, sold, **rest)
        gain, bound = Millionths(123_456), Millionths(98_765)
        measured = replace(found.evaluation, gain=gain, bound=bound, loss_after=876_544_000)
        return replace(found, evaluation=measured)


class OddBroker(Broker):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"appraiser": OddAppraiser()}))


class Exaggerator(OddBroker):
    """Says of a trial more than what was measured."""

    async def _try(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        told = await super()._try(peer, question)
        assert isinstance(told, TrialResult)
        return replace(told, gain=Millionths(200_000))


@pytest.mark.parametrize(
    ("policy", "gain", "bound"),
    [
        (Disclosure.FULL, 123_456, 98_765),
        (Disclosure.ROUNDED, 100_000, 90_000),
        (Disclosure.NONE, 1, 1),
    ],
)
async def test_a_buyer_hears_as_much_as_the_broker_discloses_and_all_of_it_with_a_deal(
    tmp_path: Path, policy: Disclosure, gain: int, bound: int
) -> None:
    async with open_market(tmp_path, OddBroker, disclosure=policy) as market:
        seller = await market.join("seller", Agent, reserve=Wei(0))
        buyer = await market.join("buyer", Agent)
        await seller.offer()
        record = bought(await buyer.buy(seller))
        (told,) = buyer.heard(TrialDone)
        assert (told.gain, told.bound, told.alpha) == (gain, bound, 1_000_000)
        assert (record.evaluation.gain, record.evaluation.bound) == (123_456, 98_765)
        # the bid was made of what was told, so the price is no more than that is worth
        assert 0 < record.quote.price <= gain * ETHER // 1_000_000


async def test_what_no_policy_tells_of_a_measurement_is_not_paid_for(tmp_path: Path) -> None:
    async with open_market(tmp_path, Exaggerator, disclosure=Disclosure.ROUNDED) as market:
        seller, buyer = await joined(market, "seller", "buyer")
        await seller.offer()
        with pytest.raises(RemoteProtocolError, match="wrong-evaluation"):
            await buyer.buy(seller)
