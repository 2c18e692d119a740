"""What a node's network did, counted where it happens.

Bytes are those that cross libp2p's streams, by protocol: what our peers and we wrote, with
our own framing, and without what Yamux, Noise and TCP put around it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Totals since the host was opened; read them whenever."""

    bytes_in: Counter[str] = field(default_factory=Counter)
    """By protocol id."""
    bytes_out: Counter[str] = field(default_factory=Counter)
    gossip_accepted: int = 0
    gossip_published: int = 0
    gossip_unread: int = 0
    """Accepted, but dropped here because nobody read the channel."""
    gossip_ignored: Counter[str] = field(default_factory=Counter)
    """By reason."""
    gossip_rejected: Counter[str] = field(default_factory=Counter)
    requests_served: Counter[str] = field(default_factory=Counter)
    """By protocol id."""
    requests_failed: Counter[str] = field(default_factory=Counter)
    """By the reason that the peer was given."""
    connections_opened: int = 0
    connections_lost: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Connections and streams turned away or dropped, by reason."""
    faults: Counter[str] = field(default_factory=Counter)
    """Bugs of ours that a task boundary caught, by where."""

    def snapshot(self) -> dict[str, object]:
        """A copy made of plain dicts and ints, for JSON and metrics."""
        copy: dict[str, object] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            copy[name] = dict(value) if isinstance(value, Counter) else value
        return copy
