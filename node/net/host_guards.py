"""The guards around a host: who may connect, how streams are served, what is switched off.

The second half of `node.net.guards`, which see; the traps and their tests are the same list.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_PROTOCOL_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure

from node.net.errors import CannotListenError
from node.net.guards import GuardedYamux, install, shielded
from node.net.limits import KIB, Limits
from node.protocol.errors import RemoteProtocolError
from node.protocol.signing import public_key_of
from node.protocol.types import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from libp2p.abc import IMuxedConn, INetStream, IRawConnection, ISecureConn
    from libp2p.host.basic_host import BasicHost
    from libp2p.io.abc import ReadWriteCloser
    from libp2p.network.swarm import Swarm
    from libp2p.peer.id import ID

    from node.net.counters import Counters

    Report = Callable[[str, PeerId | None, Exception], None]

_PUSH: Final = "/ipfs/id/push/"


class Gate:
    """Who may connect, and how many streams they may open."""

    def __init__(self, own: PeerId, limits: Limits, counters: Counters) -> None:
        self.own = own
        self.limits = limits
        self.counters = counters
        self.banned: set[PeerId] = set()
        self.handshakes = 0
        self._streams: Counter[PeerId] = Counter()

    def refusal(self, peer: PeerId) -> str | None:
        """Why `peer` may not connect, or None.

        Trap: ids of other kinds and lengths are accepted; ours are Ed25519 keys, inlined.
        """
        if peer == self.own:
            return "self"
        if peer in self.banned:
            return "banned"
        try:
            public_key_of(peer)
        except RemoteProtocolError as error:
            return error.reason
        return None

    def enter(self, peer: PeerId) -> bool:
        """Count one more inbound stream of `peer`, if it may have one.

        Trap: there is no limit; one peer held 8,297 streams open.
        """
        if peer in self.banned or self._streams[peer] >= self.limits.inbound_streams_per_peer:
            self.counters.refused["streams"] += 1
            return False
        self._streams[peer] += 1
        return True

    def leave(self, peer: PeerId) -> None:
        self._streams[peer] -= 1
        if self._streams[peer] <= 0:
            del self._streams[peer]


def guard_upgrades(swarm: Swarm, gate: Gate, limits: Limits) -> None:
    """Bound the handshake in time, ask `gate` as soon as the peer is known, mux safely.

    Traps: an outbound handshake has no deadline; nothing checks who connects; the muxer that
    is configured is not the one that is built (Yamux is hard-wired).
    """
    upgrader = swarm.upgrader
    stock_upgrade = upgrader.upgrade_security
    muxer = upgrader.muxer_multistream

    async def upgrade_security(
        raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        with trio.fail_after(limits.handshake_s):
            conn = await stock_upgrade(raw_conn, is_initiator, peer_id)
        peer = PeerId(str(conn.get_remote_peer()))
        reason = gate.refusal(peer)
        if reason is None and (
            len(swarm.get_connections(conn.get_remote_peer())) >= limits.connections_per_peer
        ):
            reason = "connections-per-peer"
        if reason is not None:
            gate.counters.refused[reason] += 1
            await conn.close()
            raise SecurityUpgradeFailure(f"{peer} may not connect: {reason}")
        cast("Any", conn).raw_conn = raw_conn
        return conn

    async def upgrade_connection(conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        try:
            with trio.fail_after(limits.handshake_s):
                protocol, _ = await muxer._selector.select(conn, conn.is_initiator)  # noqa: SLF001
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("no muxer in common") from error
        muxed = GuardedYamux(conn, peer_id, cast("Any", conn).raw_conn, limits, gate.counters)
        return muxer._annotate_connection(muxed, conn, protocol)  # noqa: SLF001

    cast("Any", upgrader).upgrade_security = upgrade_security
    cast("Any", upgrader).upgrade_connection = upgrade_connection


def guard_inbound(swarm: Swarm, gate: Gate, limits: Limits) -> None:
    """Serve an inbound connection for as long as it lives, and no longer.

    Trap: the stock handler holds its slot and its task until the swarm ends, so a node that
    allows 50 connections accepts 50 in its whole life.
    """

    async def handle(stream: ReadWriteCloser, address: Any) -> None:
        if gate.handshakes >= limits.pending_handshakes:
            gate.counters.refused["handshakes"] += 1
            return
        gate.handshakes += 1
        try:
            muxed = await swarm.upgrade_inbound_raw_conn(RawConnection(stream, False), address)
        finally:
            gate.handshakes -= 1
        await cast("GuardedYamux", muxed).event_closed.wait()

    cast("Any", swarm)._handle_inbound_connection = handle  # noqa: SLF001


def guard_streams(host: BasicHost, gate: Gate, limits: Limits, report: Report) -> None:
    """Let no exception of a stream's handler out, and leave no stream half open.

    Trap: an exception that escapes a stream handler cancels the whole swarm. What a peer can
    cause is dropped; what remains is a bug, and is reported.
    """
    stock = cast("Any", host)._swarm_stream_handler  # noqa: SLF001

    async def handler(stream: INetStream) -> None:
        peer = PeerId(str(stream.muxed_conn.peer_id))
        if not gate.enter(peer):
            await stream.reset()
            return
        try:
            await stock(stream)
        except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError):
            gate.counters.refused["stream-broke"] += 1
        except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
            report("stream-handler", peer, error)
        finally:
            try:
                with shielded(limits.linger_s):
                    await finish(stream)
            except Exception as error:  # noqa: BLE001 (the boundary of a foreign task)
                report("stream-finish", peer, error)
            gate.leave(peer)

    host.get_network().set_stream_handler(handler)


async def finish(stream: INetStream) -> None:
    """Close both halves: wait for the far end if ours was closed in order, else reset."""
    muxed = cast("Any", stream).muxed_stream
    if muxed.closed:
        return
    if not muxed.send_closed:
        await stream.reset()
        return
    try:
        with trio.move_on_after(1.0):
            while await stream.read(64 * KIB):
                pass
    except (BaseLibp2pError, EOFError):
        pass
    if not muxed.closed:
        await stream.reset()


async def drop_largest(swarm: Swarm, limits: Limits) -> None:
    """Watch all receive buffers together; past `total_buffer_bytes` drop the largest."""
    while True:
        await trio.sleep(0.5)
        held = {
            conn.muxed_conn: cast("GuardedYamux", conn.muxed_conn).buffers.held
            for conn in swarm.get_connections()
        }
        if sum(held.values()) > limits.total_buffer_bytes:
            cast("GuardedYamux", max(held, key=lambda muxed: held[muxed])).abandon("memory")


def build_host(seed: bytes, limits: Limits, counters: Counters, report: Report) -> BasicHost:
    """A host over TCP, Noise and Yamux with every guard in place.

    Traps: the default security list accepts plaintext; the resource manager limits a
    machine to a few connections per address; the auto-connector dials whom it knows, whatever
    its watermarks; identify runs in trio's system tasks, where an exception ends the process.
    """
    install(limits.window_bytes)
    keys = create_new_key_pair(seed)
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    host = cast(
        "BasicHost",
        new_host(
            key_pair=keys,
            sec_opt={NOISE_PROTOCOL_ID: noise},
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): Yamux},
            connection_config=ConnectionConfig(
                max_connections=limits.max_connections,
                min_connections=0,
                low_watermark=0,
                high_watermark=limits.max_connections,
                max_connections_per_peer=limits.connections_per_peer,
                inbound_upgrade_timeout=3 * limits.handshake_s,
                outbound_upgrade_timeout=limits.handshake_s,
                inbound_stream_protocol_negotiation_timeout=limits.negotiation_s,
                outbound_stream_protocol_negotiation_timeout=limits.negotiation_s,
            ),
            disable_identify_address_discovery=True,
        ),
    )
    swarm = cast("Swarm", host.get_network())
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.set_resource_manager(None)
    swarm.auto_connector.maybe_connect = nobody  # type: ignore[method-assign]
    for notifee in list(swarm.notifees):
        if type(notifee).__name__ == "_IdentifyNotifee":
            swarm.remove_notifee(notifee)
    for protocol in list(host.multiselect.handlers):
        if protocol is not None and protocol.startswith(_PUSH):
            host.multiselect.remove_handler(protocol)
    gate = Gate(PeerId(str(host.get_id())), limits, counters)
    cast("Any", host).gate = gate
    guard_upgrades(swarm, gate, limits)
    guard_inbound(swarm, gate, limits)
    guard_streams(host, gate, limits, report)
    return host


async def nobody() -> None:
    """Dial nobody that we were not told to."""


def refuse_shared_port(host: str, port: int) -> None:
    """Raise `CannotListenError` if somebody listens there already.

    Trap: libp2p listens with SO_REUSEPORT, so two nodes share a port and each loses half.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotListenError(f"cannot listen on {host} port {port}: {error}") from error
