"""What strangers may send: each is refused by its name, and a trade beside it does not notice."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_uvarint

from node.chronicle import StatementJudged
from node.net.gossip import TOPIC
from node.net.host import Network, open_host
from node.protocol import cbor, envelope, messages
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.messages import BROKER_PROTOCOL, GOODS_PROTOCOL, PARAMS_PROTOCOL
from node.protocol.offer import Offer
from node.protocol.signing import peer_id_of, peer_sign
from node.protocol.types import Digest, Wei
from tests.market.market import (
    LISTEN,
    Market,
    Party,
    eventually,
    open_market,
    seed_of,
)
from tests.market.strangers import a_trade_goes_on, offer_of, pair

MESHSUB = "/meshsub/1.1.0"


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
        assert isinstance(signed.body, Offer)
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


def gossiped(data: bytes) -> rpc_pb2.Message:
    """A message as libp2p wants it: of our topic, and signed by a peer."""
    seed = seed_of("stranger")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    message = rpc_pb2.Message(
        data=data,
        topicIDs=[TOPIC],
        from_id=ID.from_base58(peer_id_of(public)).to_bytes(),
        seqno=(2**63).to_bytes(8, "big"),
    )
    message.signature = peer_sign(seed, b"libp2p-pubsub:" + message.SerializeToString())
    return message


async def test_malformed_gossip_packets_stop_no_trade(tmp_path: Path) -> None:
    unsigned = gossiped(b"anything")
    unsigned.signature = b""
    frames = [
        b"\xff\xff\xff",
        b"\x12\x7f\x00",
        b"\x0a\x05\x0a",
        b"",
        bytes(1_000),
        rpc_pb2.RPC(publish=[gossiped(bytes(20_000))]).SerializeToString(),
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
            assert rejected["oversize"] == 1, (target.name, rejected)
            assert rejected["bad-peer-signature"] == 1, (target.name, rejected)


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
            (messages.encode(messages.Ask(ask=Wei(1), signature=b"")), "not-my-role"),
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
                        trial_id=unknown,
                        valuation=Wei(1),
                        buyer_nonce=unknown,
                        buyer_key=key,
                        signature=b"",
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
