"""A buyer measures the goods by what they are sold as before it pays, whatever a broker says."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from broker_node.appraisal import DrillAppraiser
from broker_node.service import Broker
from broker_node.verify.checks import verify
from broker_node.verify.stages import Received, Verified
from node.agent.agent import Agent
from node.params.architecture import parse_architecture, random_init
from node.params.encoding import weights_root
from node.protocol.errors import RemoteProtocolError
from node.protocol.offer import Offer
from tests.market.market import ETHER, eventually, open_market
from tests.market.strangers import GOOD_BLOB, offer_of


class Careless(DrillAppraiser):
    """Tries whatever is said to be of an architecture, as random tensors of it."""

    def screen(self, offer: Offer) -> None:
        pass

    def admit(self, blob: Path | memoryview, offer: Offer) -> Verified:
        architecture = parse_architecture(offer.architecture)
        tensors = random_init(architecture, offer.nonce)
        held = verify(
            Received(weights_root=weights_root(tensors), architecture=architecture, tensors=tensors)
        )
        return dataclasses.replace(held, weights_root=offer.weights_root)


class Accomplice(Broker):
    """Tells nobody that a seller's goods cannot be what they are sold as."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(arguments | {"appraiser": Careless()}))


async def test_goods_that_are_not_as_long_as_their_layers_are_never_paid_for(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, Accomplice) as market:
        seller, buyer = [await market.join(name, Agent) for name in ("seller", "buyer")]
        base = await buyer.offer()
        for blob in (GOOD_BLOB[:-1_024], GOOD_BLOB + bytes(4)):
            offer = offer_of(seller, blob)
            seller.serves(blob)
            name, data = seller.station.sign(offer)
            await seller.station.publish(data)
            await eventually(functools.partial(buyer.station.book.data_of, name), "the offer")
            tried = await buyer.shell.session._try(base, (name, offer))
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.shell.buyer.buy(tried, buyer.shell.desk, most=ETHER)
            assert caught.value.reason == "wrong-layout"
        assert not buyer.journal.trades()
        assert not market.ledger().states
