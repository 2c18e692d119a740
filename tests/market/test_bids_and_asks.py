"""A broker makes a price of what both have signed, also one that signs quotes alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from node.agent import buyer as buying
from node.agent.agent import Agent
from node.agent.seller import Seller
from node.chronicle import PeerFault
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Ask, AskRequest, StreamMessage
from node.protocol.signing import sign_digest
from node.protocol.types import PeerId, Wei
from tests.market.cheats import cheat as cheating
from tests.market.cheats import honest_trade, market_with
from tests.market.market import open_market


class Unsigned(Seller):
    """Says one ask, and signs another."""

    async def _ask(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        answer = await super()._ask(peer, question)
        assert isinstance(answer, Ask)
        return dataclasses.replace(answer, ask=Wei(answer.ask + 1))


async def test_an_ask_that_the_seller_did_not_sign_makes_no_price(tmp_path: Path) -> None:
    async with market_with(tmp_path, cheating(seller=Unsigned)) as market:
        buyer, cheat = market["buyer"], market["cheat"]
        await cheat.offer()
        with pytest.raises(RemoteProtocolError) as caught:
            await buyer.buy(cheat)
        assert caught.value.reason == "not-the-sellers-ask"
        faults = [f.peer for f in market.broker.heard(PeerFault) if f.reason == caught.value.reason]
        assert faults == [cheat.peer_id]
        await honest_trade(market)


async def test_a_bid_that_the_buyer_did_not_sign_is_brought_before_no_seller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_market(tmp_path) as market:
        seller, buyer = await market.join("seller", Agent), await market.join("buyer", Agent)
        await seller.offer()

        def by_another(_: bytes, *rest: Any) -> bytes:
            return sign_digest(seller.keys.account, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(buying, "sign_digest", by_another)
            with pytest.raises(RemoteProtocolError) as caught:
                await buyer.buy(seller)
        assert caught.value.reason == "not-the-buyers-bid"
        asked = [e for e in market.broker.events if getattr(e, "kind", "") == AskRequest.__name__]
        assert asked == []
        await market.see_paid(await buyer.buy(seller), buyer, seller)
