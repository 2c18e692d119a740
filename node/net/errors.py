"""What can go wrong between two peers, named by whose fault it is.

Everything libp2p raises is turned into one of these in `node.net.adapter`; whoever calls
`node.net` catches `RemoteProtocolError` per peer and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from node.protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from node.protocol.types import PeerId

PASSING: Final = frozenset(
    {"unreachable", "timeout", "truncated", "stream-reset", "too-slow", "busy", "quota-exceeded"}
)
"""Reasons that a better moment or another address may mend; all others are the peer's word."""


class PeerUnreachableError(RemoteProtocolError):
    """There is no connection to the peer, and none could be made."""

    def __init__(self, detail: str = "", *, peer: PeerId | None = None) -> None:
        super().__init__("unreachable", detail, peer=peer)


class PeerTimeoutError(RemoteProtocolError):
    """The peer did not answer, or stopped in the middle, for longer than it was given."""

    def __init__(self, detail: str = "", *, peer: PeerId | None = None) -> None:
        super().__init__("timeout", detail, peer=peer)


class PeerBannedError(RemoteProtocolError):
    """We have banned this peer, and talk to it no more."""

    def __init__(self, detail: str = "", *, peer: PeerId | None = None) -> None:
        super().__init__("banned", detail, peer=peer)


class CannotListenError(LocalProtocolError):
    """The address is in use, is not ours, or is no address."""
