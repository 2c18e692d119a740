"""Errors named by who is at fault, carrying the values that offended.

A `LocalProtocolError` is ours: the caller asked for something the market forbids. A
`RemoteProtocolError` is a peer's: it is caught per peer, counted under its reason, and
never stops anybody else's trade.
"""

from __future__ import annotations

from node.protocol.types import PeerId


class MarketError(Exception):
    """Base of every error that this project names."""


class LocalProtocolError(MarketError):
    """We were about to break the protocol ourselves."""


class RemoteProtocolError(MarketError):
    """A peer broke the protocol.

    `reason` is one short, stable, hyphenated word (``bad-signature``): verdict counters
    and metrics use it as a label. `detail` carries the offending value for a person.
    """

    def __init__(self, reason: str, detail: str = "", *, peer: PeerId | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.peer = peer
