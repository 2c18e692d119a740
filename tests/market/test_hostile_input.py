"""What strangers may send: each is refused by its name, and a trade beside it does not notice."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import trio
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from node.agent.agent import Agent
from node.chain.port import EscrowState
from node.chronicle import StatementJudged
from node.net.host import Network, open_host
from node.params.encoding import encode_tensors
from node.protocol import cbor, envelope, merkle, messages
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import BROKER_PROTOCOL, GOODS_PROTOCOL, PARAMS_PROTOCOL
from node.protocol.offer import Offer
from node.protocol.parameters import TensorSpec, encode_header
from node.protocol.types import Digest, UnixTime, Wei
from tests.market.market import (
    LISTEN,
    TASK,
    Market,
    Party,
    architecture,
    eventually,
    open_market,
    seed_of,
    weights,
)

MESHSUB = "/meshsub/1.1.0"


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
        bought = await buyer.buy(seller)
        name = bought.machine.record.trade_id
        await buyer.reaches(name, "complete")
        await seller.reaches(name, "paid")
        assert market.state(name) is EscrowState.PAID
        ends.append("paid")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trade)
        yield
    assert ends == ["paid"]


# ── weights that are not what they are said to be ──


def header_of(*tensors: TensorSpec) -> bytes:
    return framed(encode_header(tensors))


def framed(header: bytes) -> bytes:
    return struct.pack(">I", len(header)) + header


def forged_header() -> bytes:
    """As ours, but for the shape: four exabytes in a file of a hundred bytes."""
    header = encode_header((NOISE,))
    shape, huge = cbor.encode([48, 64]), cbor.encode([2**31, 2**31])
    assert header.count(shape) == 1
    return framed(header.replace(shape, huge))


def floats(count: int, value: float = 1.0) -> bytes:
    return np.full(count, value, dtype="<f4").tobytes()


NOISE = TensorSpec("noise", "F32", (48, 64))
GOOD = encode_tensors(weights("hostile"))
HOSTILE: dict[str, bytes] = {
    "another shape": encode_tensors({"noise": torch.zeros(48, 63)}),
    "another name": encode_tensors({"loise": torch.zeros(48, 64)}),
    "another type": encode_tensors({"noise": torch.zeros(48, 64, dtype=torch.float64)}),
    "one tensor too many": encode_tensors({"noise": torch.zeros(48, 64), "more": torch.zeros(4)}),
    "bytes left over": GOOD + b"\0",
    "bytes missing": GOOD[:-1],
    "not a number": header_of(NOISE) + floats(48 * 64, float("nan")),
    "infinite": header_of(NOISE) + floats(48 * 64, float("inf")),
    "a header of four gigabytes": b"\xff\xff\xff\xff" + GOOD[4:],
    "a header that is no header": struct.pack(">I", 8) + b"\xa1\x00\x00\x00\x00\x00\x00\x00" + GOOD,
    "a shape of no bytes": forged_header() + bytes(100),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system",
    "a safetensors file": struct.pack("<Q", 2) + b"{}" + bytes(100),
    "one byte": b"\0",
}


async def test_weights_that_are_not_what_the_offer_says_are_refused_and_not_kept(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        await pair(market)
        hostile = await market.join("hostile", Agent)
        broker = market.broker
        reasons: dict[str, str] = {}
        async with a_trade_goes_on(market):
            for name, blob in HOSTILE.items():
                with pytest.raises(RemoteProtocolError) as caught:
                    await hostile.submit(offer_of(hostile, blob), blob)
                reasons[name] = caught.value.reason
        assert set(reasons) == set(HOSTILE)
        assert not {"internal-error", "refused", "timeout"} & set(reasons.values()), reasons
        assert reasons["not a number"] == reasons["infinite"] == "not-finite"
        roots = {root_of(blob) for blob in HOSTILE.values()}
        assert not roots & broker.station.blobs.roots()
        assert not list(broker.station.blobs.path(Digest(bytes(32))).parent.glob("*.part*"))

        # and the good ones of the same account are taken
        await hostile.submit(offer_of(hostile, GOOD), GOOD)
        assert root_of(GOOD) in broker.station.blobs.roots()


async def test_other_bytes_than_were_promised_are_refused_by_the_broker(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        await pair(market)
        hostile = await market.join("hostile", Agent)
        promised = offer_of(hostile, GOOD)
        other = bytearray(GOOD)
        other[5_000] ^= 1
        root = root_of(GOOD)
        async with a_trade_goes_on(market):
            # right hashes, a wrong leaf
            blobs = hostile.station.blobs
            hostile.station.blobs.put_bytes(GOOD)
            path = blobs.path(root)
            path.write_bytes(bytes(other))
            hostile.station.served.add(root)
            for _ in range(2):
                with pytest.raises(RemoteProtocolError) as caught:
                    await submit_only(hostile, promised)
                assert caught.value.reason == "wrong-chunk"
            # weights that are not there at all
            path.unlink()
            with pytest.raises(RemoteProtocolError) as caught:
                await submit_only(hostile, promised)
            assert caught.value.reason == "unknown-weights"
            # and more than anybody takes
            huge = dataclasses.replace(
                promised, byte_length=2**60, leaf_count=2**50, nonce=promised.nonce + 1_000
            )
            with pytest.raises(RemoteProtocolError) as caught:
                await submit_only(hostile, huge)
            assert caught.value.reason == "too-large"


async def submit_only(party: Party, offer: Offer) -> None:
    _, data = party.station.sign(offer)
    await party.station.ask(
        party.market.broker.peer_id,
        messages.Submit(statement=data),
        messages.Submitted,
        seconds=10,
    )


def root_of(blob: bytes) -> Digest:
    return merkle.root_of_hashes(merkle.leaf_hashes(blob), len(blob))


def offer_of(party: Party, blob: bytes = GOOD, **changes: Any) -> Offer:
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


# ── gossip ──


@asynccontextmanager
async def a_stranger(market: Market) -> AsyncIterator[Network]:
    """A host that speaks libp2p to the broker, and keeps to no rule of ours."""
    async with open_host(seed_of("stranger"), LISTEN) as network:
        await network.connect(market.broker.network.addresses()[0])
        broker = market.broker.network
        await eventually(
            lambda: (
                broker.peer_id in network.gossiping_with()
                and network.peer_id in broker.gossiping_with()
            ),
            "gossip with the stranger",
        )
        yield network


def verdicts(market: Market, sender: Network) -> list[tuple[str, str]]:
    return [
        (e.verdict, e.reason)
        for e in market.broker.heard(StatementJudged)
        if e.sender == sender.peer_id
    ]


async def test_gossip_that_is_forged_replayed_or_expired_is_refused_by_name(
    tmp_path: Path,
) -> None:
    async with open_market(tmp_path) as market:
        seller, buyer = await pair(market)
        _, genuine = seller.sees(seller) or pytest.fail("the seller has no offer")
        seal = seller.station.seal
        good = seal(dataclasses.replace(genuine, nonce=seller.journal.next_nonce()))
        signed = envelope.decode(seal(offer_of(seller)))
        thief = dataclasses.replace(genuine, seller=buyer.account, nonce=7)
        stale = market.clock() - 1_000
        hostile: list[tuple[bytes, tuple[str, str]]] = [
            # signed by another account than it names
            (encode(signed, body=thief), ("reject", "bad-signature")),
            # a signed offer, changed
            (
                encode(signed, body=dataclasses.replace(signed.body, reserve=Wei(0))),
                ("reject", "bad-signature"),
            ),
            # vouched for by no peer
            (encode(signed, peer_signature=bytes(64)), ("reject", "bad-peer-signature")),
            (
                seal(offer_of(seller, issued_at=stale, expires_at=stale + 600)),
                ("ignore", "expired"),
            ),
            (
                seal(
                    offer_of(
                        seller, issued_at=market.clock() + 5_000, expires_at=market.clock() + 6_000
                    )
                ),
                ("ignore", "from-the-future"),
            ),
            (seal(dataclasses.replace(genuine, reserve=Wei(5))), ("ignore", "nonce-reused")),
            (cbor.encode(["offer", {}, bytes(65), bytes(64)]), ("reject", "malformed")),
            (cbor.encode(["wish", {}, bytes(65), bytes(64)]), ("reject", "unknown-kind")),
            (b"\xff" * 100, ("reject", "malformed")),
            (good, ("accept", "good")),
            (good + b"", ("ignore", "duplicate")),
        ]
        async with a_stranger(market) as stranger, a_trade_goes_on(market):
            for data, _ in hostile:
                await stranger.publish(data)
            with pytest.raises(LocalProtocolError):
                await stranger.publish(bytes(20_000))
            await eventually(lambda: len(verdicts(market, stranger)) == len(hostile), "verdicts")
            assert verdicts(market, stranger) == [verdict for _, verdict in hostile]
        for party in (buyer, market.broker):
            reserves = {offer.reserve for _, offer in party.station.book.offers(market.clock())}
            assert Wei(0) not in reserves
            assert Wei(5) not in reserves


def encode(signed: Any, **changes: Any) -> bytes:
    return envelope.encode(dataclasses.replace(signed, **changes))


async def push(stranger: Network, target: Network, *frames: bytes) -> None:
    """Write raw frames to the gossip stream, past everything of ours that would refuse."""
    async with stranger.stream(target.peer_id, MESHSUB, deadline_s=5) as stream:
        for frame in frames:
            await stream.send_bytes(encode_uvarint(len(frame)) + frame, deadline_s=5)
        await trio.sleep(0.05)


async def test_malformed_gossip_packets_stop_no_trade(tmp_path: Path) -> None:
    unsigned = rpc_pb2.Message(
        data=bytes(20_000), topicIDs=["/pm/market/1"], from_id=b"\x12\x20" + bytes(32), seqno=b"1"
    )
    frames = [
        b"\xff\xff\xff",
        b"\x12\x7f\x00",
        b"\x0a\x05\x0a",
        b"",
        bytes(1_000),
        rpc_pb2.RPC(publish=[unsigned]).SerializeToString(),
    ]
    async with open_market(tmp_path) as market:
        await pair(market)
        targets = [market.broker, market["buyer"], market["seller"]]
        async with a_stranger(market) as stranger, a_trade_goes_on(market):
            for target in targets:
                await stranger.connect(target.network.addresses()[0])
                for frame in frames:
                    await push(stranger, target.network, frame)
        for target in targets:
            rejected = target.network.counters.gossip_rejected
            assert rejected["malformed-rpc"] >= 3, (target.name, rejected)


# ── streams ──


async def test_requests_that_are_nonsense_are_answered_with_their_fault(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        seller, buyer = await pair(market)
        name, offer = seller.sees(seller) or pytest.fail("the seller has no offer")
        unknown = Digest(b"\x42" * 32)
        key = Digest(b"\x09" * 32)
        to_broker = [
            (b"", "malformed"),
            (b"\xff" * 1_000, "malformed"),
            (cbor.encode(["ask-request", {}]), "malformed"),
            (messages.encode(messages.Ask(ask=Wei(1))), "not-my-role"),
            (ask_for(unknown, name), "not-my-role"),
            (
                messages.encode(messages.TrialRequest(base_digest=name, offer_digest=name)),
                "not-your-submission",
            ),
            (
                messages.encode(messages.TrialRequest(base_digest=unknown, offer_digest=name)),
                "unknown-offer",
            ),
            (
                messages.encode(
                    messages.QuoteRequest(
                        trial_id=unknown, valuation=Wei(1), buyer_nonce=unknown, buyer_key=key
                    )
                ),
                "unknown-trial",
            ),
            (messages.encode(messages.Submit(statement=b"\x00")), "malformed"),
        ]
        to_seller = [
            (messages.encode(messages.ListBook()), "not-my-role"),
            (ask_for(unknown, name), "not-our-broker"),
            (
                messages.encode(
                    messages.PrepareGoods(
                        trade_id=unknown, offer_digest=name, buyer=buyer.account,
                        buyer_key=key, buyer_nonce=unknown,
                    )
                ),
                "not-our-broker",
            ),
        ]  # fmt: skip
        async with a_stranger(market) as stranger, a_trade_goes_on(market):
            await stranger.connect(seller.network.addresses()[0])
            for target, questions in ((market.broker, to_broker), (seller, to_seller)):
                for payload, reason in questions:
                    with pytest.raises(RemoteProtocolError) as caught:
                        await stranger.request(
                            target.peer_id, BROKER_PROTOCOL, payload, deadline_s=5
                        )
                    assert caught.value.reason == reason, payload[:60]
            await nobody_is_served(stranger, seller, offer)


async def nobody_is_served(stranger: Network, seller: Party, offer: Offer) -> None:
    """Weights are for brokers that the seller joined by, goods for who knows the trade's id."""
    from node.net.transfer import Source, fetch_hashes

    for protocol, name, reason in (
        (PARAMS_PROTOCOL, offer.weights_root, "not-our-broker"),
        (GOODS_PROTOCOL, offer.weights_root, "unknown-trade"),
        (GOODS_PROTOCOL, b"\x01", "unknown-trade"),
    ):
        source = Source(peer=seller.peer_id, protocol=protocol, name=name)
        with pytest.raises(RemoteProtocolError) as caught:
            await fetch_hashes(
                stranger, source, root=offer.weights_root, byte_length=offer.byte_length
            )
        assert caught.value.reason == reason, protocol


def ask_for(trade_id: Digest, offer_digest: Digest) -> bytes:
    return messages.encode(
        messages.AskRequest(trade_id=trade_id, offer_digest=offer_digest, fee_basis_points=1)
    )


async def test_a_stream_that_says_nothing_holds_up_nobody(tmp_path: Path) -> None:
    async with open_market(tmp_path) as market:
        await pair(market)
        async with a_stranger(market) as stranger, trio.open_nursery() as nursery:

            async def hold(protocol: str) -> None:
                broker = market.broker.peer_id
                async with stranger.stream(broker, protocol, deadline_s=5) as stream:
                    await stream.send_bytes(b"\0", deadline_s=5)
                    await trio.sleep_forever()

            for _ in range(20):
                nursery.start_soon(hold, BROKER_PROTOCOL)
            async with a_trade_goes_on(market):
                pass
            nursery.cancel_scope.cancel()
        assert cast("Any", market.broker.network)._wire is not None
