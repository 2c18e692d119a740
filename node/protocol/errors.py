"""Errors named by who is at fault, carrying the values that offended.

A `LocalProtocolError` is ours: the caller asked for something the market forbids. A
`RemoteProtocolError` is a peer's: it is caught per peer, counted under its reason, and
never stops anybody else's trade.
"""

from __future__ import annotations

from collections.abc import Callable

from node.protocol.types import PeerId


class MarketError(Exception):
    """Base of every error that this project names; whole, too, after it went to another process."""

    def __reduce__(self) -> tuple[Callable[..., MarketError], tuple[object, ...]]:
        # what an exception does by itself is call its class with `args`, of which ours have others
        return _again, (type(self), self.args, dict(self.__dict__))


def _again(
    kind: type[MarketError], args: tuple[object, ...], attributes: dict[str, object]
) -> MarketError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


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
