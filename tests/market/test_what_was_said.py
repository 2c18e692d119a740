"""What leaves a node for a trade is told, and after the promise that it makes was journalled."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.agent.agent import Agent
from node.chronicle import Answered, Asked, Sent, TradeChanged
from node.net.gossip import GOSSIP
from node.observe import Record
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import Ask, AskRequest
from node.protocol.types import Digest
from tests.market.market import Party, bought, open_market


def said(party: Party, trade_id: Digest) -> list[tuple[str, str]]:
    """What a party promised, asked and answered for one trade, in order, and to whom."""
    name_of = {other.peer_id: other.name for other in party.market.parties.values()}
    told: list[tuple[str, str]] = []
    for event in party.events:
        if getattr(event, "trade_id", None) != trade_id:
            continue
        match event:
            case TradeChanged():
                told.append(("state", event.state))
            case Asked() | Answered():
                told.append((name_of[event.peer], event.kind))
            case Sent() if event.step == "publish-receipt":
                told.append(("everyone", "Receipt"))
    return told


async def test_every_word_of_a_trade_is_told_after_the_promise_that_it_makes(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        seller, buyer = await market.join("seller", Agent), await market.join("buyer", Agent)
        broker = market.broker
        gossiped: list[int] = []

        def note(record: Record) -> None:
            match record.event:
                case TradeChanged(state="credited") | Sent(step="publish-receipt"):
                    gossiped.append(broker.network.counters.bytes_out[GOSSIP])

        broker.station.observer.subscribe(note)
        await seller.offer()
        trade = await buyer.buy(seller)
        trade_id = await market.see_paid(trade, buyer, seller)
        await market.all_over()

        assert said(seller, trade_id)[:5] == [
            ("broker", "Ask"),
            ("state", "prepared"),
            ("broker", "GoodsPrepared"),
            ("state", "countersigned"),
            ("broker", "Countersigned"),
        ]
        assert said(broker, trade_id)[:6] == [
            ("seller", "AskRequest"),
            ("seller", "PrepareGoods"),
            ("state", "proposed"),
            ("seller", "Countersign"),
            ("state", "quoted"),
            ("buyer", "Deal"),
        ]
        assert said(buyer, trade_id)[:5] == [
            ("state", "fetching"),
            ("seller", "goods-plain-hashes"),
            ("seller", "goods-hashes"),
            ("seller", "goods-data"),
            ("state", "funding"),
        ]
        ends = said(broker, trade_id)[6:]
        assert ends.index(("state", "credited")) < ends.index(("everyone", "Receipt"))
        promised, left = gossiped
        assert left - promised > 2 * len(bought(trade).receipt)


async def test_a_refusal_answers_nothing(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        buyer, broker = await market.join("buyer", Agent), market.broker
        trade_id = Digest(b"t" * 32)
        question = AskRequest(trade_id=trade_id, offer_digest=trade_id, fee_basis_points=0)
        with pytest.raises(RemoteProtocolError, match="not-my-role"):
            await buyer.station.ask(broker.peer_id, question, Ask)
        assert said(buyer, trade_id) == [("broker", "AskRequest")]
        assert said(broker, trade_id) == []
