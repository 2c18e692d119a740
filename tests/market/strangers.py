"""What the tests of hostile input share: an honest pair, its trade, and offers of anything."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from node.agent.agent import Agent
from node.params.encoding import encode_tensors
from node.protocol import merkle
from node.protocol.offer import Offer
from node.protocol.types import Digest, UnixTime, Wei
from tests.market.market import TASK, Market, Party, architecture, open_market, weights

MESHSUB = "/meshsub/1.1.0"


GOOD_BLOB = encode_tensors(weights("hostile"))


async def pair(market: Market) -> tuple[Party, Party]:
    seller, buyer = await market.join("seller", Agent), await market.join("buyer", Agent)
    await seller.offer()
    return seller, buyer


@asynccontextmanager
async def a_trade_goes_on(market: Market) -> AsyncIterator[None]:
    """Buy something while the block runs; the trade is to be complete and paid."""
    seller, buyer = market["seller"], market["buyer"]
    ends: list[str] = []

    async def trade() -> None:
        await market.see_paid(await buyer.buy(seller), buyer, seller)
        ends.append("paid")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trade)
        yield
    assert ends == ["paid"]


@asynccontextmanager
async def market_with_a_thief(folder: Path) -> AsyncIterator[tuple[Market, Party, Party, Party]]:
    """A market that refuses replicas: a seller, a buyer, and who would sell the seller's model."""
    async with open_market(folder, replicas="refuse") as market:
        seller = await market.join("seller", Agent)
        buyer = await market.join("buyer", Agent)
        yield market, seller, buyer, await market.join("thief", Agent)


def root_of(blob: bytes) -> Digest:
    return merkle.root_of_hashes(merkle.leaf_hashes(blob), len(blob))


def offer_of(party: Party, blob: bytes = GOOD_BLOB, **changes: Any) -> Offer:
    now = party.market.clock()
    offer = Offer(
        seller=party.account,
        peer_id=party.peer_id,
        addresses=party.network.addresses(),
        task=TASK,
        architecture=architecture().text,
        layers=(),
        weights_root=root_of(blob),
        leaf_count=merkle.leaf_count(len(blob)),
        byte_length=len(blob),
        reserve=Wei(1),
        issued_at=now,
        expires_at=UnixTime(now + 600),
        nonce=party.journal.next_nonce(),
    )
    return dataclasses.replace(offer, **changes)
