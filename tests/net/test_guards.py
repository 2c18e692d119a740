"""Each trap of py-libp2p 0.8.1, shown to be closed, on real connections where it matters.

Where the trap can be shown cheaply in the stock library too, it is: when such a line fails
after an upgrade, the guard can go.
"""

from __future__ import annotations

import logging  # noqa: TID251 (to see that a library is silent)
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import libp2p.io.utils
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1
from libp2p.io.exceptions import IncompleteReadError, MessageTooLarge
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.utils.varint import encode_uvarint
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from node.net.counters import Counters
from node.net.errors import CannotListenError, PeerUnreachableError
from node.net.gossip import GOSSIP, TOPIC
from node.net.gossip_guards import SeenMessages, sanitise, take_frame, verify_origin
from node.net.guards import Buffers, ReceiveBufferExceededError, install, read_delim, read_exactly
from node.net.host import Network, open_host
from node.net.host_guards import Gate
from node.net.limits import MIB, Limits
from node.net.streams import MessageStream
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.signing import peer_id_of, peer_sign
from node.protocol.types import PeerId
from node.protocol.verdict import accept, ignore

MESHSUB = "/meshsub/1.1.0"
ECHO = "/test/echo/1"


async def echo(_: PeerId, payload: bytes) -> bytes:
    return payload


async def still_answers(asker: Network, server: Network) -> bool:
    return await asker.request(server.peer_id, ECHO, b"alive?", deadline_s=5) == b"alive?"


def muxed_of(network: Network) -> Any:
    return cast("Any", network)._wire._swarm.get_connections()[0].muxed_conn


