"""A broker whose peer leads: measures again, seals, opens, and signs what follows from the median.

It measures twice: the lead's recipe, whose figure it seals, and its own trial, which the lead's
recipe may be worth no more and no less than.

What it has agreed to is only remembered in memory: one that was restarted is asked to measure
again. What it signed is in its journal before it leaves (`pen`), and so is the seed of each lead
(`seeds`).

Each lead has places of its own (`docket`): whatever one asks for pushes out nothing of another's.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from broker_node.appraisal import Appraiser
from broker_node.blame import of_seller
from broker_node.evaluate.evaluation import apart
from broker_node.findings import ComputedOtherwise
from broker_node.quorum.docket import Case, Docket, Own
from broker_node.quorum.pen import Pen
from broker_node.quorum.replay import differs
from broker_node.quorum.seats import Seats
from broker_node.quorum.seeds import pin_seed
from broker_node.quorum.terms import Terms, check_parties, check_terms
from broker_node.settings import BrokerSettings
from broker_node.verify.stages import Verified
from node.net.errors import PeerTimeoutError
from node.protocol import envelope
from node.protocol.errors import RemoteProtocolError
from node.protocol.evaluation import Evaluation, trial_seed
from node.protocol.messages import (
    Cosign,
    Cosigned,
    Introduce,
    Introduced,
    Opened,
    OpenFigure,
    Replay,
    Sealed,
    StreamMessage,
)
from node.protocol.offer import BrokerNotice, Offer
from node.protocol.quorum import (
    RECIPE_TOLERANCE,
    Ballot,
    BallotState,
    Commitment,
    Figure,
    case_of,
    commitment_to,
    figure_of,
    recipe_is_close,
    sealed,
)
from node.protocol.signing import sign_digest
from node.protocol.types import Address, Digest, PeerId
from node.station.station import Answer, Question, Station
from node.station.turns import Turns

INTRODUCE_SECONDS: Final = 10.0
MODEL_SECONDS: Final = 20.0
"""For an owner to show its weights: one that trickles is told from a lead that hangs. What came
by then is kept a while, and the next request goes on from there."""
LEAST_CASES: Final = 16
"""Places of a lead, however many brokers share those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """How the broker comes by what is offered and submitted."""

    take_in: Callable[[bytes], tuple[Digest, Offer]]
    """Judges a signed offer, keeps it. Raises `RemoteProtocolError`."""
    held: Callable[[Offer], Verified | None]
    model: Callable[[Offer], Awaitable[Verified]]


