"""A node on the network: `open_host` gives a `Network`, and leaving the block closes it all.

    async with open_host(seed, "/ip4/127.0.0.1/tcp/0") as network:
        network.set_gossip_validator(validate)
        network.handle_requests("/pm/broker/2", answer)
        nursery.start_soon(network.keep_connected, broker_address)
        async for heard in network.gossip(): ...

Everything is in the market's words: peers are `PeerId`, addresses are text, and what a peer
does wrong is a `RemoteProtocolError` that names it. libp2p is imported by the first
`open_host`, which takes about two seconds; importing this module takes none.
"""

from __future__ import annotations

import warnings
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from node.net.addresses import PeerAddress, parse_peer_address
from node.net.counters import Counters
from node.net.errors import PeerTimeoutError, PeerUnreachableError
from node.net.gossip import TOPIC, Gossip, Heard
from node.net.limits import MAX_MESSAGE_BYTES, Limits
from node.net.redial import keep_connected
from node.net.streams import MessageStream, RequestDesk, ask
from node.protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from node.net.adapter import Wire, WireStream
    from node.net.gossip import Validator
    from node.net.streams import RequestHandler
    from node.protocol.types import PeerId

    StreamHandler = Callable[[PeerId, MessageStream], Awaitable[None]]
    OnFault = Callable[[str, PeerId | None, Exception], None]

_SETTLING_S = (1.0, 2.0, 5.0)
"""When, after a connection was made, gossip with that peer is looked over."""


