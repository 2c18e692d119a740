"""A seller is safe from whoever reads its root in gossip, and is heard with it before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from broker_node.findings import ReplicaFound
from node.agent.agent import Agent
from node.chronicle import StatementPublished
from node.observe import Record
from node.params.encoding import encode_tensors
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from tests.market.market import Party, eventually, open_market, weights
from tests.market.strangers import market_with_a_thief, offer_of, root_of

WEIGHTS = weights("seller")


async def claims(thief: Party, *, nonce: int = 7) -> bytes:
    """Gossip an offer of another's root, and wait until the broker has heard it."""
    _, data = thief.station.sign(offer_of(thief, encode_tensors(WEIGHTS), nonce=nonce))
    await thief.station.publish(data)
    broker = thief.market.broker
    await eventually(lambda: broker.sees(thief) is not None, "the thief's claim")
    return data


async def test_a_root_that_a_thief_named_first_is_sold_by_who_has_its_bytes(
    tmp_path: Path,
) -> None:
    async with market_with_a_thief(tmp_path) as (market, seller, buyer, thief):
        claim = await claims(thief)
        await seller.offer(WEIGHTS)
        assert seller.blamed("submit") == []
        with pytest.raises(RemoteProtocolError, match="unknown-weights"):
            await thief.submits(claim)  # it has no bytes to show
        assert market.broker.heard(ReplicaFound) == []
        await market.see_paid(await buyer.buy(seller), buyer, seller)


async def test_who_was_heard_first_shows_its_bytes_though_another_brought_them(
    tmp_path: Path,
) -> None:
    """Someone who bought the model elsewhere comes to this door before its seller does."""
    async with open_market(tmp_path, replicas="refuse") as market:
        seller = await market.join("seller", Agent)
        thief = await market.join("thief", Agent)
        await claims(seller)
        stolen = await claims(thief, nonce=8)
        thief.serves(encode_tensors(WEIGHTS))
        await thief.submits(stolen)
        await seller.offer(WEIGHTS)
        assert seller.blamed("submit") == []
        assert {found.seller for found in market.broker.heard(ReplicaFound)} == {thief.account}
        with pytest.raises(RemoteProtocolError, match="replica"):
            await thief.submits(stolen)


async def test_a_thief_that_has_only_the_hashes_of_the_leaves_has_shown_nothing(
    tmp_path: Path,
) -> None:
    """They are given to whoever names a trade, paid or not: anybody can pass them on."""
    async with market_with_a_thief(tmp_path) as (market, seller, buyer, thief):
        claim = await claims(thief)
        await seller.offer(WEIGHTS)
        blobs, blob = thief.station.blobs, encode_tensors(WEIGHTS)
        root = thief.serves(blob)
        # a perfect list of hashes, and all of the bytes but one
        blobs.path(root).write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
        with pytest.raises(RemoteProtocolError, match="wrong-chunk"):
            await thief.submits(claim)
        assert market.broker.heard(ReplicaFound) == []
        await market.see_paid(await buyer.buy(seller), buyer, seller)


async def test_the_rest_of_anothers_download_shows_no_bytes_of_a_whole_model(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path, replicas="refuse") as market:
        seller = await market.join("seller", Agent)
        thief = await market.join("thief", Agent)
        blob, blobs = encode_tensors(WEIGHTS), market.broker.station.blobs
        root, hashes = root_of(blob), merkle.leaf_hashes(blob)
        sink = blobs.writer(root, len(blob), hashes)  # cut off just before its end
        await trio.to_thread.run_sync(sink.write, 0, blob)
        sink.close()
        claim = await claims(thief)
        await claims(seller)
        thief.serves(blob)
        thief.station.blobs.path(root).write_bytes(bytes(len(blob)))
        with pytest.raises(RemoteProtocolError, match="wrong-chunk"):
            await thief.submits(claim)
        await seller.offer(WEIGHTS)
        assert seller.blamed("submit") == []
        assert market.broker.heard(ReplicaFound) == []


async def test_nobody_reads_a_root_in_gossip_before_the_broker_has_it_of_its_seller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.station.station.REPUBLISH_SECONDS", 0.01)
    async with open_market(tmp_path, replicas="refuse") as market:
        seller = await market.join("seller", Agent)
        reader = await market.join("reader", Agent)
        intake, known = market.broker.shell.intake, list[bool]()
        admit = intake.verified

        async def slowly(offer: object) -> object:
            with trio.move_on_after(0.5):
                await reader.station.heard.wait()  # gossip would be here by now
            known.append(reader.sees(seller) is not None)
            return await admit(offer)

        def published(record: Record) -> None:
            if isinstance(record.event, StatementPublished) and record.event.kind == "offer":
                known.append(market.broker.sees(seller) is None)

        seller.station.observer.subscribe(published)
        monkeypatch.setattr(intake, "verified", slowly)
        await seller.offer(WEIGHTS)
        assert known == [False, False]
        await eventually(lambda: reader.sees(seller) is not None, "the offer, gossiped at last")