class Member:
    """Answers the peers of a broker's quorum."""

    def __init__(
        self,
        station: Station,
        seats: Seats,
        pen: Pen,
        appraiser: Appraiser,
        models: Models,
        settings: BrokerSettings,
        compute: trio.CapacityLimiter,
    ) -> None:
        self._station = station
        self._seats = seats
        self._pen = pen
        self._appraiser = appraiser
        self._models = models
        self._compute = compute
        self._needed, self._brokers = settings.quorum
        self._places = max(LEAST_CASES, settings.max_trials_remembered // self._brokers)
        self._dockets: dict[Address, Docket] = {}
        """Of brokers with a seat, who are few."""
        self._turns = Turns()

    def answers(self) -> Mapping[Question, Answer]:
        """The kinds of request that a member of a quorum answers."""
        return {Replay: self._replay, OpenFigure: self._open, Cosign: self._cosign}

    async def pin_seeds(self) -> None:
        """Hold each broker that we hear of to the seed that it names first.

        Raises `RemoteProtocolError("chain-away")`.
        """
        for notice in await self._seats.notices():
            if notice.validation_root == self._appraiser.validation_root:
                with contextlib.suppress(RemoteProtocolError):  # said when it asks for anything
                    pin_seed(self._station.journal, notice)

    # ── measuring again ──

    async def _replay(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Replay)
        station, subject = self._station, sealed(question.subject)
        station.take_in((question.notice,))
        notice_digest, notice = await self._seats.notice_of(peer)
        self._check_notice(subject, notice_digest, notice)
        (base_digest, base), (offer_digest, offer) = map(
            self._models.take_in, (question.base, question.offer)
        )
        check_parties((station.account, notice.broker), base, offer)
        _check_subject(subject, notice, base, offer)
        name = case_of(subject, base_digest, offer_digest)
        docket = self._dockets.setdefault(notice.broker, Docket(self._places))
        async with self._turns.of(notice.broker):
            case = docket.case(peer, name)
            if case is None:
                terms = Terms(
                    notice_digest=notice_digest,
                    notice=notice,
                    base_digest=base_digest,
                    base=base,
                    offer_digest=offer_digest,
                    offer=offer,
                )
                figure = await self._figure(docket, subject, question.recipe, terms)
                case = docket.open(peer, name, Case(subject=subject, figure=figure, terms=terms))
        ballot = case.ballot(self._new_ballot)
        return Sealed(
            commitment=Commitment(
                broker=station.account,
                commitment=ballot.commitment,
                signature=sign_digest(station.keys.account, ballot.sealing),
            )
        )

    def _check_notice(
        self, subject: Evaluation, notice_digest: Digest, notice: BrokerNotice
    ) -> None:
        """Check that the lead was to measure on our rows, and by the seed that we know of."""
        if subject.notice_digest != notice_digest:
            differs("notice_digest", subject.notice_digest.hex(), notice_digest.hex())
        ours = self._appraiser
        committed = (notice.validation_root, notice.validation_rows)
        if committed != (ours.validation_root, ours.validation_rows):
            raise RemoteProtocolError(
                "another-validation-set",
                f"{notice.validation_rows} rows, {notice.validation_root.hex()}; here "
                f"{ours.validation_rows}, {ours.validation_root.hex()}",
                peer=notice.peer_id,
            )
        pin_seed(self._station.journal, notice)
        for field, said, due in zip(
            ("choice_rows", "score_rows"),
            (subject.choice_rows, subject.score_rows),
            ours.rows,
            strict=True,
        ):
            if said != due:
                differs(field, said, due)

    async def _figure(
        self, docket: Docket, subject: Evaluation, recipe: bytes, terms: Terms
    ) -> Figure:
        """Return what we measure of this; of weights that are offered anew, what we had.

        Raises `RemoteProtocolError("recipe-differs")` for a recipe that is worth more, or less,
        than the one that we find: it was fitted to the rows that score it, or not looked for.
        """
        known = docket.figure(subject.hash)
        if known is not None:
            return known
        ours, theirs = await self._model(terms.base), await self._model(terms.offer)
        again = await trio.to_thread.run_sync(
            self._appraiser.replay, subject, recipe, ours, theirs, limiter=self._compute
        )
        for said in again.fallbacks:
            self._station.observer.emit(ComputedOtherwise(during="replay", reason=said))
        figure = again.figure
        own, method = await self._own_trial(docket, terms, ours, theirs)
        if not recipe_is_close(own, figure):
            raise RemoteProtocolError(
                "recipe-differs",
                f"its gain is {figure.gain}, bound {figure.bound}; of our own {own.gain}, "
                f"bound {own.bound}; at most {RECIPE_TOLERANCE} apart; "
                + _why_apart(subject.method, method),
            )
        docket.keep_figure(subject.hash, figure)
        return figure

    async def _own_trial(self, docket: Docket, terms: Terms, base: Verified, sold: Verified) -> Own:
        """Return the figure of our own recipe, by the lead's seed; once for each pair."""
        offer, notice = terms.offer, (terms.notice_digest, terms.notice)
        roots = (base.weights_root, sold.weights_root)
        kind = (base.architecture.text, offer.architecture, offer.layers)
        pair = (*roots, *kind, terms.notice.seed)
        known = docket.own_trial(pair)
        if known is None:
            trial = await trio.to_thread.run_sync(
                lambda: self._appraiser.measure(base, sold, task=offer.task, notice=notice),
                limiter=self._compute,
            )
            for said in trial.fallbacks:
                self._station.observer.emit(ComputedOtherwise(during="trial", reason=said))
            known = (figure_of(trial.evaluation), trial.evaluation.method)
            docket.keep_own_trial(pair, known)
        return known

    def _new_ballot(self, case: Case) -> Ballot:
        station = self._station
        ballot = Ballot(station.domain, station.account, case.subject, needed=self._needed)
        ballot.commit(case.figure, Digest(secrets.token_bytes(32)))
        return ballot

    async def _model(self, offer: Offer) -> Verified:
        """Fetch what its owner serves to brokers that it joined by, us among them."""
        held = self._models.held(offer)
        if held is not None:
            return held
        own = self._station.own_notice()
        data = None if own is None else self._station.book.data_of(own[0])
        if data is None:
            raise RemoteProtocolError("no-notice", "not open yet")
        with of_seller(offer.peer_id, all_of_it=True):
            await self._station.ask(
                offer.peer_id, Introduce(notice=data), Introduced, seconds=INTRODUCE_SECONDS
            )
            with trio.move_on_after(MODEL_SECONDS):
                return await self._models.model(offer)
            raise PeerTimeoutError(f"no model within {MODEL_SECONDS:g} s", peer=offer.peer_id)

    # ── opening and signing ──

    async def _open(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, OpenFigure)
        _, case = self._case(peer, question.case)
        ours = self._station.account
        check_parties((c.broker for c in question.commitments), case.terms.base, case.terms.offer)
        sealed_by_us = [c.commitment for c in question.commitments if c.broker == ours]
        ballot = case.find(sealed_by_us, "not-our-commitment")
        seated = {ours}
        if ballot.state is BallotState.COMMITTED:
            for each in question.commitments[: self._brokers]:
                if each.broker != ours and await self._seats.is_seated(each.broker):
                    seated.add(each.broker)
        return Opened(opening=ballot.open(question.commitments, seated))

    async def _cosign(self, peer: PeerId, question: StreamMessage) -> StreamMessage:
        assert isinstance(question, Cosign)
        docket, case = self._case(peer, question.case)
        station = self._station
        check_parties((o.broker for o in question.openings), case.terms.base, case.terms.offer)
        sealed_by_us = [
            commitment_to(case.subject.hash, o.broker, o.figure, o.salt)
            for o in question.openings
            if o.broker == station.account
        ]
        ballot = case.find(sealed_by_us, "not-our-opening")
        agreed = ballot.settle(question.openings)
        receipt = envelope.decode(question.receipt)
        check_terms(
            question,
            receipt.body,
            agreed,
            case.terms,
            domain=station.domain,
            ours=station.account,
            receipt_hash=envelope.check(station.domain, receipt),
            now=station.clock(),
        )
        if not self._pen.has_signed(question.quote):
            docket.count_signature(station.clock(), question.quote.buyer)
        signature = self._pen.sign(question.quote, offer_expires=case.terms.offer.expires_at)
        ballot.signed()
        return Cosigned(signature=signature)

    def _case(self, peer: PeerId, name: Digest) -> tuple[Docket, Case]:
        for docket in self._dockets.values():
            case = docket.case(peer, name)
            if case is not None:
                return docket, case
        raise RemoteProtocolError("unknown-trial", name.hex(), peer=peer)


def _why_apart(said: str, ours: str) -> str:
    """Return which settings of the lead's are others than ours, by what it and we found."""
    found = [f"{name} = {one}, ours {two}" for name, (one, two) in apart(said, ours).items()]
    if not found:
        return f"both were found by {ours}"
    return f"it was found by {'; '.join(found)[:200]}: brokers of a quorum need the same settings"


def _check_subject(subject: Evaluation, notice: BrokerNotice, base: Offer, offer: Offer) -> None:
    seed = trial_seed(notice.seed, base.weights_root, offer.weights_root)
    for field, said, found in (
        ("base_root", subject.base_root.hex(), base.weights_root.hex()),
        ("sold_root", subject.sold_root.hex(), offer.weights_root.hex()),
        ("validation_root", subject.validation_root.hex(), notice.validation_root.hex()),
        ("seed", subject.seed.hex(), seed.hex()),
        ("task", subject.task, offer.task),
    ):
        if said != found:
            differs(field, said, found)
