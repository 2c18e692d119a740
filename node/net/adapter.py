"""The one place that knows both libp2p and the market's words.

Peers are `PeerId` strings, addresses are text, bytes are bytes: no type of libp2p leaves
this module, and no exception either. What a peer can cause becomes a `RemoteProtocolError`
by this table:

    no connection, or it broke           PeerUnreachableError("unreachable")
    the stream ended early               RemoteProtocolError("truncated")
    the peer reset the stream            RemoteProtocolError("stream-reset")
    the peer does not speak the protocol RemoteProtocolError("unsupported-protocol")
    another peer answered                RemoteProtocolError("wrong-peer")
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import multiaddr  # type: ignore[import-untyped]
import trio
from libp2p.abc import INotifee
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError, ParseError
from libp2p.io.exceptions import IncompleteReadError
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.protocol_muxer.multiselect_client import MULTISELECT_PROTOCOL_ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils.varint import encode_delim

from node.net.addresses import PeerAddress, parse_transport, reachable
from node.net.errors import CannotListenError, PeerBannedError, PeerUnreachableError
from node.net.gossip_guards import GuardedGossipSub, GuardedPubsub, Policy
from node.net.guards import shielded
from node.net.host_guards import Gate, build_host, drop_largest, refuse_shared_port
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.types import PeerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from libp2p.abc import INetConn, INetStream, INetwork
    from libp2p.network.swarm import Swarm

    from node.net.counters import Counters
    from node.net.limits import Limits

    Report = Callable[[str, PeerId | None, Exception], None]
    StreamHandler = Callable[[PeerId, "WireStream"], Awaitable[None]]

_BROKEN: Final = (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError)


class WireStream:
    """One stream to one peer: bytes in order, until either side ends it."""

    def __init__(self, stream: INetStream, peer: PeerId, protocol: str, counters: Counters) -> None:
        self.peer = peer
        self.protocol = protocol
        self._stream = stream
        self._counters = counters

    async def read(self, limit: int) -> bytes:
        """At least one and at most `limit` bytes; the end raises ``truncated``."""
        try:
            data = await self._stream.read(limit)
        except _BROKEN as error:
            raise self._explain(error) from error
        if not data:
            raise RemoteProtocolError("truncated", "the stream ended", peer=self.peer)
        self._counters.bytes_in[self.protocol] += len(data)
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except _BROKEN as error:
            raise self._explain(error) from error
        self._counters.bytes_out[self.protocol] += len(data)

    async def close_write(self) -> None:
        """Tell the peer that no more comes; what it sends can still be read."""
        try:
            await cast("Any", self._stream).close_write()
        except _BROKEN as error:
            raise self._explain(error) from error

    async def close(self) -> None:
        """Close in order, whatever the peer does; never raises, never takes long."""
        with shielded(1.0):
            try:
                await self._stream.close()
                if not cast("Any", self._stream).muxed_stream.closed:
                    await self._stream.reset()
            except _BROKEN:
                pass

    async def reset(self) -> None:
        """Give up both halves at once; never raises, never takes long."""
        with shielded(1.0), suppress(*_BROKEN):
            await self._stream.reset()

    def _explain(self, error: Exception) -> RemoteProtocolError:
        conn = cast("Any", self._stream.muxed_conn)
        if conn.is_closed or conn.event_shutting_down.is_set():
            return PeerUnreachableError("the connection broke", peer=self.peer)
        if isinstance(error, StreamEOF | IncompleteReadError | EOFError):
            return RemoteProtocolError("truncated", "the stream ended", peer=self.peer)
        if isinstance(error, StreamReset):
            return RemoteProtocolError("stream-reset", "by the peer", peer=self.peer)
        return RemoteProtocolError("stream-reset", type(error).__name__, peer=self.peer)


class _Notifee(INotifee):
    """Tells the wire who came and who went."""

    def __init__(self, changed: Callable[[PeerId, bool], None]) -> None:
        self._changed = changed

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._changed(PeerId(str(conn.muxed_conn.peer_id)), True)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._changed(PeerId(str(conn.muxed_conn.peer_id)), False)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Any) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Any) -> None: ...


class Wire:
    """A running host: dials, opens and serves streams, publishes."""

    def __init__(
        self,
        seed: bytes,
        *,
        topic: str,
        policy: Policy,
        limits: Limits,
        counters: Counters,
        report: Report,
        changed: Callable[[PeerId, bool], None],
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._topic = topic
        self._host = build_host(seed, limits, counters, report)
        self._swarm = cast("Swarm", self._host.get_network())
        self._gate: Gate = cast("Any", self._host).gate
        self.peer_id: PeerId = self._gate.own
        self._router = GuardedGossipSub(topic, report)
        self._pubsub = GuardedPubsub(self._host, self._router, topic, policy, limits)
        self._swarm.register_notifee(_Notifee(changed))

    @asynccontextmanager
    async def running(self, listen: Sequence[str]) -> AsyncIterator[None]:
        """Listen, and serve until the block is left; then everything is closed within a second.

        Raises `CannotListenError` if one of the addresses cannot be had.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(background_trio_service(self._swarm))
            stack.push_async_callback(self._close_all)
            for text in listen:
                await self._listen(text)
            await stack.enter_async_context(background_trio_service(self._router))
            await stack.enter_async_context(background_trio_service(self._pubsub))
            await self._pubsub.wait_until_ready()
            await self._pubsub.subscribe(self._topic)
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(drop_largest, self._swarm, self._limits)
            yield

    async def _listen(self, text: str) -> None:
        transport, _ = parse_transport(text)
        _, kind, host, _, port = transport.split("/")
        if kind not in {"ip4", "ip6"}:
            raise CannotListenError(f"one listens on an IP address, not on {text!r}")
        if int(port):
            refuse_shared_port(host, int(port))
        if not await self._swarm.listen(multiaddr.Multiaddr(transport)):
            raise CannotListenError(f"cannot listen on {text!r}")

    async def _close_all(self) -> None:
        """Close everything at once, even if cancelled.

        Traps: one by one, each connection takes a third of a second; cancelled, libp2p leaves
        its listening sockets open.
        """
        with shielded(2 * self._limits.close_s):
            async with trio.open_nursery() as nursery:
                for listener in self._swarm.listeners.values():
                    nursery.start_soon(listener.close)
                for conn in self._swarm.get_connections():
                    nursery.start_soon(hang_up, conn)

    # ------------------------------------------------------------------------- peers

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialled, wildcards spelt out."""
        found: list[str] = []
        for listener in self._swarm.listeners.values():
            for address in listener.get_addrs():
                found += [f"{text}/p2p/{self.peer_id}" for text in reachable(str(address))]
        return tuple(found)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses that a peer signed and told us when it connected."""
        try:
            known = self._swarm.peerstore.addrs(ID.from_base58(peer))
        except PeerStoreError:
            return ()
        plain = [parse_or_none(str(address)) for address in known]
        return tuple(f"{text}/p2p/{peer}" for text in plain if text is not None)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(
            PeerId(str(conn.muxed_conn.peer_id))
            for conn in self._swarm.get_connections()
            if not conn.is_closed and not conn.muxed_conn.is_closed
        )

    def subscribed(self) -> frozenset[PeerId]:
        """Peers to whom a message of ours goes at once."""
        topic_peers = self._pubsub.peer_topics.get(self._topic, set())
        return frozenset(PeerId(str(peer)) for peer in topic_peers if peer in self._pubsub.peers)

    @property
    def banned(self) -> frozenset[PeerId]:
        return frozenset(self._gate.banned)

    async def dial(self, address: PeerAddress) -> None:
        """Connect to exactly this address; the caller sets the deadline.

        Trap: libp2p's own dial tries one address of several, waits 250 ms for no reason, and
        after a failure refuses for a minute.
        """
        if address.peer in self._gate.banned:
            raise PeerBannedError("not dialled", peer=address.peer)
        if address.peer == self.peer_id:
            raise LocalProtocolError(f"{address} is this node itself")
        target = multiaddr.Multiaddr(str(address))
        try:
            await self._swarm.dial_addr(target, ID.from_base58(address.peer))
        except SwarmException as error:
            chain = causes(error)
            if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in chain) or (
                "Peer ID mismatch" in " ".join(map(str, chain))
            ):
                raise RemoteProtocolError(
                    "wrong-peer", f"{address} is somebody else", peer=address.peer
                ) from error
            raise PeerUnreachableError(f"{address}: {error}", peer=address.peer) from error

    async def disconnect(self, peer: PeerId) -> None:
        with shielded(2 * self._limits.close_s):
            async with trio.open_nursery() as nursery:
                for conn in self._swarm.get_connections(ID.from_base58(peer)):
                    nursery.start_soon(hang_up, conn)

    def ban(self, peer: PeerId) -> None:
        """Refuse everything from `peer` from now on; `disconnect` it as well."""
        self._gate.banned.add(peer)

    # ----------------------------------------------------------------------- streams

    async def open_stream(self, peer: PeerId, protocol: str) -> WireStream:
        """Open a stream to a connected peer. Not to be cancelled: run it in a task of its own."""
        target = ID.from_base58(peer)
        if not self._swarm.get_connections(target):
            raise PeerUnreachableError("not connected", peer=peer)
        try:
            stream = await self._swarm.new_stream(target)
        except _BROKEN as error:
            raise PeerUnreachableError(f"no stream: {error}", peer=peer) from error
        wire = WireStream(stream, peer, protocol, self._counters)
        try:
            with trio.fail_after(self._limits.negotiation_s):
                chosen = await negotiate(stream, protocol)
        except (*_BROKEN, trio.TooSlowError) as error:
            await wire.reset()
            raise PeerUnreachableError(f"no answer on {protocol}: {error}", peer=peer) from error
        if chosen != protocol:
            await wire.reset()
            raise RemoteProtocolError("unsupported-protocol", protocol, peer=peer)
        stream.set_protocol(TProtocol(protocol))
        return wire

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Answer streams of `protocol`. An exception of `handler` reaches the guard's report."""

        async def handle(stream: INetStream) -> None:
            peer = PeerId(str(stream.muxed_conn.peer_id))
            await handler(peer, WireStream(stream, peer, protocol, self._counters))

        self._host.set_stream_handler(TProtocol(protocol), handle)

    # ------------------------------------------------------------------------ gossip

    async def publish(self, data: bytes) -> None:
        await self._pubsub.publish(self._topic, data)

    async def flush(self) -> None:
        await self._pubsub.flush()

    def refresh(self, peer: PeerId) -> None:
        """Repair what gossip may have lost in a reconnection of `peer`."""
        with suppress(*_BROKEN):
            self._pubsub.refresh(ID.from_base58(peer))


async def hang_up(conn: INetConn) -> None:
    with suppress(*_BROKEN, OSError):
        await conn.close()


async def negotiate(stream: INetStream, protocol: str) -> str:
    """Ask for a protocol in one write, and return what the peer answers to it."""
    hello = encode_delim(MULTISELECT_PROTOCOL_ID.encode())
    await stream.write(hello + encode_delim(protocol.encode()))
    answers = MultiselectCommunicator(stream)
    greeting = await answers.read()
    if greeting != MULTISELECT_PROTOCOL_ID:
        raise ParseError(f"negotiation began with {greeting[:32]!r}")
    return await answers.read()


def causes(error: BaseException) -> list[BaseException]:
    """An exception and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(chain) < 16:
        chain.append(current)
        current = current.__cause__
    return chain


def parse_or_none(text: str) -> str | None:
    try:
        return parse_transport(text)[0]
    except LocalProtocolError:
        return None
