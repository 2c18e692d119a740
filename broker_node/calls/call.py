"""A call: one round of a market in which all bids are cleared at once.

Agents keep no common clock, so a call is whatever comes between two closings: whoever has had
something tried since the last one is in it, and is waited for until it bids or stays out, but
never for longer than some seconds after the first bid.

| state    | event                                     | next     |
|----------|-------------------------------------------|----------|
| quiet    | a trial                                   | trying   |
| trying   | a trial; one of those who tried stays out | trying   |
| trying   | the last of those who tried stays out     | quiet    |
| trying   | a bid                                     | bidding  |
| bidding  | a trial, a bid, one stays out             | bidding  |
| bidding  | closed: nobody is waited for any more     | quiet    |
| bidding  | closed: the deadline is past              | quiet    |

Refused by name, and nothing changes: the bid of one who tried nothing (``not-in-the-call``), a
second one that differs from the first (``second-bid``), one for trials of a call that is over
(``call-closed``), and for trials of somebody else or of none (``unknown-trial``).

Pure: time is an argument, and `close` says what is to be cleared.
"""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from node.protocol import cbor
from node.protocol.call import BudgetBid
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import raw_address, to_map
from node.protocol.types import Address, Digest, Instant, Millionths

MAX_CLOSED: Final = 65_536
"""Trials of calls that are over, of which a late bid is told so."""
MAX_BUYERS: Final = 1_024
"""In one call."""
MAX_TRIALS: Final = 4_096
"""Of one buyer, in one call."""


class CallState(enum.Enum):
    QUIET = "quiet"
    TRYING = "trying"
    BIDDING = "bidding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One trial, as a call sees it."""

    trial_id: Digest
    buyer: Address
    seller: Address
    offer_digest: Digest
    layers: int
    """How many layers are sold, counted from the input side."""
    capacity: int
    """How many its model has."""
    gain: Millionths
    """As it was measured, whatever the buyer was told."""
    age: tuple[int, int]
    """Of two offers, the newer one has the higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A bid, and all that its buyer has had tried in the call."""

    buyer: Address
    bid: BudgetBid
    attempts: tuple[Attempt, ...]
    """Those that it does not bid on too: they say what layers of that seller are worth."""

    @property
    def wanted(self) -> tuple[Attempt, ...]:
        """What it bids on."""
        named = set(self.bid.trials)
        return tuple(attempt for attempt in self.attempts if attempt.trial_id in named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What is to be cleared: the bids by rising account."""

    placed: tuple[Placed, ...]

    @property
    def name(self) -> Digest:
        """SHA-256 over all bids: what the call is known by."""
        said: list[cbor.Value] = [[raw_address(p.buyer), to_map(p.bid)] for p in self.placed]
        return Digest(hashlib.sha256(cbor.encode(said)).digest())


@dataclass
class _Present:
    """One who has had something tried since the last closing."""

    attempts: dict[Digest, Attempt] = field(default_factory=dict)
    bid: BudgetBid | None = None
    out: bool = False


class Calls:
    """One call after the other."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long after the first bid the others are waited for."""
        self._seconds = seconds
        self._present: dict[Address, _Present] = {}
        self._closed: OrderedDict[Digest, None] = OrderedDict()
        self.state = CallState.QUIET
        self.deadline: Instant | None = None
        """When the call closes at the latest; None before its first bid."""

    def tried(self, attempt: Attempt) -> None:
        """Take a trial: its buyer is in the call. One of a call that is over says nothing new."""
        if attempt.trial_id in self._closed:
            return
        present = self._present.get(attempt.buyer)
        if present is None:
            if len(self._present) >= MAX_BUYERS:
                raise RemoteProtocolError("call-full", f"{MAX_BUYERS} buyers are in it")
            present = self._present[attempt.buyer] = _Present()
        if attempt.trial_id not in present.attempts and len(present.attempts) >= MAX_TRIALS:
            raise RemoteProtocolError("too-many-trials", f"{MAX_TRIALS} in one call")
        present.attempts[attempt.trial_id] = attempt
        present.out = False
        if self.state is CallState.QUIET:
            self.state = CallState.TRYING

    def bid(self, buyer: Address, bid: BudgetBid, now: Instant) -> None:
        """Take a bid that was checked by itself; the same one again changes nothing.

        Raises `RemoteProtocolError`.
        """
        if any(trial in self._closed for trial in bid.trials):
            raise RemoteProtocolError("call-closed", "those trials are of a call that is over")
        present = self._present.get(buyer)
        if present is None:
            raise RemoteProtocolError("not-in-the-call", f"{buyer} has tried nothing")
        if present.bid is not None and present.bid != bid:
            raise RemoteProtocolError("second-bid", f"of {buyer} in one call")
        for trial in bid.trials:
            if trial not in present.attempts:
                raise RemoteProtocolError("unknown-trial", trial.hex())
        present.bid, present.out = bid, False
        if self.state is CallState.TRYING:
            self.state, self.deadline = CallState.BIDDING, Instant(now + self._seconds)

    def stays_out(self, buyer: Address) -> None:
        """Wait for somebody no longer; who has bid already stays in."""
        present = self._present.get(buyer)
        if present is None or present.bid is not None:
            return
        present.out = True
        if self.state is CallState.TRYING and not self._waits():
            self._reset()

    def close(self, now: Instant) -> Closed | None:
        """Close the call, if it is time; returns what is to be cleared."""
        if self.state is not CallState.BIDDING or self.deadline is None:
            return None
        if self._waits() and now < self.deadline:
            return None
        placed = tuple(
            Placed(buyer=buyer, bid=present.bid, attempts=tuple(present.attempts.values()))
            for buyer, present in sorted(self._present.items())
            if present.bid is not None
        )
        self._reset()
        return Closed(placed=placed)

    def _waits(self) -> bool:
        return any(one.bid is None and not one.out for one in self._present.values())

    def _reset(self) -> None:
        for present in self._present.values():
            self._closed.update(dict.fromkeys(present.attempts))
        while len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)
        self._present, self.state, self.deadline = {}, CallState.QUIET, None
