"""One trial before a quorum of brokers: figures sealed, then opened, then the median, then signed.

| state     | event                                                 | next      |
|-----------|-------------------------------------------------------|-----------|
| proposed  | we have measured, and say the hash of our figure      | committed |
| committed | a set of at least m sealed figures, ours among them   | revealed  |
| revealed  | that set again                                        | revealed  |
| revealed  | figures of the set, whose median is close to our own  | agreed    |
| revealed  | figures of the set, whose median is not               | refused   |
| agreed    | those figures, or others of that median, again        | agreed    |
| agreed    | a quote that follows from the median, which we signed | signed    |
| signed    | a quote that follows from the median, which we signed | signed    |

Every broker of the quorum lives through this, the one that the buyer asked (it *leads*) like its
peers. What is measured is fixed by the evaluation without its figures (`sealed`): weights, recipe,
rows, and so the merged bytes; only losses, gain and bound are each broker's own. Nobody opens its
figure before the set is fixed, and what was sealed once is opened for one set only, so that no
figure is made up in view of another. That is all that sealing is for: the gain itself is no secret
among brokers, each of which can compute it.

A poll that came to nothing, because a broker was away or was restarted, is held anew: another
ballot of the same trial, in which each seals the figure that it has with another salt. Whoever
asks again and again learns honest figures and can make up its own in view of them; that gains it
nothing, for each ballot ends in a median that is close to the figure of every honest signer.

The figure that prices the trade is the one of the **lower median** gain, with the lower median of
the bounds. Of k figures that is the one at place (k − 1) // 2 of the rising order, from 0.

*What liars can do.* Let f of the k figures be lies, f ≤ (k − 1) // 2. At or under the median are
(k − 1) // 2 + 1 figures, at or over it at least as many: more than f, so an honest one is on either
side, and the median lies between the least and the greatest honest figure. The gain that prices the
trade moves by no more than honest figures differ among themselves, which is float noise.

With more lies than that, or a set of two, the median may be a lie; but an honest broker signs only
for a median within `GAIN_TOLERANCE` and `BOUND_TOLERANCE` of its own figure. Where fewer than m
brokers lie, an honest one is among any m that sign: the gain of whatever can be funded is within
the tolerance of an honest figure, and all that liars can do is to have no trade.

*A recipe that lies.* The lead says what is measured: permutation, scales and α that are fitted to
the rows that score them gain on those alone, and every honest replay says the same. So a member
runs the trial itself as well, and seals nothing (``recipe-differs``) where the lead's recipe gains
more or less than its own by over `RECIPE_TOLERANCE`. A lead that lies, with liars beside it, moves
the gain by at most `RECIPE_TOLERANCE` and the float tolerance together, if fewer than m lie.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from node.protocol import cbor
from node.protocol.eip712 import Domain, digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.evaluation import Evaluation, check_evaluation
from node.protocol.quote import Quote
from node.protocol.schema import Message, raw_address, to_map
from node.protocol.signing import ACCOUNT_SIGNATURE_BYTES, recover
from node.protocol.types import Address, Digest, Millionths

MAX_BROKERS: Final = 64
LOSS_TOLERANCE: Final = 1e-5
"""Relative. Honest machines differ by the rounding of float32 sums, in whatever order they are
taken. Measured on 72 trials of two MLPs on the digits, each trained for 1 … 12 epochs: the losses
of 2 threads are those of 1 to the billionth; rows one at a time or seven at a time differ by 3e-8
at most, a pass in float64 by 4e-8. This is 250 times as much: room for deeper models, and for sums
that are as long as those of other hardware are wide."""
GAIN_TOLERANCE: Final = Millionths(20)
"""What two losses that are off by `LOSS_TOLERANCE` each do to a gain that is not negative. In all
of those trials the gains were equal to the millionth."""
BOUND_TOLERANCE: Final = Millionths(20)
"""As of the gain: equal to the millionth in all of those trials."""
RECIPE_TOLERANCE: Final = Millionths(5_000)
"""Between the gains, or bounds, of two honest searches. In those trials 2 threads find the recipe
of 1; losses that are off by 1e-7 each, thrice what was measured, other ones, whose gains differ by
267 at most; by 1e-5, 652, and bounds by 3,950."""
BELOW_QUORUM: Final = "below-quorum"
"""The reason of whoever lacks brokers: there is no trial and no deal, and nothing was lost."""
_CASE: Final = b"pm-node: a case, 1"
_COMMITMENT: Final = b"pm-node: a sealed figure, 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(Message):
    """What one broker has measured in a trial, as in `Evaluation`."""

    loss_before: int
    loss_after: int
    gain: Millionths
    bound: Millionths

    @property
    def order(self) -> tuple[int, int, int, int]:
        """By gain; the rest only decides which of several figures of one gain is meant."""
        return self.gain, self.bound, self.loss_before, self.loss_after


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFigure(Message):
    """What a broker signs before any figure is known: this is the hash of mine."""

    subject: Digest
    broker: Address
    commitment: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment(Message):
    """A sealed figure and the signature of its broker."""

    broker: Address
    commitment: Digest
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening(Message):
    """A figure, and what it was sealed with."""

    broker: Address
    figure: Figure
    salt: Digest


def sealed(evaluation: Evaluation) -> Evaluation:
    """Return what is to be measured, without what was."""
    return dataclasses.replace(
        evaluation, loss_before=0, loss_after=0, gain=Millionths(0), bound=Millionths(0)
    )


def figure_of(evaluation: Evaluation) -> Figure:
    """Return what was measured."""
    return Figure(
        loss_before=evaluation.loss_before,
        loss_after=evaluation.loss_after,
        gain=evaluation.gain,
        bound=evaluation.bound,
    )


def with_figure(evaluation: Evaluation, figure: Figure) -> Evaluation:
    """Return an evaluation of these figures."""
    return dataclasses.replace(
        evaluation,
        loss_before=figure.loss_before,
        loss_after=figure.loss_after,
        gain=figure.gain,
        bound=figure.bound,
    )


def case_of(subject: Evaluation, base: Digest, offer: Digest) -> Digest:
    """Return the name of a trial between these two statements, by their digests.

    The weights alone are no name: they can be offered anew, under other terms.
    """
    return Digest(hashlib.sha256(_CASE + sealed(subject).hash + base + offer).digest())


def commitment_to(subject: Digest, broker: Address, figure: Figure, salt: Digest) -> Digest:
    """Return the hash of a figure; nobody can say it again as its own."""
    data = cbor.encode(to_map(figure))
    named = _COMMITMENT + subject + raw_address(broker) + salt + data
    return Digest(hashlib.sha256(named).digest())


def sealing_digest(domain: Domain, subject: Digest, broker: Address, commitment: Digest) -> Digest:
    """Return what the broker signs to be bound to a sealed figure."""
    sealing = SealedFigure(subject=subject, broker=broker, commitment=commitment)
    return digest(domain, sealing)


def lower_median(figures: Sequence[Figure]) -> Figure:
    """Return the figure of the lower median gain, with the lower median of the bounds.

    The bound is at most the gain where that holds of each figure.
    """
    if not figures:
        raise LocalProtocolError("no figure has no median")
    middle = (len(figures) - 1) // 2
    chosen = sorted(figures, key=lambda figure: figure.order)[middle]
    bound = sorted(figure.bound for figure in figures)[middle]
    return dataclasses.replace(chosen, bound=bound)


def is_close(ours: Figure, agreed: Figure) -> bool:
    """Whether two honest brokers may have come to these, each on its own machine."""
    return (
        gain_is_close(ours, agreed.gain - ours.gain, GAIN_TOLERANCE)
        and gain_is_close(ours, agreed.bound - ours.bound, BOUND_TOLERANCE)
        and loss_is_close(ours.loss_before, agreed.loss_before)
        and loss_is_close(ours.loss_after, agreed.loss_after)
    )


def recipe_is_close(own: Figure, found: Figure) -> bool:
    """Whether a recipe is worth what our own search comes to, neither more nor less."""
    off = max(abs(own.gain - found.gain), abs(own.bound - found.bound))
    return off <= RECIPE_TOLERANCE


def gain_is_close(figure: Figure, off: int, tolerance: int) -> bool:
    """Whether a gain or bound may be off by so much, next to a figure of this size.

    A merge that does harm has a loss of many times the buyer's, and noise to match.
    """
    larger = max(figure.loss_before, figure.loss_after)
    return abs(off) * figure.loss_before <= tolerance * larger + figure.loss_before


def loss_is_close(ours: int, theirs: int) -> bool:
    """Whether two losses, in billionths, differ by no more than float noise and rounding."""
    return abs(ours - theirs) <= LOSS_TOLERANCE * max(ours, theirs) + 1


class BallotState(enum.Enum):
    PROPOSED = "proposed"
    COMMITTED = "committed"
    REVEALED = "revealed"
    AGREED = "agreed"
    SIGNED = "signed"
    REFUSED = "refused"


S = BallotState


class Ballot:
    """One trial, as one broker of the quorum lives it. What breaks the rules changes nothing."""

    def __init__(self, domain: Domain, us: Address, subject: Evaluation, *, needed: int) -> None:
        """`subject`: what is measured; `needed`: m, the brokers that must sign."""
        self.subject = sealed(subject)
        self.name: Final = self.subject.hash
        self.state = S.PROPOSED
        self.agreed: Evaluation | None = None
        """The evaluation that prices the trade, once it is known."""
        self._domain = domain
        self._us = us
        self._needed = needed
        self._opening: Opening | None = None
        self._set: tuple[Commitment, ...] = ()

    @property
    def commitment(self) -> Digest:
        """The hash of our own figure. Raises ``not-committed`` before we have one."""
        ours = self._own()
        return commitment_to(self.name, self._us, ours.figure, ours.salt)

    @property
    def sealing(self) -> Digest:
        """What we sign to be bound to our figure. Raises as `commitment`."""
        return sealing_digest(self._domain, self.name, self._us, self.commitment)

    def commit(self, figure: Figure, salt: Digest) -> Digest:
        """Take what we have measured, once and for all; returns what is to be signed."""
        if self.state is S.PROPOSED:
            check_evaluation(with_figure(self.subject, figure))
            self._opening = Opening(broker=self._us, figure=figure, salt=salt)
            self.state = S.COMMITTED
        return self.sealing

    def check_commitment(self, found: Commitment) -> None:
        """Raise `RemoteProtocolError("bad-commitment")` unless its broker signed it."""
        signed = sealing_digest(self._domain, self.name, found.broker, found.commitment)
        if recover(signed, found.signature) != found.broker:
            raise RemoteProtocolError("bad-commitment", f"not signed by {found.broker}")

    def open(self, commitments: tuple[Commitment, ...], seated: Collection[Address]) -> Opening:
        """Return our figure for this set of sealed ones, and for no other.

        `seated`: brokers whose signatures count. Raises `RemoteProtocolError`: ``not-committed``,
        ``another-set``, ``below-quorum``, ``unsorted-brokers``, ``not-of-the-quorum``,
        ``bad-commitment``, or ``not-our-commitment`` if ours is not among them.
        """
        ours = self._own()
        if self.state is not S.COMMITTED:
            if commitments != self._set:
                raise RemoteProtocolError("another-set", f"{len(commitments)} sealed figures")
            return ours
        names = [raw_address(each.broker) for each in commitments]
        if not self._needed <= len(commitments) <= MAX_BROKERS:
            raise below_quorum(len(commitments), self._needed)
        if any(left >= right for left, right in itertools.pairwise(names)):
            raise RemoteProtocolError("unsorted-brokers", "each once, by rising account")
        for each in commitments:
            if each.broker not in seated:
                raise RemoteProtocolError("not-of-the-quorum", each.broker)
            self.check_commitment(each)
        if (self._us, self.commitment) not in {(c.broker, c.commitment) for c in commitments}:
            raise RemoteProtocolError("not-our-commitment", self._us)
        self._set = commitments
        self.state = S.REVEALED
        return ours

    def check_opening(self, opening: Opening) -> None:
        """Raise `RemoteProtocolError` unless this figure was sealed in our set, and can be one.

        ``bad-opening``, or ``impossible-measurement`` for a gain that is not of its own losses.
        """
        found = commitment_to(self.name, opening.broker, opening.figure, opening.salt)
        if (opening.broker, found) not in {(c.broker, c.commitment) for c in self._set}:
            raise RemoteProtocolError("bad-opening", f"of {opening.broker}")
        check_evaluation(with_figure(self.subject, opening.figure))

    def settle(self, openings: tuple[Opening, ...]) -> Evaluation:
        """Return the evaluation that prices the trade, of these figures of our set.

        Raises `RemoteProtocolError`: as `check_opening`, ``not-revealed``, ``below-quorum``,
        ``not-our-opening``, ``another-median``, or ``figures-differ`` if the median is no figure
        that we could have measured; then we are through with this trial.
        """
        ours = self._own()
        if self.state is S.COMMITTED:
            raise RemoteProtocolError("not-revealed", self.name.hex())
        if self.state is S.REFUSED:
            raise RemoteProtocolError("figures-differ", "as before")
        if len({each.broker for each in openings}) != len(openings):
            raise RemoteProtocolError("bad-opening", "a broker has one figure")
        for each in openings:
            self.check_opening(each)
        if len(openings) < self._needed:
            raise below_quorum(len(openings), self._needed)
        if ours not in openings:
            raise RemoteProtocolError("not-our-opening", self._us)
        median = lower_median([each.figure for each in openings])
        if self.agreed is not None:
            if median != figure_of(self.agreed):
                raise RemoteProtocolError("another-median", f"a gain of {median.gain}")
            return self.agreed
        if not is_close(ours.figure, median):
            self.state = S.REFUSED
            raise RemoteProtocolError(
                "figures-differ",
                f"a gain of {median.gain}, bound {median.bound}; here {ours.figure.gain}, "
                f"bound {ours.figure.bound}",
            )
        self.agreed = with_figure(self.subject, median)
        self.state = S.AGREED
        return self.agreed

    def signed(self) -> None:
        """Note that a quote that follows from the median was signed by us."""
        if self.state not in (S.AGREED, S.SIGNED):
            raise LocalProtocolError(f"nothing can be signed when {self.state.value}")
        self.state = S.SIGNED

    def _own(self) -> Opening:
        if self._opening is None:
            raise RemoteProtocolError("not-committed", self.name.hex())
        return self._opening


def below_quorum(found: int, needed: int) -> RemoteProtocolError:
    """Return the error of too few brokers."""
    return RemoteProtocolError(BELOW_QUORUM, f"{found} of {needed} brokers")


def own_signature(domain: Domain, quote: Quote, signatures: bytes, broker: Address) -> bytes:
    """Return the signature of one broker, which its quorum has signed with.

    One that stands alone is returned as it is: it is checked with all else. Raises
    `RemoteProtocolError`: ``bad-signature``, ``unsorted-brokers``, or ``wrong-signer`` if the
    broker is not among those who signed.
    """
    if len(signatures) <= ACCOUNT_SIGNATURE_BYTES:
        return signatures
    name = digest(domain, quote)
    signers = signers_of(name, signatures)
    if broker not in signers:
        raise RemoteProtocolError("wrong-signer", f"{broker} did not sign {name.hex()[:16]}")
    return signers[broker]


def signers_of(name: Digest, signatures: bytes) -> dict[Address, bytes]:
    """Return who signed, by rising account, each with its signature.

    Raises `RemoteProtocolError`: ``bad-signature``, ``unsorted-brokers``.
    """
    if not 0 < len(signatures) <= MAX_BROKERS * ACCOUNT_SIGNATURE_BYTES:
        raise RemoteProtocolError("bad-signature", f"{len(signatures)} bytes of signatures")
    each = [
        signatures[at : at + ACCOUNT_SIGNATURE_BYTES]
        for at in range(0, len(signatures), ACCOUNT_SIGNATURE_BYTES)
    ]
    signers = {recover(name, one): one for one in each}
    if len(signers) < len(each) or join_signatures(signers) != signatures:
        raise RemoteProtocolError("unsorted-brokers", "each once, by rising account")
    return signers


def join_signatures(signatures: dict[Address, bytes]) -> bytes:
    """Return signatures as the escrow takes them: one after the other, by rising account."""
    ordered = sorted(signatures, key=raw_address)
    return b"".join(signatures[broker] for broker in ordered)
