"""The guards around libp2p's pubsub: GossipSub with its traps closed.

The third part of `node.net.guards`, which see. What a message is worth is not decided here
but by `Policy`, in the market's words; this module only keeps libp2p from dying, from
losing messages, and from working for whoever asks.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol, cast

import libp2p.pubsub.pubsub as pubsub_module
import trio
from google.protobuf.message import DecodeError
from libp2p.exceptions import BaseLibp2pError, ParseError
from libp2p.io.exceptions import MessageTooLarge
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from node.protocol.errors import RemoteProtocolError
from node.protocol.signing import peer_id_of, peer_verify, public_key_of
from node.protocol.types import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from libp2p.abc import INetStream
    from libp2p.host.basic_host import BasicHost

    from node.net.limits import Limits

    Report = Callable[[str, PeerId | None, Exception], None]

_MAX_SUBSCRIPTIONS = 16
_MAX_IHAVE = 512
_MAX_IWANT = 64
_MAX_ID_BYTES = 64
_FLUSH_S = 0.1
"""Loopback took 1 ms, 4 at most; a peer that does not read holds up nobody for longer."""
_ED25519_KEY = bytes.fromhex("08011220")
"""The protobuf around a raw public key."""


def roomy_queues(entries: int, frame_bytes: int) -> None:
    """Let a burst of messages wait for a slow peer; for the process, the last call counts.

    Trap: the stock queue to a peer holds 32, and what does not fit is dropped in silence.
    """
    cast("Any", pubsub_module).RpcQueue = functools.partial(RpcQueue, entries, frame_bytes)


class Policy(Protocol):
    """What `node.net.gossip` decides."""

    def admit(
        self, sender: PeerId, origin: PeerId, data: bytes, *, verify: Callable[[], None]
    ) -> tuple[bool, bool]:
        """Whether to take and relay a message, and whether to remember that it was seen."""

    def offend(self, sender: PeerId, reason: str) -> None: ...
    def pace(self, sender: PeerId) -> float:
        """For how many seconds to let this peer wait before its next frame is read."""

    def wrote(self, length: int) -> None: ...
    def read(self, length: int) -> None: ...


class SeenMessages:
    """Ids of messages of the last `ttl` seconds, at most `entries` of them.

    Trap: the stock cache has no bound, and a thread for each host that wakes every minute.
    """

    def __init__(self, ttl: float, entries: int) -> None:
        self._ttl = ttl
        self._entries = entries
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes) -> bool:
        new = not self.has(key)
        self._seen[key] = trio.current_time() + self._ttl
        self._seen.move_to_end(key)
        while len(self._seen) > self._entries:
            self._seen.popitem(last=False)
        return new

    def has(self, key: bytes) -> bool:
        now = trio.current_time()
        while self._seen:
            oldest, expiry = next(iter(self._seen.items()))
            if expiry > now:
                break
            del self._seen[oldest]
        return key in self._seen

    def stop(self) -> None:
        """There is no thread to stop."""


def verify_origin(message: rpc_pb2.Message) -> None:
    """Raise `RemoteProtocolError` unless the peer named as origin signed the message.

    Trap: the stock check raises on a junk key field and on a signature of another length,
    and takes a key that is not the one in the id.
    """
    origin = PeerId(ID(message.from_id).to_base58())
    key = public_key_of(origin).public_bytes_raw()
    if message.key and message.key != _ED25519_KEY + key:
        raise RemoteProtocolError("bad-key", f"the key beside the message is not {origin}'s")
    if peer_id_of(key) != origin or len(message.seqno) != 8:
        raise RemoteProtocolError(
            "bad-origin", "an origin is an Ed25519 id, with 8 bytes of sequence"
        )
    unsigned = rpc_pb2.Message(
        data=message.data, topicIDs=message.topicIDs, from_id=message.from_id, seqno=message.seqno
    )
    signed = PUBSUB_SIGNING_PREFIX.encode() + unsigned.SerializeToString()
    peer_verify(origin, signed, message.signature)


def sanitise(control: rpc_pb2.ControlMessage, topic: str) -> rpc_pb2.ControlMessage:
    """What of a control message we act on: our topic, ids once each, no strangers to dial.

    Traps: one IWANT that repeats an id is answered with the message as often; PRUNE names
    peers that are then dialled; state is kept for every topic that a peer makes up.
    """
    clean = rpc_pb2.ControlMessage()
    ihave = [i for have in control.ihave if have.topicID == topic for i in have.messageIDs]
    if ihave:
        ids = dict.fromkeys(i for i in ihave[:_MAX_IHAVE] if len(i) <= _MAX_ID_BYTES)
        clean.ihave.append(rpc_pb2.ControlIHave(topicID=topic, messageIDs=list(ids)))
    iwant = [i for want in control.iwant for i in want.messageIDs]
    if iwant:
        wanted = list(dict.fromkeys(i for i in iwant if len(i) <= _MAX_ID_BYTES))[:_MAX_IWANT]
        clean.iwant.append(rpc_pb2.ControlIWant(messageIDs=wanted))
    if any(graft.topicID == topic for graft in control.graft):
        clean.graft.append(rpc_pb2.ControlGraft(topicID=topic))
    if any(prune.topicID == topic for prune in control.prune):
        clean.prune.append(rpc_pb2.ControlPrune(topicID=topic))
    return clean


class GuardedGossipSub(GossipSub):
    """GossipSub for one topic, whose own messages go to every subscriber at once.

    Traps: the default heartbeat is 120 s, and adaptive gossip makes a second a minute of
    it; spam protection drops from 10 messages a second, one's own included; small degrees
    isolate hubs; scores that nobody reads bar honest peers.
    """

    def __init__(self, topic: str, report: Report) -> None:
        super().__init__(
            [PROTOCOL_ID_V11, PROTOCOL_ID],
            degree=8,
            degree_low=6,
            degree_high=64,
            heartbeat_interval=1,
            prune_back_off=10,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
            do_px=False,
        )
        self.scorer = None
        self._topic = topic
        self._report = report

    async def heartbeat(self) -> None:
        """Go on after a failed heartbeat. Trap: one exception in it ends the host."""
        while True:
            try:
                await super().heartbeat()
            except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
                self._report("gossip-heartbeat", None, error)
            await trio.sleep(self.heartbeat_interval)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        clean = rpc_pb2.RPC(control=sanitise(rpc.control, self._topic))
        await super().handle_rpc(clean, sender_peer_id)

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        """Trap: this and the next are tasks of their own, whose exceptions end the host."""
        try:
            await super().on_peer_subscribed(peer_id, topic)
        except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
            self._report("gossip-subscribed", PeerId(str(peer_id)), error)

    async def flush_pending_messages(self, peer_id: ID) -> None:
        try:
            await super().flush_pending_messages(peer_id)
        except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
            self._report("gossip-flush", PeerId(str(peer_id)), error)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        await super().publish(msg_forwarder, pubsub_msg)
        self.recent_message_deliveries.clear()  # grows for ever, and only adaptive gossip reads it

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        """Flood what is ours, so that a young or thin mesh loses none of it."""
        pubsub = self.pubsub
        if pubsub is not None and msg_forwarder == pubsub.my_id:
            return [peer for peer in pubsub.peer_topics.get(self._topic, ()) if peer != origin]
        return super()._get_peers_to_send(topic_ids, msg_forwarder, origin, msg_id)


class GuardedPubsub(Pubsub):
    """Pubsub that reads, checks and relays one message at a time, and survives all of them."""

    def __init__(
        self, host: BasicHost, router: GuardedGossipSub, topic: str, policy: Policy, limits: Limits
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=limits.gossip_rpc_bytes,
            max_subscriptions_per_rpc=_MAX_SUBSCRIPTIONS,
            max_subscriptions_per_peer=1,
            allowed_topics={topic},
        )
        self._topic = topic
        self._policy = policy
        self._report = router._report  # noqa: SLF001 (our own subclass)
        self._registering: dict[ID, trio.Lock] = {}
        self._writing = 0
        self._wrote = trio.Event()
        """Set, and replaced by a new one, whenever a frame was written."""
        self.seen_messages.stop()
        seen = SeenMessages(limits.gossip_seen_s, limits.gossip_seen_entries)
        self.seen_messages = cast("Any", seen)
        self.counter = time.time_ns()
        """Trap: sequence numbers start at the second; after a restart the new ones repeat."""
        roomy_queues(limits.gossip_queue, limits.gossip_rpc_bytes)

    # -------------------------------------------------------------------- what comes in

    async def stream_handler(self, stream: INetStream) -> None:
        """Read one peer's frames until it leaves.

        Trap: a malformed protobuf, or an exception in any check, ends the host.
        """
        peer = stream.muxed_conn.peer_id
        sender = PeerId(str(peer))
        try:
            await self.continuously_read_stream(stream)
        except (DecodeError, ParseError, MessageTooLarge, UnicodeDecodeError):
            self._policy.offend(sender, "malformed-rpc")
            await stream.reset()
        except (BaseLibp2pError, EOFError):
            pass
        except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
            self._report("gossip-read", sender, error)
            await stream.reset()

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Read frames, many at a time.

        Traps: the stock loop reads lengths byte by byte, and each byte costs a frame of its
        own in answer; it starts a task for each message, without a bound.
        """
        peer = stream.muxed_conn.peer_id
        sender = PeerId(str(peer))
        buffer = bytearray()
        while self.manager.is_running:
            piece = await stream.read(self.max_inbound_rpc_size)
            if not piece:
                return
            self._policy.read(len(piece))
            buffer += piece
            while (frame := take_frame(buffer, self.max_inbound_rpc_size)) is not None:
                rpc = rpc_pb2.RPC()
                rpc.ParseFromString(frame)
                await self._handle_frame(peer, rpc)
                if (pause := self._policy.pace(sender)) > 0:
                    await trio.sleep(pause)

    async def _handle_frame(self, peer: ID, rpc: rpc_pb2.RPC) -> None:
        if rpc.subscriptions:
            maybe_consume_signed_record(rpc, self.host, peer)
            for subscription in rpc.subscriptions[:_MAX_SUBSCRIPTIONS]:
                self.handle_subscription(peer, subscription)
        for message in rpc.publish:
            await self.push_msg(peer, message)
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Check a message and relay it.

        Traps: the stock checks raise; verdicts are kept for 300 s and seen ids for 120, so
        that in between a replay passes unchecked; own ids from others are marked as seen.
        """
        key = self.get_message_id(msg)
        if msg_forwarder == self.my_id:
            self.seen_messages.add(key)
            await self.router.publish(msg_forwarder, msg)
            return
        if msg.from_id == self.my_id.to_bytes() or self.seen_messages.has(key):
            return
        sender = PeerId(str(msg_forwarder))
        if list(msg.topicIDs) != [self._topic]:
            self._policy.offend(sender, "wrong-topic")
            return
        taken, remembered = self._policy.admit(
            sender,
            PeerId(ID(msg.from_id).to_base58()),
            msg.data,
            verify=lambda: verify_origin(msg),
        )
        if remembered:
            self.seen_messages.add(key)
        if taken:
            await self.router.publish(msg_forwarder, msg)

    # ------------------------------------------------------------------- what goes out

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        self._writing += 1
        try:
            sent = await super().write_msg(stream, rpc_msg)
        finally:
            self._writing -= 1
            self._wrote.set()
            self._wrote = trio.Event()
        if sent:
            self._policy.wrote(rpc_msg.ByteSize())
        return sent

    async def flush(self) -> None:
        """Wait until what was published has left, at most for a moment.

        Trap: publishing only queues; a task for each peer writes, and a process that dies
        in between has said nothing.
        """
        with trio.move_on_after(_FLUSH_S):
            while self._writing or any(len(queue) for queue in self.peer_queues.values()):
                await self._wrote.wait()

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """Register a peer once. Trap: two connections at a time register it twice."""
        lock = self._registering.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                await super()._handle_new_peer(peer_id)
        finally:
            if not lock.locked():
                self._registering.pop(peer_id, None)

    def refresh(self, peer_id: ID) -> None:
        """Repair what a reconnection may have lost: our stream to a peer, its view of us.

        Trap: while another connection to the peer lives, a dead stream stays registered, and
        messages to it are lost; a subscription lost on the way is never sent again.
        """
        stream = self.peers.get(peer_id)
        if stream is None:
            if self._peer_is_connected(peer_id):
                self._schedule_peer_stream_retry(peer_id)
        elif cast("Any", stream.muxed_conn).is_closed:
            self._handle_dead_peer(peer_id)
        elif (queue := self.peer_queues.get(peer_id)) is not None:
            queue.push(self.get_hello_packet())


def take_frame(buffer: bytearray, limit: int) -> bytes | None:
    """Cut one varint-prefixed frame off `buffer`, or None if it is not whole yet.

    Raises libp2p's `ParseError` or `MessageTooLarge` for a length past 10 bytes or `limit`.
    """
    length = 0
    for position, value in enumerate(buffer[:10]):
        length |= (value & 0x7F) << (7 * position)
        if value & 0x80 == 0:
            break
    else:
        if len(buffer) >= 10:
            raise ParseError("a length of more than 64 bits")
        return None
    if length > limit:
        raise MessageTooLarge(f"a frame of {length} bytes, past {limit}")
    start = position + 1
    if len(buffer) < start + length:
        return None
    frame = bytes(buffer[start : start + length])
    del buffer[: start + length]
    return frame
