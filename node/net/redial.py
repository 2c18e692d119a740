"""Staying connected: redial for ever, quickly at first, never in step with others."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio

from node.net.errors import PeerBannedError
from node.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from node.net.addresses import PeerAddress
    from node.net.host import Network

FIRST_PAUSE_S: Final = 0.2
LAST_PAUSE_S: Final = 30.0
GROWTH: Final = 1.6
STEADY_S: Final = 10.0
"""A connection that lasted longer was a good one."""


def pauses(attempt: int) -> float:
    """The longest pause before attempt `attempt` (0 is the first after a failure)."""
    return min(LAST_PAUSE_S, FIRST_PAUSE_S * GROWTH ** min(attempt, 64))


def jittered(pause: float) -> float:
    """Between half of `pause` and all of it, so that a restarted broker is not stampeded."""
    return pause * (0.5 + secrets.randbelow(1_000_001) / 2_000_000)


def after_losing(failures: int, lasted_s: float) -> int:
    """How many failures count after a connection was lost.

    A peer that takes connections and drops them again is not hammered.
    """
    return 0 if lasted_s > STEADY_S else failures + 1


async def keep_connected(network: Network, address: PeerAddress) -> None:
    """Connect, wait until the connection is lost, connect again; ends only with a ban."""
    failures = 0
    while True:
        try:
            await network.connect(str(address))
        except PeerBannedError:
            return
        except RemoteProtocolError:
            await trio.sleep(jittered(pauses(failures)))
            failures += 1
            continue
        connected_at = trio.current_time()
        await network.wait_disconnected(address.peer)
        failures = after_losing(failures, trio.current_time() - connected_at)
        await trio.sleep(jittered(pauses(failures)))