class _Opening:
    """A stream that is being opened in a task of its own, or why it was not."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.stream: WireStream | None = None
        self.error: RemoteProtocolError | None = None
        self.abandoned = False


class Network:
    """One node's peers, gossip, requests and streams."""

    def __init__(self, limits: Limits, on_fault: OnFault | None) -> None:
        self._nursery: trio.Nursery | None = None
        """Open between `open_host`'s beginning and its end."""
        self._limits = limits
        self._on_fault = on_fault
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._gone: dict[PeerId, trio.Event] = {}
        self._outbound: dict[PeerId, trio.Semaphore] = {}
        self._wire: Wire
        self.counters = Counters()
        self.faults: deque[tuple[str, PeerId | None, Exception]] = deque(maxlen=32)
        """The last exceptions that a task boundary caught: bugs of ours, if any."""
        self._gossip = Gossip(limits, self.counters, self._ban_for, self._report)

    # ------------------------------------------------------------------------- peers

    @property
    def peer_id(self) -> PeerId:
        return self._wire.peer_id

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialled; each ends in our peer id."""
        return self._wire.addresses()

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """The addresses that a peer signed and told us; none if it never connected."""
        return self._wire.addresses_of(peer)

    def connected(self) -> frozenset[PeerId]:
        return self._wire.connected()

    def gossiping_with(self) -> frozenset[PeerId]:
        """The connected peers that a message published now goes to at once."""
        return self._wire.subscribed() & self.connected()

    def banned(self) -> frozenset[PeerId]:
        return self._wire.banned

    async def connect(self, address: str) -> PeerId:
        """Connect to a peer, unless there is a connection already.

        Raises `LocalProtocolError` for what is no peer's address, `PeerUnreachableError`,
        `PeerTimeoutError`, `PeerBannedError`, `RemoteProtocolError("wrong-peer")`.
        """
        parsed = parse_peer_address(address)
        await self._connect(parsed)
        return parsed.peer

    async def keep_connected(self, address: str) -> None:
        """Stay connected to this address: redial for ever, sooner at first, with jitter.

        Never returns, but for a ban; raises `LocalProtocolError` for what is no address.
        """
        await keep_connected(self, parse_peer_address(address))

    async def disconnect(self, peer: PeerId) -> None:
        await self._wire.disconnect(peer)

    async def ban(self, peer: PeerId) -> None:
        """Disconnect a peer, and refuse it from now on."""
        self._wire.ban(peer)
        await self._wire.disconnect(peer)

    async def wait_disconnected(self, peer: PeerId) -> None:
        """Return once there is no connection to `peer`."""
        while peer in self.connected():
            await self._gone.setdefault(peer, trio.Event()).wait()

    async def _connect(self, address: PeerAddress) -> None:
        if address.peer in self.connected():
            return
        lock = self._dialling.setdefault(address.peer, trio.Lock())
        try:
            async with lock:
                if address.peer in self.connected():
                    return
                with trio.move_on_after(self._limits.dial_s) as scope:
                    await self._wire.dial(address)
                if scope.cancelled_caught:
                    detail = f"{address} did not answer in {self._limits.dial_s} s"
                    raise PeerTimeoutError(detail, peer=address.peer)
        finally:
            if not lock.locked():
                self._dialling.pop(address.peer, None)

    async def _reach(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Have a connection to `peer`: over `addresses`, some maybe junk, or those it told us."""
        if peer in self.connected():
            return
        tried: list[str] = []
        for text in (*addresses, *self.addresses_of(peer)):
            try:
                address = parse_peer_address(text)
                if address.peer != peer:
                    raise LocalProtocolError(f"{text[:200]!r} is not an address of {peer}")
                await self._connect(address)
            except (LocalProtocolError, RemoteProtocolError) as error:
                tried.append(str(error))
            else:
                return
        raise PeerUnreachableError("; ".join(tried) or "no address is known", peer=peer)

    # ----------------------------------------------------------------------- streams

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, protocol: str, *, deadline_s: float, addresses: Sequence[str] = ()
    ) -> AsyncIterator[MessageStream]:
        """Open a stream within `deadline_s`; closed in order at the end, reset on an error."""
        slots = self._outbound.setdefault(
            peer, trio.Semaphore(self._limits.outbound_streams_per_peer)
        )
        wire: WireStream | None = None
        with trio.move_on_after(deadline_s):
            await self._reach(peer, addresses)
            await slots.acquire()
            try:
                wire = await self._open(peer, protocol)
            except BaseException:
                slots.release()
                raise
        if wire is None:
            raise PeerTimeoutError(f"no stream of {protocol} in {deadline_s} s", peer=peer)
        try:
            yield MessageStream(wire)
        except BaseException:
            self._spawn(wire.reset)
            raise
        else:
            await wire.close()
        finally:
            slots.release()

    async def _open(self, peer: PeerId, protocol: str) -> WireStream:
        """Open a stream in a task that no deadline cuts: half an opening is never undone."""
        opening = _Opening()
        if not self._spawn(self._open_into, opening, peer, protocol):
            raise PeerUnreachableError("this host is closed", peer=peer)
        try:
            await opening.done.wait()
        except trio.Cancelled:
            opening.abandoned = True
            raise
        if opening.stream is None:
            raise opening.error or PeerUnreachableError("closing", peer=peer)
        return opening.stream

    async def _open_into(self, opening: _Opening, peer: PeerId, protocol: str) -> None:
        try:
            opening.stream = await self._wire.open_stream(peer, protocol)
        except RemoteProtocolError as error:
            opening.error = error
        except Exception as error:  # noqa: BLE001 (the boundary of our own task)
            self._report("open-stream", peer, error)
            opening.error = PeerUnreachableError("no stream", peer=peer)
        finally:
            opening.done.set()
        if opening.abandoned and opening.stream is not None:
            await opening.stream.reset()

    async def request(
        self,
        peer: PeerId,
        protocol: str,
        payload: bytes,
        *,
        deadline_s: float,
        addresses: Sequence[str] = (),
        sent: Callable[[], None] | None = None,
    ) -> bytes:
        """Ask `peer` one question of at most 256 KiB and return its answer, within `deadline_s`.

        `sent` is called once the question has left. Raises `PeerUnreachableError`,
        `PeerTimeoutError`, or the `RemoteProtocolError` that the peer answered with; all name
        the peer.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise LocalProtocolError(f"a request has up to 256 KiB, not {len(payload)} bytes")
        answer = None
        with trio.move_on_after(deadline_s):
            opened = self.stream(peer, protocol, deadline_s=deadline_s, addresses=addresses)
            async with opened as stream:
                answer = await ask(stream, payload, deadline_s=deadline_s, sent=sent)
        if answer is None:
            raise PeerTimeoutError(f"no answer on {protocol} in {deadline_s} s", peer=peer)
        return answer

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve streams of `protocol`. What `handler` raises ends its stream and nothing else.

        A `RemoteProtocolError` is counted; any other exception is a bug, and goes to `on_fault`.
        """

        async def serve(peer: PeerId, wire: WireStream) -> None:
            try:
                await handler(peer, MessageStream(wire))
            except RemoteProtocolError as error:
                self.counters.requests_failed[error.reason] += 1
                await wire.reset()

        self._wire.serve(protocol, serve)

    def handle_requests(self, protocol: str, handler: RequestHandler) -> None:
        """Answer requests of `protocol` with ``await handler(peer, payload)``."""
        desk = RequestDesk(handler, self._limits, self.counters, self._report)
        self.handle(protocol, desk.serve)

    # ------------------------------------------------------------------------ gossip

    def set_gossip_validator(self, validator: Validator) -> None:
        """Judge messages from now on; until then all are ignored. It is synchronous."""
        self._gossip.set_validator(validator)

    def gossip(self) -> trio.MemoryReceiveChannel[Heard]:
        """Accepted messages of other nodes, at most 1,024 unread; one reader."""
        return self._gossip.channel

    async def publish(self, data: bytes) -> None:
        """Send a message to every peer in the topic.

        Raises `LocalProtocolError` if it is empty or past 16 KiB.
        """
        self._gossip.check_outgoing(data)
        self.counters.gossip_published += 1
        await self._wire.publish(data)

    async def flush(self) -> None:
        """Wait until published messages have left, at most for a moment."""
        await self._wire.flush()

    # ---------------------------------------------------------------------- internals

    def _spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> bool:
        if self._nursery is None:
            return False
        self._nursery.start_soon(task, *args)
        return True

    def _changed(self, peer: PeerId, up: bool) -> None:
        if up:
            self.counters.connections_opened += 1
            self._spawn(self._settle, peer)
            return
        self.counters.connections_lost += 1
        if peer in self.connected():
            return
        self._gossip.forget(peer)
        slots = self._outbound.get(peer)
        if slots is not None and slots.value == self._limits.outbound_streams_per_peer:
            del self._outbound[peer]
        if (gone := self._gone.pop(peer, None)) is not None:
            gone.set()

    async def _settle(self, peer: PeerId) -> None:
        for pause in _SETTLING_S:
            await trio.sleep(pause)
            if peer not in self.connected():
                return
            self._wire.refresh(peer)

    def _ban_for(self, peer: PeerId, reason: str) -> None:
        self.counters.refused[f"banned-for-{reason}"] += 1
        self._wire.ban(peer)
        self._spawn(self._wire.disconnect, peer)

    def _report(self, where: str, peer: PeerId | None, error: Exception) -> None:
        self.counters.faults[where] += 1
        self.faults.append((where, peer, error))
        if self._on_fault is not None:
            self._on_fault(where, peer, error)