class Drip:
    """A reader that gives one byte at a time, and then nothing."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    async def read(self, _: int | None = None) -> bytes:
        self.reads += 1
        piece, self.data = self.data[:1], self.data[1:]
        return piece


# ------------------------------------------------------------------------------ streams


async def test_an_exception_that_escapes_a_stream_handler_leaves_the_host_running(
    open_hosts: Any, eventually: Any
) -> None:
    async def explode(_: PeerId, __: MessageStream) -> None:
        raise ZeroDivisionError("a bug of ours")

    async with open_hosts("a", "b") as (a, b):
        a.handle("/test/explode/1", explode)
        a.handle_requests(ECHO, echo)
        with pytest.raises(RemoteProtocolError):
            await b.request(a.peer_id, "/test/explode/1", b"x", deadline_s=5)
        await eventually(lambda: a.faults)
        assert await still_answers(b, a)
        where, peer, error = a.faults[0]
        assert (where, peer) == ("stream-handler", b.peer_id)
        assert isinstance(error, ZeroDivisionError)


async def test_a_protocol_line_that_is_not_text_leaves_the_host_running(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        target = ID.from_base58(a.peer_id)
        raw = await cast("Any", b)._wire._swarm.new_stream(target)
        await raw.write(b"\x13/multistream/1.0.0\n" + b"\x05\xff\xfe\xfd\xfc\n")
        await trio.sleep(0.1)
        assert await still_answers(b, a)


async def test_a_protocol_line_of_a_gigabyte_is_refused_before_it_is_read() -> None:
    reader = Drip(encode_uvarint(10**9) + b"x" * 100)
    with pytest.raises(MessageTooLarge):
        await read_delim(cast("Any", reader))
    assert reader.reads < 10


async def test_reading_goes_on_through_any_number_of_tiny_segments() -> None:
    data = bytes(range(250)) * 2
    assert await read_exactly(cast("Any", Drip(data)), 500) == data
    with pytest.raises(IncompleteReadError):  # the trap
        await libp2p.io.utils.read_exactly(cast("Any", Drip(data)), 500)


async def test_reading_stops_at_the_end_and_says_how_far_it_came() -> None:
    with pytest.raises(IncompleteReadError) as caught:
        await read_exactly(cast("Any", Drip(b"abc")), 5)
    assert (caught.value.expected_bytes, caught.value.received_bytes) == (5, 3)


def test_every_user_of_read_exactly_has_ours() -> None:
    install(MIB)
    from libp2p.io import msgio
    from libp2p.stream_muxer.yamux import yamux
    from libp2p.utils import varint

    for module in (msgio, yamux, varint):
        assert cast("Any", module).read_exactly is read_exactly


async def test_a_peer_that_ignores_the_receive_window_is_dropped(
    open_hosts: Any, eventually: Any
) -> None:
    limits = Limits(connection_buffer_bytes=MIB)
    never = trio.Event()

    async def hoard(_: PeerId, __: MessageStream) -> None:
        await never.wait()

    async with open_hosts("a", "b", limits=limits) as (a, b):
        a.handle("/test/hoard/1", hoard)
        held: list[int] = []
        buffers: Buffers = muxed_of(a).buffers
        with pytest.raises(RemoteProtocolError):
            async with b.stream(a.peer_id, "/test/hoard/1", deadline_s=5) as stream:
                flood = cast("Any", stream)._stream._stream.muxed_stream
                flood.send_window = 10**9
                while True:
                    await stream.send_bytes(bytes(65_507), deadline_s=5)
                    held.append(buffers.held)
        assert max(held) <= MIB
        assert sum(65_507 for _ in held) < 40 * MIB
        await eventually(lambda: b.peer_id not in a.connected())
        assert a.counters.refused["buffer-exceeded"] == 1
        never.set()


def test_unread_bytes_are_counted_over_all_streams_of_a_connection() -> None:
    refused: Counter[str] = Counter()
    buffers = Buffers(100, refused)
    buffers[1] = bytearray()
    buffers[3] = bytearray()
    buffers[1].extend(b"x" * 60)
    del buffers[1][:30]
    buffers[3].extend(b"y" * 70)
    with pytest.raises(ReceiveBufferExceededError):
        buffers[1].extend(b"z")
    assert (buffers.held, buffers.received, refused["buffer-exceeded"]) == (100, 131, 1)


async def test_the_largest_hoard_is_dropped_when_all_of_them_are_too_much(
    open_hosts: Any, eventually: Any
) -> None:
    never = trio.Event()

    async def hoard(_: PeerId, __: MessageStream) -> None:
        await never.wait()

    async with open_hosts("a", "b", "c", limits=Limits(total_buffer_bytes=150_000)) as (a, b, c):
        a.handle("/test/hoard/1", hoard)
        a.handle_requests(ECHO, echo)
        async with c.stream(a.peer_id, "/test/hoard/1", deadline_s=5) as small:
            await small.send_bytes(bytes(20_000), deadline_s=5)
            with pytest.raises(RemoteProtocolError):
                async with b.stream(a.peer_id, "/test/hoard/1", deadline_s=5) as large:
                    await large.send_bytes(bytes(200_000), deadline_s=5)
                    await large.receive(deadline_s=5)
            assert a.counters.refused["memory"] == 1
            assert await still_answers(c, a)
        never.set()


async def test_a_peer_may_hold_only_so_many_streams_open(open_hosts: Any) -> None:
    limits = Limits(inbound_streams_per_peer=8)
    never = trio.Event()

    async def hold(_: PeerId, __: MessageStream) -> None:
        await never.wait()

    async with open_hosts("a", "b", "c", limits=limits) as (a, b, c):
        a.handle("/test/hold/1", hold)
        a.handle_requests(ECHO, echo)
        refused = 0

        async def occupy() -> None:
            nonlocal refused
            try:
                async with b.stream(a.peer_id, "/test/hold/1", deadline_s=5):
                    await never.wait()
            except RemoteProtocolError:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(occupy)
            with trio.fail_after(10):
                while refused < 12:
                    await trio.sleep(0.01)
            assert await still_answers(c, a)
            with pytest.raises(RemoteProtocolError):
                await still_answers(b, a)
            never.set()
        assert a.counters.refused["streams"] >= 12
        with trio.fail_after(5):
            while cast("Any", a)._wire._gate._streams[b.peer_id] > 2:
                await trio.sleep(0.01)
        assert await still_answers(b, a)


async def test_a_stream_beyond_the_backlog_is_refused_at_once(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        muxed = muxed_of(b)
        slots, muxed.stream_backlog_semaphore = muxed.stream_backlog_semaphore, trio.Semaphore(0)
        with trio.fail_after(2), pytest.raises(PeerUnreachableError):
            await b.request(a.peer_id, ECHO, b"", deadline_s=30)
        muxed.stream_backlog_semaphore = slots
        assert await still_answers(b, a)


async def test_a_deadline_in_the_middle_of_a_frame_ends_the_connection_not_its_integrity(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        muxed = muxed_of(b)
        write = muxed.secured_conn.write

        async def stuck_once(_: bytes) -> None:
            muxed.secured_conn.write = write
            await trio.sleep_forever()

        await trio.sleep(0.1)  # until nobody else is writing
        with trio.move_on_after(0.05):
            muxed.secured_conn.write = stuck_once
            await muxed._write_frame(bytes(12))
        await eventually(lambda: not b.connected() and not a.connected())
        assert b.counters.refused["frame-cut"] == 1
        await b.connect(a.addresses()[0])
        assert await still_answers(b, a)


# -------------------------------------------------------------------------- connections


async def test_slots_of_inbound_connections_are_given_back(
    open_hosts: Any, eventually: Any
) -> None:
    limits = Limits(max_connections=3)
    async with open_hosts("a", "b", limits=limits, connect=False) as (a, b):
        a.handle_requests(ECHO, echo)
        for _ in range(8):
            await b.connect(a.addresses()[0])
            assert await still_answers(b, a)
            await b.disconnect(a.peer_id)
            await eventually(lambda: not a.connected())


async def test_plaintext_is_refused(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        stranger = new_host()
        keys = cast("Any", stranger)._network.peerstore
        private = keys.privkey(stranger.get_id())
        plain = new_host(
            key_pair=libp2p_pair(private),
            sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(libp2p_pair(private))},
        )
        async with plain.run([]):
            with pytest.raises(SwarmException):
                await plain.connect(info_from_p2p_addr(Multiaddr(a.addresses()[0])))
        assert not a.connected()


async def test_a_peer_whose_key_is_not_ed25519_is_refused(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        stranger = new_host(key_pair=create_secp256k1())
        async with stranger.run([]):
            with suppress(SwarmException), trio.move_on_after(2):
                await stranger.connect(info_from_p2p_addr(Multiaddr(a.addresses()[0])))
        assert not a.connected()
        assert a.counters.refused["bad-peer-id"] >= 1


def test_a_truncated_or_foreign_peer_id_may_not_connect() -> None:
    own, other = peer_id_of(bytes(32)), peer_id_of(bytes(31) + b"\1")
    gate = Gate(own, Limits(), Counters())
    assert gate.refusal(other) is None
    assert gate.refusal(PeerId(other[:-4])) == "bad-peer-id"
    assert gate.refusal(own) == "self"
    gate.banned.add(other)
    assert gate.refusal(other) == "banned"


async def test_a_port_that_is_taken_is_not_shared(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        port = a.addresses()[0].split("/")[4]
        with pytest.raises(CannotListenError, match=port):
            async with open_host(b"x" * 32, f"/ip4/127.0.0.1/tcp/{port}"):
                pytest.fail("two hosts listen on one port")


async def test_libp2p_does_not_write_to_standard_error(
    open_hosts: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logging.getLogger().handlers)
    async with open_hosts("a", "b") as (a, b):
        with pytest.raises(PeerUnreachableError):
            await b.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_of(b'k' * 32)}")
        await b.disconnect(a.peer_id)
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------- pubsub


def signed(seed: bytes, data: bytes, sequence: int, topic: str = TOPIC) -> rpc_pb2.Message:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    message = rpc_pb2.Message(
        data=data,
        topicIDs=[topic],
        from_id=ID.from_base58(peer_id_of(public)).to_bytes(),
        seqno=sequence.to_bytes(8, "big"),
    )
    message.signature = peer_sign(seed, b"libp2p-pubsub:" + message.SerializeToString())
    message.key = bytes.fromhex("08011220") + public
    return message


async def push(asker: Network, server: Network, *frames: bytes) -> None:
    async with asker.stream(server.peer_id, MESHSUB, deadline_s=5) as stream:
        for frame in frames:
            await stream.send_bytes(encode_uvarint(len(frame)) + frame, deadline_s=5)
        await trio.sleep(0.05)


def rpc(*messages: rpc_pb2.Message) -> bytes:
    return rpc_pb2.RPC(publish=messages).SerializeToString()


def spoil_signature(message: rpc_pb2.Message) -> None:
    message.signature = message.signature[:10]


def spoil_key(message: rpc_pb2.Message) -> None:
    message.key = b"\xff" * 40


def spoil_origin(message: rpc_pb2.Message) -> None:
    message.from_id = message.from_id[:20]


def spoil_sequence(message: rpc_pb2.Message) -> None:
    message.seqno = b"\1"


SPOILERS: dict[Callable[[rpc_pb2.Message], None], str] = {
    spoil_signature: "bad-peer-signature",
    spoil_key: "bad-key",
    spoil_origin: "bad-peer-id",
    spoil_sequence: "bad-origin",
}


@pytest.mark.parametrize("frame", [b"\xff\xff\xff", b"\x12\x7f\x00", b"\x0a\x05\x0a"])
async def test_a_malformed_frame_of_pubsub_leaves_the_host_running(
    open_hosts: Any, eventually: Any, frame: bytes
) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        await push(b, a, frame)
        await eventually(lambda: a.counters.gossip_rejected["malformed-rpc"])
        assert await still_answers(b, a)


async def test_forged_messages_are_rejected_by_name_and_leave_the_host_running(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        forged = []
        for sequence, spoil in enumerate(SPOILERS):
            message = signed(b"o" * 32, b"hello", sequence)
            spoil(message)
            forged.append(message)
        await push(b, a, rpc(*forged), rpc(signed(b"o" * 32, b"genuine", 99)))
        await eventually(lambda: a.counters.gossip_accepted)
        assert a.counters.gossip_rejected == dict.fromkeys(SPOILERS.values(), 1)
        assert (await a.gossip().receive()).data == b"genuine"
        assert await still_answers(b, a)


@pytest.mark.parametrize("spoil", SPOILERS)
def test_an_origin_is_proved_or_refused_and_nothing_else(
    spoil: Callable[[rpc_pb2.Message], None],
) -> None:
    message = signed(b"o" * 32, b"hello", 7)
    verify_origin(message)
    spoil(message)
    with pytest.raises(RemoteProtocolError) as caught:
        verify_origin(message)
    assert caught.value.reason == SPOILERS[spoil]


async def test_a_forgery_does_not_silence_the_peer_that_it_names(open_hosts: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        genuine = signed(b"o" * 32, b"genuine", 7)
        forged = signed(b"o" * 32, b"forged", 7)
        forged.data = b"altered"
        oversize = signed(b"o" * 32, bytes(20_000), 7)
        await push(b, a, rpc(forged), rpc(oversize), rpc(genuine))
        with trio.fail_after(5):
            assert (await a.gossip().receive()).data == b"genuine"
        assert a.counters.gossip_rejected == {"bad-peer-signature": 1, "oversize": 1}


async def test_a_validator_that_raises_leaves_the_host_running(
    open_hosts: Any, eventually: Any
) -> None:
    def broken(_: PeerId, __: bytes) -> Any:
        raise KeyError("a bug of ours")

    async with open_hosts("a", "b") as (a, b):
        a.handle_requests(ECHO, echo)
        a.set_gossip_validator(broken)
        await eventually(lambda: a.peer_id in b.gossiping_with())
        await b.publish(b"anything")
        await eventually(lambda: a.counters.gossip_ignored["internal-error"])
        assert a.counters.faults["gossip-validator"] == 1
        assert await still_answers(b, a)


async def test_a_replay_is_judged_again_once_its_id_is_forgotten(
    open_hosts: Any, eventually: Any
) -> None:
    """The stock library would take it from its cache of verdicts, unchecked."""
    judged: list[bytes] = []

    def validate(_: PeerId, data: bytes) -> Any:
        judged.append(data)
        return accept() if len(judged) == 1 else ignore("replayed")

    async with open_hosts("a", "b", limits=Limits(gossip_seen_s=0.2)) as (a, b):
        a.set_gossip_validator(validate)
        frame = rpc(signed(b"o" * 32, b"once", 7))
        await push(b, a, frame, frame)
        assert judged == [b"once"]
        await trio.sleep(0.2)
        await push(b, a, frame)
        await eventually(lambda: a.counters.gossip_ignored["replayed"])
        assert a.counters.gossip_accepted == 1


async def test_messages_after_a_restart_are_not_taken_for_old_ones(
    open_hosts: Any, eventually: Any
) -> None:
    """Sequence numbers begin with the time in nanoseconds, not in seconds."""
    async with open_hosts("a") as (a,):
        heard = []
        for _ in range(3):
            async with open_hosts("b") as (b,):
                await b.connect(a.addresses()[0])
                await eventually(lambda: a.peer_id in b.gossiping_with())
                await b.publish(b"same words")
                with trio.fail_after(5):
                    heard.append(await a.gossip().receive())
            await eventually(lambda: not a.connected())
        assert len(heard) == 3


async def test_sequence_numbers_begin_with_the_time_in_nanoseconds(open_hosts: Any) -> None:
    before = time.time_ns()
    async with open_hosts("a") as (a,):
        assert before < cast("Any", a)._wire._pubsub.counter <= time.time_ns()


async def test_gossip_runs_with_the_measured_parameters(open_hosts: Any, eventually: Any) -> None:
    async with open_hosts("a", "b") as (a, b):
        await eventually(lambda: a.peer_id in b.gossiping_with())
        wire = cast("Any", b)._wire
        router, pubsub = wire._router, wire._pubsub
        assert router.get_protocols() == ["/meshsub/1.1.0", "/meshsub/1.0.0"]
        assert (router.degree, router.degree_low, router.degree_high) == (8, 6, 64)
        assert (router.heartbeat_interval, router.prune_back_off) == (1, 10)
        assert not router.adaptive_gossip_enabled
        assert not router.spam_protection_enabled
        assert not router.eclipse_protection_enabled
        assert pubsub.max_inbound_rpc_size == 256 * 1024
        (queue,) = pubsub.peer_queues.values()
        assert (queue._queue.max_size, queue.max_message_size) == (1024, 256 * 1024)


async def test_a_burst_past_the_stock_queue_is_delivered_whole(
    open_hosts: Any, eventually: Any
) -> None:
    limits = Limits(gossip_messages_per_s=1e6, gossip_burst=1_000)
    async with open_hosts("a", "b", limits=limits) as (a, b):
        await eventually(lambda: a.peer_id in b.gossiping_with())
        for number in range(150):
            await b.publish(number.to_bytes(2, "big"))
        with trio.fail_after(10):
            got = [int.from_bytes((await a.gossip().receive()).data, "big") for _ in range(150)]
        assert sorted(got) == list(range(150))


async def test_a_published_message_has_left_once_it_is_flushed(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        await eventually(lambda: a.peer_id in b.gossiping_with())
        before = b.counters.bytes_out[GOSSIP]
        await b.publish(bytes(9_000))
        assert b.counters.bytes_out[GOSSIP] < before + 9_000  # it was queued
        await b.flush()
        assert b.counters.bytes_out[GOSSIP] > before + 9_000


async def test_a_peer_that_does_not_read_holds_up_no_flush(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        cast("Any", a)._wire._pubsub._writing = 1
        with trio.fail_after(1):
            await a.flush()


async def test_a_failed_heartbeat_is_reported_and_gossip_goes_on(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        router = cast("Any", a)._wire._router
        healthy, router.mesh_heartbeat = router.mesh_heartbeat, None
        await eventually(lambda: a.counters.faults["gossip-heartbeat"])
        router.mesh_heartbeat = healthy
        await eventually(lambda: a.peer_id in b.gossiping_with())
        await b.publish(b"still here")
        with trio.fail_after(5):
            assert (await a.gossip().receive()).data == b"still here"


async def test_publishing_past_16_kib_is_refused_here(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        await a.publish(bytes(16 * 1024))
        for data in (bytes(16 * 1024 + 1), b""):
            with pytest.raises(LocalProtocolError):
                await a.publish(data)


def test_control_messages_are_cut_down_to_what_we_act_on() -> None:
    control = rpc_pb2.ControlMessage(
        ihave=[
            rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"id"] * 9 + [b"x" * 65]),
            rpc_pb2.ControlIHave(topicID="/made/up", messageIDs=[b"other"]),
        ],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"id"] * 5_000)],
        graft=[rpc_pb2.ControlGraft(topicID=f"/made/up/{n}") for n in range(50)],
        prune=[
            rpc_pb2.ControlPrune(
                topicID=TOPIC, peers=[rpc_pb2.PeerInfo(peerID=b"stranger")], backoff=10**12
            )
        ],
        idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"id"])],
    )
    clean = sanitise(control, TOPIC)
    assert [list(have.messageIDs) for have in clean.ihave] == [[b"id"]]
    assert [list(want.messageIDs) for want in clean.iwant] == [[b"id"]]
    assert not clean.graft
    assert not clean.idontwant
    (prune,) = clean.prune
    assert (len(prune.peers), prune.backoff) == (0, 0)


async def test_only_our_topic_is_remembered_for_a_peer(open_hosts: Any) -> None:
    async with open_hosts("a") as (a,):
        pubsub = cast("Any", a)._wire._pubsub
        stranger = ID.from_base58(peer_id_of(b"s" * 32))
        for topic in ("/made/up/1", TOPIC, "/made/up/2"):
            pubsub.handle_subscription(stranger, rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        assert pubsub.peer_topics == {TOPIC: {stranger}}


async def test_our_own_messages_go_to_subscribers_outside_the_mesh(
    open_hosts: Any, eventually: Any
) -> None:
    async with open_hosts("a", "b") as (a, b):
        await eventually(lambda: a.peer_id in b.gossiping_with())
        router = cast("Any", b)._wire._router
        router.mesh[TOPIC].clear()
        await b.publish(b"thin mesh")
        with trio.fail_after(0.5):  # before any heartbeat could mend it
            assert (await a.gossip().receive()).data == b"thin mesh"


async def test_seen_ids_are_bounded_and_forgotten(autojump_clock: Any) -> None:
    seen = SeenMessages(ttl=10, entries=3)
    for key in (b"1", b"2", b"3", b"4"):
        assert seen.add(key)
    assert not seen.add(b"4")
    assert [seen.has(key) for key in (b"1", b"2", b"3", b"4")] == [False, True, True, True]
    await trio.sleep(11)
    assert not seen.has(b"4")


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_frames_come_out_whole_however_they_are_cut(frames: list[bytes], size: int) -> None:
    wire = b"".join(encode_uvarint(len(frame)) + frame for frame in frames)
    buffer, got = bytearray(), []
    for offset in range(0, len(wire), size):
        buffer += wire[offset : offset + size]
        while (frame := take_frame(buffer, 300)) is not None:
            got.append(frame)
    assert got == frames
    assert not buffer


def test_a_frame_past_the_limit_or_without_end_is_refused() -> None:
    with pytest.raises(MessageTooLarge):
        take_frame(bytearray(encode_uvarint(301)), 300)
    with pytest.raises(Exception, match="64 bits"):
        take_frame(bytearray(b"\xff" * 10), 300)
    assert take_frame(bytearray(b"\xff" * 9), 300) is None


def libp2p_pair(private: Any) -> Any:
    from libp2p.crypto.keys import KeyPair

    return KeyPair(private, private.get_public_key())
