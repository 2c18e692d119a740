"""Sellers that are gone while their offers live on: rounds end, and others are bought from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from broker_node import intake
from node.agent.agent import Agent
from node.params.encoding import encode_tensors
from node.params.errors import StoreError
from node.protocol import merkle
from node.protocol.errors import RemoteProtocolError
from node.protocol.types import Digest
from tests.market.market import Market, Party, eventually, open_market, weights
from tests.market.strangers import offer_of

ROUND_SECONDS = 30


async def absent(market: Market, name: str) -> Party:
    """A seller whose offer everybody has heard and the broker has not fetched; it is gone."""
    seller = await market.join(name, Agent)
    await say(seller, weights(name))
    for other in market.parties.values():
        await hears_of(seller, other)
    await seller.stop()
    return seller


async def hears_of(seller: Party, other: Party) -> None:
    await eventually(lambda: other.sees(seller), f"{seller.name}'s offer at {other.name}")


async def say(seller: Party, tensors: Any) -> None:
    """Gossip an offer without submitting it."""
    _, data = seller.station.sign(offer_of(seller, encode_tensors(tensors)))
    await seller.station.publish(data)


async def test_a_round_passes_over_a_seller_that_is_gone_and_buys_from_another(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Agent, round_patience=1, offers_per_round=2)
        gone = await absent(market, "gone")
        live = await market.join("live", Agent)
        await live.offer()
        await hears_of(live, buyer)
        await buyer.offer()
        with trio.fail_after(ROUND_SECONDS):
            step = await buyer.shell.session.step()
        assert (step.because, step.seller) == ("bought", live.peer_id)
        assert buyer.blamed("trial") == ["seller-unreachable"]
        left = buyer.sees(gone)
        assert left is not None
        assert left[0] not in buyer.shell.session._tried  # it may be back
        await market.see_paid(Digest(step.trade_id or b""), buyer, live)


async def test_a_round_with_nobody_but_a_seller_that_is_gone_ends_with_a_reason(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Agent, round_patience=1)
        gone = await absent(market, "gone")
        await buyer.offer()
        with trio.fail_after(ROUND_SECONDS):
            step = await buyer.shell.session.step()
        assert (step.bought, step.because) == (False, "seller-unreachable")
        with trio.fail_after(ROUND_SECONDS):
            await buyer.shell.session.adopt()
            await buyer.offer()
            await gone.start()
            await eventually(lambda: market.hears(gone), "the seller again")
            gone.serves(encode_tensors(weights("gone")))
            step = await buyer.shell.session.step()
        assert step.bought


async def test_a_round_has_no_more_trials_than_its_settings_say(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        buyer = await market.join("buyer", Agent, round_patience=1, trials_per_round=1)
        for name in ("one", "two"):
            seller = await market.join(name, Agent)
            await seller.offer()
            await hears_of(seller, buyer)
        session = buyer.shell.session
        _, ours = await buyer.offer()
        first = await session._new_offers(ours.architecture, 1)
        assert len(first) == 1
        assert len(await session._new_offers(ours.architecture, 2)) == 2  # that many are expected
        step = await session.step()
        assert step.bought
        assert session._tried == {first[0][0]}
        market.skip(3_700)
        session._forget_offers()
        assert session._tried == {first[0][0]}  # it was bought
        session._bought.clear()
        session._forget_offers()
        assert session._tried == set()


def leftover(broker: Party, number: int) -> Digest:
    """The hash list of a blob whose download was begun."""
    data = bytes([number]) * 3_000
    hashes = merkle.leaf_hashes(data)
    root = merkle.root_of_hashes(hashes, len(data))
    broker.station.blobs.writer(root, len(data), hashes).close()
    return root


async def test_a_broker_keeps_no_more_than_so_many_downloads_that_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_UNFINISHED", 2)
    faults: dict[Digest, BaseException] = {}

    async def cut_off(*_: Any, root: Digest, **__: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise faults[root]

    monkeypatch.setattr(intake, "fetch_blob", cut_off)
    async with open_market(tmp_path) as market:
        broker, seller = market.broker, await market.join("seller", Agent)

        async def fetch(number: int, fault: Exception) -> Digest:
            root = leftover(broker, number)
            faults[root] = fault
            data = bytes([number]) * 3_000
            with pytest.raises(type(fault)) as caught:
                await broker.shell.intake._fetch(offer_of(seller, data))
            if isinstance(fault, RemoteProtocolError) and fault.reason == "truncated":
                error = caught.value
                assert isinstance(error, RemoteProtocolError)
                assert (error.reason, error.detail) == ("seller-unreachable", "truncated")
                assert error.peer == seller.peer_id
            return root

        cut = [await fetch(n, RemoteProtocolError("truncated", "")) for n in (1, 2)]
        again = await fetch(1, RemoteProtocolError("truncated", ""))
        cut.append(await fetch(3, RemoteProtocolError("truncated", "")))
        assert again == cut[0]
        assert broker.station.blobs.leftovers() == {cut[0], cut[2]}  # the latest two
        await fetch(4, RemoteProtocolError("wrong-chunk", ""))
        await fetch(5, StoreError("disk-full", ""))
        assert broker.station.blobs.leftovers() == {cut[0], cut[2]}