@asynccontextmanager
async def open_host(
    identity_key: bytes,
    listen: str | Sequence[str] = (),
    *,
    bootstrap: Sequence[str] = (),
    limits: Limits | None = None,
    on_fault: OnFault | None = None,
) -> AsyncIterator[Network]:
    """Open a node on the network until the block is left.

    `identity_key` is the 32-byte seed of its Ed25519 key; `listen` names addresses like
    ``/ip4/127.0.0.1/tcp/0`` (none: it only dials); `bootstrap` peers are kept connected.
    `on_fault(where, peer, error)` hears of bugs that a task boundary caught.

    Raises `LocalProtocolError` for a key or an address that is none, and
    `CannotListenError` for one that is taken. What the block raises comes out as it is.
    """
    if len(identity_key) != 32:
        raise LocalProtocolError(f"an Ed25519 seed is 32 bytes, got {len(identity_key)}")
    for address in bootstrap:
        parse_peer_address(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of libp2p's own imports
        from node.net.adapter import Wire  # noqa: PLC0415 (libp2p takes two seconds to import)

    limits = limits or Limits()
    network = Network(limits, on_fault)
    wire = network._wire = Wire(  # noqa: SLF001 (made of each other)
        identity_key,
        topic=TOPIC,
        policy=network._gossip,  # noqa: SLF001
        limits=limits,
        counters=network.counters,
        report=network._report,  # noqa: SLF001
        changed=network._changed,  # noqa: SLF001
    )
    addresses = (listen,) if isinstance(listen, str) else tuple(listen)
    thrown: BaseException | None = None
    try:
        async with wire.running(addresses), trio.open_nursery() as nursery:
            network._nursery = nursery  # noqa: SLF001
            for address in bootstrap:
                nursery.start_soon(network.keep_connected, address)
            try:
                yield network
            except BaseException as error:
                thrown = error
                raise
            finally:
                network._nursery = None  # noqa: SLF001
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        sole = _sole(group)
        if sole is not None and thrown in {None, sole}:
            raise sole from sole.__cause__
        raise


def _sole(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one exception in a group of groups, or None if there are several."""
    current: BaseException = group
    while isinstance(current, BaseExceptionGroup):
        if len(current.exceptions) != 1:
            return None
        current = current.exceptions[0]
    return current
