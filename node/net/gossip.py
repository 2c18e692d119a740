"""Gossip: what is taken, what is passed over, and who is no longer listened to.

One topic carries every kind of message. libp2p asks about each whether it is good; the
judgement is ours, in this order: its size, how many this peer has sent, the signature of its
origin, and last the market's own validator, which is synchronous and sees only small, signed,
paced messages. *Rejecting* too many from one peer within a window bans it.

A message that was judged is remembered by its id and not judged again; but not one that came
too fast, which another peer may still bring, nor one whose id was never proved by a signature,
or a forgery would silence the peer that it names.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from node.net.limits import MAX_GOSSIP_BYTES, Limits
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.verdict import Judgement, Verdict, ignore, reject

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.net.counters import Counters
    from node.protocol.types import PeerId

    Report = Callable[[str, PeerId | None, Exception], None]
    Validator = Callable[[PeerId, bytes], Verdict]

TOPIC: Final = "/pm/market/1"
GOSSIP: Final = "gossip"
"""Where gossip's bytes are counted."""
_MAX_OFFENDERS: Final = 4_096


class Heard(NamedTuple):
    """An accepted message: who handed it to us, what it says, and who first published it."""

    sender: PeerId
    data: bytes
    origin: PeerId
    """Its signature over the message was checked; `sender` is merely the neighbour."""


class TokenBucket:
    """So many at once, so many a second after that."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token, if there is one."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self, now: float) -> float:
        """Take one token even if there is none; return how long to wait until it is paid."""
        self._refill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Gossip:
    """The policy of one node, and the channel of what it accepted."""

    def __init__(
        self,
        limits: Limits,
        counters: Counters,
        ban: Callable[[PeerId, str], None],
        report: Report,
    ) -> None:
        self._limits = limits
        self._counters = counters
        self._ban = ban
        self._report = report
        self._validator: Validator | None = None
        self._send, self.channel = trio.open_memory_channel[Heard](limits.gossip_queue)
        self._messages: dict[PeerId, TokenBucket] = {}
        self._frames: dict[PeerId, TokenBucket] = {}
        self._offences: dict[PeerId, deque[float]] = {}

    def set_validator(self, validator: Validator) -> None:
        self._validator = validator

    def check_outgoing(self, data: bytes) -> None:
        """Raise `LocalProtocolError` for a message that every peer would reject."""
        if not 0 < len(data) <= MAX_GOSSIP_BYTES:
            raise LocalProtocolError(
                f"a gossiped message has 1 to {MAX_GOSSIP_BYTES} bytes, got {len(data)}"
            )

    def forget(self, peer: PeerId) -> None:
        """Drop what is kept for a peer that left, but for its offences."""
        self._messages.pop(peer, None)
        self._frames.pop(peer, None)

    # --------------------------------------------------- asked by `gossip_guards.GuardedPubsub`

    def admit(
        self, sender: PeerId, origin: PeerId, data: bytes, *, verify: Callable[[], None]
    ) -> tuple[bool, bool]:
        verdict, remembered = self._judge(sender, data, verify)
        match verdict.judgement:
            case Judgement.ACCEPT:
                self._counters.gossip_accepted += 1
                try:
                    self._send.send_nowait(Heard(sender, data, origin))
                except (trio.WouldBlock, trio.BrokenResourceError):
                    self._counters.gossip_unread += 1
            case Judgement.IGNORE:
                self._counters.gossip_ignored[verdict.reason] += 1
            case Judgement.REJECT:
                self.offend(sender, verdict.reason)
        return verdict.accepted, remembered

    def _judge(
        self, sender: PeerId, data: bytes, verify: Callable[[], None]
    ) -> tuple[Verdict, bool]:
        if not 0 < len(data) <= MAX_GOSSIP_BYTES:
            return reject("oversize" if data else "empty"), False
        bucket = self._messages.get(sender)
        if bucket is None:
            bucket = self._messages[sender] = TokenBucket(
                self._limits.gossip_messages_per_s, self._limits.gossip_burst, trio.current_time()
            )
        if not bucket.take(trio.current_time()):
            return ignore("rate"), False
        try:
            verify()
        except RemoteProtocolError as error:
            return reject(error.reason), False
        if self._validator is None:
            return ignore("not-ready"), False
        try:
            return self._validator(sender, data), True
        except RemoteProtocolError as error:
            return reject(error.reason), True
        except Exception as error:  # noqa: BLE001 (a bug of ours is no fault of the peer's)
            self._report("gossip-validator", sender, error)
            return ignore("internal-error"), True

    def offend(self, sender: PeerId, reason: str) -> None:
        """Count something that an honest peer would not have sent; too many ban it."""
        self._counters.gossip_rejected[reason] += 1
        now = trio.current_time()
        offences = self._offences.setdefault(sender, deque())
        offences.append(now)
        while offences and offences[0] < now - self._limits.gossip_reject_window_s:
            offences.popleft()
        if len(offences) > self._limits.gossip_rejects:
            del self._offences[sender]
            self._ban(sender, reason)
        if len(self._offences) > _MAX_OFFENDERS:
            self._offences.pop(next(iter(self._offences)))

    def pace(self, sender: PeerId) -> float:
        bucket = self._frames.get(sender)
        if bucket is None:
            bucket = self._frames[sender] = TokenBucket(
                self._limits.gossip_frames_per_s,
                self._limits.gossip_frames_burst,
                trio.current_time(),
            )
        return bucket.wait(trio.current_time())

    def wrote(self, length: int) -> None:
        self._counters.bytes_out[GOSSIP] += length

    def read(self, length: int) -> None:
        self._counters.bytes_in[GOSSIP] += length
