"""How much of anything one peer, one connection and all of them together may use.

The numbers were measured on py-libp2p 0.8.1; the ones that are not obvious say from what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

MAX_GOSSIP_BYTES: Final = 16 * KIB
"""A gossiped message carries roots, never lists of hashes."""
MAX_MESSAGE_BYTES: Final = 256 * KIB
"""One request or one answer on a stream."""
STREAM_WRITE_BYTES: Final = 65_507
"""With Yamux's 12-byte header this fills one Noise message; one byte more makes two."""
STREAM_READ_BYTES: Final = 256 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one node; every duration is in seconds."""

    max_connections: int = 50
    connections_per_peer: int = 3
    pending_handshakes: int = 32
    handshake_s: float = 5.0
    dial_s: float = 10.0

    inbound_streams_per_peer: int = 32
    outbound_streams_per_peer: int = 64
    """Stock libp2p blocks for ever on the 257th of one connection."""
    negotiation_s: float = 5.0
    linger_s: float = 2.0
    """How long the far end of a finished stream may keep its half open."""

    window_bytes: int = 4 * MIB
    """What one stream may have in flight, once its reader keeps up."""
    connection_buffer_bytes: int = 32 * MIB
    """Received and not yet read, over all streams of a connection; more drops it."""
    total_buffer_bytes: int = 256 * MIB
    """The same over all connections; more drops the largest."""

    ping_every_s: float = 10.0
    silence_s: float = 20.0
    """A connection without a byte for this long after a ping is dropped."""
    close_s: float = 0.5

    gossip_queue: int = 1024
    gossip_rpc_bytes: int = 256 * KIB
    gossip_seen_s: float = 120.0
    gossip_seen_entries: int = 65_536
    gossip_messages_per_s: float = 100.0
    """From one neighbour, its own and what it relays: a hub hands on a whole market's."""
    gossip_burst: int = 1_000
    gossip_frames_per_s: float = 200.0
    gossip_frames_burst: int = 1_000
    gossip_rejects: int = 16
    """More rejected messages than this within `gossip_reject_window_s` ban whoever sent them."""
    gossip_reject_window_s: float = 60.0

    requests_per_peer: int = 8
    requests_total: int = 64
    request_read_s: float = 10.0
    request_work_s: float = 60.0
    request_write_s: float = 10.0
