"""What can be wrong with a run of the devnet."""

from __future__ import annotations

from node.protocol.errors import MarketError


class DevnetError(MarketError):
    """A run cannot begin, or could not be played to its end."""
