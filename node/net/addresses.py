"""Multiaddresses as text: the few forms that this node dials and listens on.

    /ip4/127.0.0.1/tcp/4001/p2p/12D3Koo…     /dns4/broker.example/tcp/4001/p2p/12D3Koo…

The peer id is part of an address: an address without one could be answered by anybody.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

import psutil

from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.signing import public_key_of
from node.protocol.types import PeerId

_ADDRESS: Final = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6)/(?P<host>[^/\s]{1,253})/tcp/(?P<port>\d{1,5})"
    r"(?:/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]{1,128}))?/?"
)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_WILDCARDS: Final = {"ip4": "0.0.0.0", "ip6": "::"}  # noqa: S104 (compared, not bound)


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer may be reached, and which peer it has to be."""

    transport: str
    """The address without its peer id."""
    peer: PeerId

    def __str__(self) -> str:
        return f"{self.transport}/p2p/{self.peer}"


def parse_transport(text: str) -> tuple[str, PeerId | None]:
    """Split an address into the part to dial or listen on and the peer id, if it has one.

    Raises `LocalProtocolError` for anything but IP or DNS over TCP.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise LocalProtocolError(f"not an address like /ip4/…/tcp/…[/p2p/…]: {text[:200]!r}")
    kind, host, port = match["kind"], match["host"], int(match["port"])
    if port > 65_535:
        raise LocalProtocolError(f"port {port} is past 65535 in {text[:200]!r}")
    if kind in _WILDCARDS:
        try:
            parsed = ipaddress.ip_address(host)
        except ValueError as error:
            raise LocalProtocolError(f"{host!r} is no IP address in {text[:200]!r}") from error
        if parsed.version != int(kind[2]):
            raise LocalProtocolError(f"{host!r} is not {kind} in {text[:200]!r}")
    elif _HOST_NAME.fullmatch(host) is None:
        raise LocalProtocolError(f"{host!r} is no host name in {text[:200]!r}")
    peer = match["peer"]
    if peer is not None:
        try:
            public_key_of(PeerId(peer))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"no peer has the id in {text[:200]!r}: {error}") from error
    return f"/{kind}/{host}/tcp/{port}", None if peer is None else PeerId(peer)


def parse_peer_address(text: str) -> PeerAddress:
    """Read an address to dial; `LocalProtocolError` unless it ends in its peer's id."""
    transport, peer = parse_transport(text)
    if peer is None:
        raise LocalProtocolError(f"an address to dial ends in /p2p/ and the peer's id: {text!r}")
    return PeerAddress(transport, peer)


def reachable(transport: str) -> tuple[str, ...]:
    """Spell out a wildcard: one address for each of this machine's own, loopback last."""
    match = _ADDRESS.fullmatch(transport)
    if match is None or match["host"] != _WILDCARDS.get(match["kind"]):
        return (transport,)
    version = int(match["kind"][2])
    found = set()
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            try:
                parsed = ipaddress.ip_address(entry.address)
            except ValueError:
                continue
            if parsed.version == version and not parsed.is_link_local:
                found.add(parsed)
    ordered = sorted(found, key=lambda ip: (ip.is_loopback, int(ip)))
    return tuple(f"/{match['kind']}/{ip}/tcp/{match['port']}" for ip in ordered)
