"""Where replicas are refused: the honest sell on, and what is found to be one is sold no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from broker_node.findings import ReplicaFound
from broker_node.provenance import Found
from node.agent.agent import Agent
from node.params.encoding import encode_tensors
from node.protocol.errors import RemoteProtocolError
from node.protocol.messages import TrialRequest, TrialResult
from node.protocol.offer import Offer
from node.protocol.types import ONE, Millionths, UnixTime
from tests.market.market import ETHER, Market, Party, open_market, weights
from tests.market.strangers import market_with_a_thief, offer_of


def blames(market: Market, seller: Party, offer: Offer, of: Party) -> None:
    """Let the broker find, by now, that an offer is a replica."""
    found = Found(
        seller=seller.account,
        root=offer.weights_root,
        of_seller=of.account,
        of_root=offer.weights_root,
        score=Millionths(ONE),
    )
    market.broker.shell.intake.provenance._found[seller.account, offer.weights_root] = found


async def test_a_root_copied_from_gossip_and_backdated_takes_no_sale_from_its_seller(
    tmp_path: Path,
) -> None:
    async with market_with_a_thief(tmp_path) as (market, seller, buyer, thief):
        _, honest = await seller.offer()
        blob = encode_tensors(weights("seller"))
        claimed = offer_of(thief, blob, issued_at=UnixTime(honest.issued_at - 60))
        _, data = thief.station.sign(claimed)  # it serves nothing
        with pytest.raises(RemoteProtocolError, match="replica"):
            await thief.submits(data)
        assert {f.seller for f in market.broker.heard(ReplicaFound)} == {thief.account}
        await seller.offer()
        assert seller.blamed("submit") == []
        await market.see_paid(await buyer.buy(seller), buyer, seller)


async def test_a_base_that_was_fetched_for_a_trial_is_its_owners_from_then_on(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, replicas="refuse") as market:
        owner = await market.join("owner", Agent)
        thief = await market.join("thief", Agent)
        intake = market.broker.shell.intake
        blob = encode_tensors(weights("owner"))
        base = offer_of(owner, blob)
        owner.serves(blob)
        await intake.verified(base)  # as a quorum's member does, of what was submitted to another
        assert intake.provenance.committed(owner.account, base.weights_root)
        claimed = offer_of(thief, blob, nonce=7, issued_at=UnixTime(base.issued_at - 60))
        with pytest.raises(RemoteProtocolError, match="replica"):
            await intake.model(claimed)
        assert await intake.model(dataclasses.replace(base, nonce=8))


async def test_what_is_found_to_be_a_replica_after_its_trial_is_not_sold(tmp_path: Path) -> None:
    async with open_market(tmp_path, replicas="refuse") as market:
        seller = await market.join("seller", Agent)
        buyer = await market.join("buyer", Agent)
        name, offer = await seller.offer()
        ours = await buyer.offer()
        tried = await buyer.shell.session._try(ours, (name, offer))
        blames(market, seller, offer, buyer)
        question = TrialRequest(base_digest=ours[0], offer_digest=name)
        with pytest.raises(RemoteProtocolError, match="replica"):
            await buyer.station.ask(market.broker.peer_id, question, TrialResult, seconds=10)
        with pytest.raises(RemoteProtocolError, match="replica"):
            await buyer.shell.buyer.buy(tried, buyer.shell.desk, most=ETHER)
        assert market.broker.journal.trades() == []


@pytest.mark.parametrize("mode", ["report", "refuse"])
async def test_what_was_signed_or_is_only_reported_is_paid(tmp_path: Path, mode: str) -> None:
    async with open_market(tmp_path, replicas=mode) as market:
        seller = await market.join("seller", Agent)
        buyer = await market.join("buyer", Agent)
        _, offer = await seller.offer()
        await buyer.offer()
        if mode == "report":
            blames(market, seller, offer, buyer)
        trade = await buyer.buy(seller)
        blames(market, seller, offer, buyer)
        await market.see_paid(trade, buyer, seller)
