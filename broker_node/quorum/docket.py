"""What one lead has before a member: its cases, their ballots, and how much it has had signed.

| of each lead               | at most             | one more                        |
|----------------------------|---------------------|---------------------------------|
| cases, figures, own trials | `places` of each    | the oldest is forgotten         |
| ballots of a case          | `MAX_BALLOTS`       | the oldest is forgotten         |
| ballots that were agreed   | `MAX_BALLOTS` more  | the oldest is forgotten         |
| new signatures of a day    | `SIGNATURES_A_DAY`  | is refused: each stays for long |
| of them, for one buyer     | `OF_A_BUYER_A_DAY`  | is refused: others have theirs  |

Accounts cost nothing: with eight of them, and as many as sell, somebody can still have an honest
lead sign no more that day. It costs them a trial for each pair, and the other brokers go on.
What is forgotten is measured, or polled, again; nothing of it was promised.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from broker_node.quorum.terms import Terms
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation
from node.protocol.quorum import Ballot, BallotState, Figure
from node.protocol.types import Address, Digest, PeerId, UnixTime

MAX_BALLOTS: Final = 8
SIGNATURES_A_DAY: Final = 4_096
OF_A_BUYER_A_DAY: Final = 512
"""An eighth of them: one pair of accounts has a lead's signatures not all to itself."""
DAY: Final = 86_400
Pair = tuple[Digest, Digest, str, str, tuple[int, ...], Digest]
"""Of which our own trial is: base, what is sold, architecture of each, layers sold, seed of the
lead. Adapters of one root may be told apart by their scale alone, which their architecture says."""
Own = tuple[Figure, str]
"""What our own trial came to, and by which method."""
_AGREED: Final = (BallotState.AGREED, BallotState.SIGNED)


@dataclass(slots=True, kw_only=True, eq=False)
class Case:
    """One trial that a peer leads, under the statements that it was asked with."""

    subject: Evaluation
    figure: Figure
    terms: Terms
    _ballots: OrderedDict[Digest, Ballot] = field(default_factory=OrderedDict)
    """By what we sealed, the newest last."""

    def ballot(self, make: Callable[[Case], Ballot]) -> Ballot:
        """Return the ballot whose set is not fixed yet, or `make` one: a poll begins anew."""
        for ballot in reversed(self._ballots.values()):
            if ballot.state is BallotState.COMMITTED:
                return ballot
        ballot = make(self)
        self._ballots[ballot.commitment] = ballot
        for agreed in (False, True):
            those = [name for name, b in self._ballots.items() if (b.state in _AGREED) is agreed]
            for name in those[:-MAX_BALLOTS]:
                del self._ballots[name]
        return ballot

    def find(self, commitments: Iterable[Digest], reason: str) -> Ballot:
        """Return the ballot in which we sealed one of these. Raises `RemoteProtocolError`."""
        for name in commitments:
            if name in self._ballots:
                return self._ballots[name]
        raise RemoteProtocolError(reason, self.subject.hash.hex())


class Docket:
    """The latest `places` cases of one lead."""

    def __init__(self, places: int) -> None:
        self._places: Final = places
        self._cases: OrderedDict[tuple[PeerId, Digest], Case] = OrderedDict()
        self._figures: OrderedDict[Digest, Figure] = OrderedDict()
        self._own_trials: OrderedDict[Pair, Own] = OrderedDict()
        self._signed: deque[tuple[UnixTime, Address]] = deque()
        self._of_buyer: Counter[Address] = Counter()

    def case(self, peer: PeerId, name: Digest) -> Case | None:
        """Return a case by the peer that leads it, and its name."""
        return self._cases.get((peer, name))

    def open(self, peer: PeerId, name: Digest, case: Case) -> Case:
        """Keep a new case."""
        self._cases[peer, name] = case
        while len(self._cases) > self._places:
            self._cases.popitem(last=False)
        return case

    def figure(self, subject: Digest) -> Figure | None:
        """Return what we measured of this subject, which names weights, recipe and rows."""
        return self._figures.get(subject)

    def keep_figure(self, subject: Digest, figure: Figure) -> None:
        """Keep what we measured."""
        self._figures[subject] = figure
        while len(self._figures) > self._places:
            self._figures.popitem(last=False)

    def own_trial(self, pair: Pair) -> Own | None:
        """Return what our own trial of these models came to."""
        return self._own_trials.get(pair)

    def keep_own_trial(self, pair: Pair, own: Own) -> None:
        """Keep what our own trial came to: whatever recipes a lead tries, it is run once."""
        self._own_trials[pair] = own
        while len(self._own_trials) > self._places:
            self._own_trials.popitem(last=False)

    def count_signature(self, now: UnixTime, buyer: Address) -> None:
        """Count one more; raises `RemoteProtocolError("busy")` for too many in a day."""
        while self._signed and self._signed[0][0] <= now - DAY:
            _, of = self._signed.popleft()
            self._of_buyer[of] -= 1
            if not self._of_buyer[of]:
                del self._of_buyer[of]
        if self._of_buyer[buyer] >= OF_A_BUYER_A_DAY:
            raise RemoteProtocolError("busy", f"{OF_A_BUYER_A_DAY} quotes of {buyer} in a day")
        if len(self._signed) >= SIGNATURES_A_DAY:
            raise RemoteProtocolError("busy", f"{SIGNATURES_A_DAY} quotes were signed in a day")
        self._signed.append((now, buyer))
        self._of_buyer[buyer] += 1
